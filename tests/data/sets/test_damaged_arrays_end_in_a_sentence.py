"""Arrays of published sets that are damaged, missing or hostile end in a sentence that says what mends it."""

import gzip
import os
import pickle
import zipfile

import numpy as np
import pytest

from bissl_fast.data.sets.readers import arrays, omniglot
from bissl_fast.errors import UserError
from tests.data import published, trees


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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"y": np.array([9] * 15)}, "holds labels outside its 3 classes"),
        ({"packed": np.zeros((15, 7), dtype=np.uint8)}, r"holds \(15, 7\) uint8 where \(15, 1379\) uint8 is expected"),
        (None, "cannot be read"),
    ],
)
def test_omniglot_arrays_that_are_damaged(changes, sentence, tmp_path):
    folder = published.omniglot_bits(tmp_path)
    path = folder / "omniglot_images_background_bits105.npz"
    if changes is None:
        path.write_bytes(path.read_bytes()[:-100])
    else:
        np.savez(path, **(dict(np.load(path)) | changes))
    with pytest.raises(UserError, match=sentence):
        omniglot.omniglot(folder)


def test_omniglot_with_neither_drawings_nor_bits(tmp_path):
    with pytest.raises(UserError, match=r"Omniglot is incomplete: .*images_background is missing"):
        omniglot.omniglot(tmp_path)


def test_stl10_class_names_that_are_no_text(tmp_path):
    folder = trees.stl10(tmp_path)
    (folder / "class_names.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"class_names\.txt cannot be read as text"):
        arrays.stl10(folder)


def test_an_idx_file_is_not_unpacked_without_end(tmp_path, monkeypatch):
    folder = trees.fashion_mnist(tmp_path / "raw")
    monkeypatch.setattr(arrays, "MOST_BYTES", 1000)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(trees.idx(np.zeros(100_000, dtype=np.uint8))))
    with pytest.raises(UserError, match=r"announces \(100000,\) bytes and holds 993: it is cut off"):
        arrays.fashion_mnist(folder)


class Empty:
    """Pickled as a call of NumPy's array class with a shape that no memory holds."""

    def __reduce__(self):
        return np.ndarray, ((1 << 50,), "u1")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (pickle.dumps({"data": Empty()}), "'str' object is not callable"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "it numbers one of its parts 2147483647"),
    ],
)
def test_a_small_pickle_takes_little_memory(content, sentence, tmp_path):
    folder = trees.cifar10(tmp_path)
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        arrays.cifar10(folder)


def test_omniglot_archives_that_are_damaged(tmp_path):
    for part in omniglot.PARTS:
        with zipfile.ZipFile(tmp_path / f"images_{part}.zip", "w") as archive:
            for i in range(3):
                archive.writestr(f"images_{part}/Greek/character01/{i}.png", b"no picture")
    with pytest.raises(UserError, match=r"images_background\.zip cannot be read"):
        omniglot.omniglot(tmp_path).train.read(0, 8)
    path = tmp_path / "images_evaluation.zip"
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[: at + 6] + b"\xff\xff" + whole[at + 8 :])  # of a version that no reader knows
    with pytest.raises(UserError, match=r"images_evaluation\.zip cannot be read"):
        omniglot.omniglot(tmp_path)
