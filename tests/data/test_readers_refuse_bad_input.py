"""Damaged or incomplete sets end in a sentence that says what was found and what mends it."""

import os
import pickle

import numpy as np
import pytest

from bissl_fast.data.readers import arrays
from bissl_fast.data.readers.dtd import dtd
from bissl_fast.data.readers.folder import image_folder, loose_images
from bissl_fast.errors import UserError
from tests.data import trees


def test_an_stl10_file_that_is_cut_off(tmp_path):
    folder = trees.stl10(tmp_path)
    os.truncate(folder / "train_X.bin", 12345)
    with pytest.raises(
        UserError, match=r"train_X\.bin has 12,345 bytes, which is not 20 images .* download STL10 again"
    ):
        arrays.stl10(folder)


def test_an_stl10_file_that_is_missing(tmp_path):
    folder = trees.stl10(tmp_path)
    (folder / "unlabeled_X.bin").unlink()
    with pytest.raises(UserError, match=r"STL10 is incomplete: .*unlabeled_X\.bin is missing"):
        arrays.stl10_unlabelled(folder)


def test_stl10_labels_out_of_range(tmp_path):
    folder = trees.stl10(tmp_path)
    (folder / "train_y.bin").write_bytes(bytes([11] * 20))
    with pytest.raises(UserError, match="holds labels from 10 to 10 where 10 classes are expected"):
        arrays.stl10(folder)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is cut off or damaged"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01abcd", r"no IDX file of unsigned bytes \(it starts with 00000d01\)"),
        (trees.idx(np.zeros(20, dtype=np.uint8))[:-5], "announces .* and holds 15: it is cut off"),
    ],
)
def test_an_idx_file_that_is_damaged(tmp_path, content, sentence):
    folder = trees.fashion_mnist(tmp_path / "raw", zipped=False)
    (folder / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        arrays.fashion_mnist(folder)


def test_a_zipped_idx_file_that_is_cut_off(tmp_path):
    folder = trees.fashion_mnist(tmp_path / "raw")
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz is cut off or damaged"):
        arrays.fashion_mnist(folder)


class Evil:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


def test_a_cifar_pickle_cannot_run_code(tmp_path, capfd):
    folder = trees.cifar10(tmp_path)
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(UserError, match=r"data_batch_3 cannot be read \(it asks for posix\.system"):
        arrays.cifar10(folder)
    assert "never run" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (pickle.dumps([1, 2]), "holds a list where a dictionary is expected"),
        (pickle.dumps({"data": [1]}), r"has no entry 'labels', only \['data'\]"),
        (b"garbage", "cannot be read"),
    ],
)
def test_a_cifar_batch_that_is_damaged(tmp_path, content, sentence):
    folder = trees.cifar10(tmp_path)
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        arrays.cifar10(folder)


def test_a_cifar_batch_with_more_labels_than_images(tmp_path):
    folder = trees.cifar10(tmp_path)
    trees.dump(folder / "test_batch", {"data": trees.cifar_pixels(3), "labels": [0] * 4})
    with pytest.raises(UserError, match="images that do not match their labels"):
        arrays.cifar10(folder)


def test_dtd_without_one_of_its_lists(tmp_path):
    folder = trees.dtd(tmp_path)
    (folder / "labels" / "val1.txt").unlink()
    with pytest.raises(UserError, match=r"DTD is incomplete: .*val1\.txt is missing"):
        dtd(folder)


def test_dtd_without_the_images_of_a_split(tmp_path):
    folder = trees.dtd(tmp_path)
    (folder / "labels" / "test1.txt").write_text("banded/elsewhere.jpg\n")
    with pytest.raises(UserError, match=r"None of the 1 images that labels/test1\.txt lists"):
        dtd(folder)


def test_a_folder_that_is_not_there(tmp_path):
    for read in (image_folder, loose_images):
        with pytest.raises(UserError, match=r"There is no folder .*nowhere"):
            read(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"No image is in .*expected files ending in \.bmp"):
        loose_images(tmp_path)
    with pytest.raises(UserError, match="holds no class folder: expected one sub-folder of images for each of two"):
        image_folder(tmp_path)


def test_a_single_class(tmp_path):
    with pytest.raises(UserError, match="holds only the class folder a/"):
        image_folder(trees.class_folders(tmp_path, {"a": 4}))


def test_an_empty_class_folder(tmp_path):
    with pytest.raises(UserError, match=r"No image is in .*/b:"):
        image_folder(trees.class_folders(tmp_path, {"a": 4, "b": 0}))


def test_nothing_but_classes_of_one_image(tmp_path):
    with pytest.raises(UserError, match=r"No class of .* has two images, so none can be held out as .*/test"):
        image_folder(trees.class_folders(tmp_path, {"a": 1, "b": 1}))


def test_train_without_val_and_test(tmp_path):
    trees.class_folders(tmp_path / "train", {"a": 4, "b": 4})
    with pytest.raises(UserError, match="has train/ but neither val/ nor test/"):
        image_folder(tmp_path)


def test_a_class_that_train_lacks(tmp_path):
    trees.class_folders(tmp_path / "train", {"a": 4, "b": 4})
    trees.class_folders(tmp_path / "test", {"a": 4, "c": 4})
    with pytest.raises(UserError, match="holds classes that train/ lacks: c"):
        image_folder(tmp_path)
