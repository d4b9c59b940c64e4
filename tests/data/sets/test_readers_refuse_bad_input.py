"""Damaged or incomplete sets end in a sentence that says what was found and what mends it."""

import gzip
import os
import pickle
import zipfile

import numpy as np
import pytest
from scipy.io import savemat

from bissl_fast.data.sets.readers import arrays, class_folders, lists, matlab, omniglot
from bissl_fast.data.sets.readers.folder import image_folder, loose_images
from bissl_fast.data.sets.readers.lists import dtd
from bissl_fast.data.sets.readers.voc import CLASSES, voc2007
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


def test_dtd_without_one_of_its_lists(tmp_path):
    folder = trees.dtd(tmp_path)
    (folder / "labels" / "val1.txt").unlink()
    with pytest.raises(UserError, match=r"DTD is incomplete: .*val1\.txt is missing"):
        dtd(folder)


def test_dtd_without_the_images_of_a_split(tmp_path):
    folder = trees.dtd(tmp_path)
    (folder / "labels" / "test1.txt").write_text("banded/elsewhere.jpg\n")
    with pytest.raises(UserError, match=r"None of the 1 images that DTD lists for test is in .*images"):
        dtd(folder)


def test_a_folder_that_is_not_there(tmp_path):
    for read in (image_folder, loose_images):
        with pytest.raises(UserError, match=r"There is no folder .*nowhere"):
            read(tmp_path / "nowhere")
        (tmp_path / "leaf.jpg").touch()
        with pytest.raises(UserError, match=r"leaf\.jpg is a file: give the path of a folder of images, as "):
            read(tmp_path / "leaf.jpg")


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"No image is in .*expected files ending in \.avif"):
        loose_images(tmp_path)
    with pytest.raises(UserError, match="holds no class folder: expected one sub-folder of images for each of two"):
        image_folder(tmp_path)


def test_a_single_class(tmp_path):
    with pytest.raises(UserError, match="holds only the class folder a/"):
        image_folder(trees.class_folders(tmp_path, {"a": 4}))


def test_a_single_class_beside_an_empty_one(tmp_path):
    with pytest.raises(UserError, match="holds only the class folder a/ with images, and b/ without"):
        image_folder(trees.class_folders(tmp_path, {"a": 4, "b": 0}))


def test_a_set_that_lies_one_folder_deeper_is_pointed_at(tmp_path):
    trees.class_folders(tmp_path / "photos", {"a": 4, "b": 4})
    with pytest.raises(UserError, match=f"If the set lies in photos/, give folder:{tmp_path}/photos"):
        image_folder(tmp_path)


@pytest.mark.parametrize("names", [("test", "val"), ("Testing", "Validation")])
def test_splits_without_a_train_folder(tmp_path, names):
    for name in names:
        trees.class_folders(tmp_path / name, {"a": 4, "b": 4})
    with pytest.raises(UserError, match=r"which sound like splits, but no train/ with class folders inside"):
        image_folder(tmp_path)


def test_splits_of_loose_images_are_no_classes(tmp_path):
    with pytest.raises(UserError, match=r"holds test/, train/, which sound like splits, but no train/ with class"):
        image_folder(trees.class_folders(tmp_path, {"train": 4, "test": 4}))


def test_two_folders_for_one_split(tmp_path):
    for name in ("train", "Training", "test"):
        trees.class_folders(tmp_path / name, {"a": 4, "b": 4})
    with pytest.raises(UserError, match=r"holds Training/ and train/, which both sound like its train split"):
        image_folder(tmp_path)


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


def voc(root):
    return published.voc2007(root, CLASSES)


READERS = {
    "flowers": (published.flowers, matlab.flowers, ["setid.mat", "imagelabels.mat"]),
    "cars": (published.cars, matlab.cars, ["devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"]),
    "aircraft": (published.aircraft, lists.aircraft, ["variants.txt", "images_variant_val.txt"]),
    "pets": (published.pets, lists.pets, ["annotations/test.txt"]),
    "food101": (published.food101, lists.food101, ["meta/test.json"]),
    "sun397": (published.sun397, lists.sun397, ["Partitions/Testing_01.txt"]),
    "cub200": (published.cub200, lists.cub200, ["images.txt", "classes.txt"]),
    "voc2007": (voc, voc2007, ["ImageSets/Main/val.txt", "ImageSets/Main/dog_test.txt"]),
    "tinyimagenet": (published.tinyimagenet, class_folders.tiny_imagenet, ["wnids.txt"]),
}
FILES = [(tree, read, file) for tree, read, files in READERS.values() for file in files]


@pytest.mark.parametrize(("tree", "read", "file"), FILES, ids=[file for _, _, file in FILES])
def test_a_list_that_is_missing_or_not_what_its_name_says(tree, read, file, tmp_path):
    folder = tree(tmp_path)
    (folder / file).write_bytes(b"\xff\xfe\x00 not a list \xe9")
    with pytest.raises(
        UserError, match=rf"{file.split('/')[-1]} (cannot be read as text|is damaged|is no MATLAB file)"
    ):
        read(folder)
    (folder / file).unlink()
    with pytest.raises(UserError, match=rf"is incomplete: .*{file} is missing"):
        read(folder)


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_list_is_not_waited_for(tmp_path):
    folder = trees.dtd(tmp_path)
    (folder / "labels" / "val1.txt").unlink()
    os.mkfifo(folder / "labels" / "val1.txt")
    with pytest.raises(UserError, match=r"DTD is incomplete: .*val1\.txt is missing"):
        dtd(folder)


def overwrite(file, old, new):
    def change(folder):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return change


def flowers_label(folder):
    savemat(folder / "imagelabels.mat", {"labels": np.full((1, 18), 103)})


def flowers_image(folder):
    savemat(folder / "imagelabels.mat", {"labels": np.ones((1, 17))})


def cars_without_labels(folder):
    rows = np.array([(1, "00001.jpg")], dtype=[("bbox_x1", object), ("fname", object)])
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": rows})


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("flowers", flowers_label, r"imagelabels\.mat holds the class number 103 where 1 to 102 are expected"),
        ("flowers", flowers_image, r"setid\.mat names images \d+ to 18 where imagelabels\.mat labels 17"),
        ("cars", cars_without_labels, "lacks the fields 'fname' and 'class' in its annotations"),
        ("aircraft", overwrite("variants.txt", "A300B4\n", ""), "names the class 'A300B4', which variants.txt lacks"),
        ("pets", overwrite("annotations/test.txt", " 3 1 1", " 38 1 1"), "the class number 38 where 1 to 37 are"),
        ("pets", overwrite("annotations/test.txt", " 3 1 1", " " + "9" * 5000 + " 1 1"), "class number 9{20} where"),
        ("pets", overwrite("annotations/test.txt", " 3 1 1", " 3 1"), "has the line 'Bengal_100 3 1' where 4 words"),
        ("cub200", overwrite("image_class_labels.txt", "5 1", "5 0"), "holds the class number 0 where 1 to 2 are"),
        ("cub200", overwrite("image_class_labels.txt", "20 2\n", ""), "list different images"),
        ("cub200", overwrite("classes.txt", "2 002", "3 002"), "does not count its classes from 1"),
        ("voc2007", overwrite("ImageSets/Main/cat_val.txt", "-1", "7"), r"cat_val\.txt holds the value 7 where 1, 0"),
        ("voc2007", overwrite("ImageSets/Main/cat_val.txt", "100001", "9"), "does not label the image 100001"),
        ("tinyimagenet", overwrite("val/val_annotations.txt", "\tn0144", "\tn9944"), "names no class of wnids.txt"),
    ],
)  # fmt: skip
def test_labels_out_of_range_and_lists_that_contradict_each_other(name, change, sentence, tmp_path):
    tree, read, _ = READERS[name]
    folder = tree(tmp_path)
    read(folder)
    change(folder)
    with pytest.raises(UserError, match=sentence):
        read(folder)


@pytest.mark.parametrize(
    ("name", "images"), [("voc2007", "JPEGImages"), ("pets", "images"), ("flowers", "jpg"), ("cars", "cars_test")]
)
def test_lists_without_any_image_on_disk(name, images, tmp_path):
    tree, read, _ = READERS[name]
    folder = tree(tmp_path)
    (folder / images).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"None of the \d+ images that .* lists for \w+ is in .*unpack the set again"):
        read(folder)


def test_caltech_with_nothing_but_its_background(tmp_path):
    folder = published.caltech101(tmp_path, counts=(0, 0))
    with pytest.raises(UserError, match="holds 0 class folders where 101 are expected"):
        class_folders.caltech101(folder)


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


@pytest.mark.parametrize("file", ["/etc/hostname", "../../labels/train1.txt", "banded/" + "a" * 300, "banded/\0"])
def test_a_list_that_names_files_elsewhere_or_that_cannot_be(file, tmp_path):
    folder = trees.dtd(tmp_path)
    listed = folder / "labels" / "train1.txt"
    listed.write_text(listed.read_text() + file + "\n")
    if file.startswith("banded"):
        assert "Not on disk, though DTD's lists name them" in " ".join(dtd(folder).notes)
    else:
        with pytest.raises(UserError, match=rf"DTD's list of images for train in .* names '{file}', outside it"):
            dtd(folder)


def test_a_class_list_that_names_the_whole_disk_is_not_followed(tmp_path):
    folder = published.tinyimagenet(tmp_path)
    wnids = folder / "wnids.txt"
    wnids.write_text(wnids.read_text() + "/\n..\n" + "a" * 300 + "\n")
    assert class_folders.tiny_imagenet(folder).train.classes == ("n01443537", "n02124075")


def test_breeds_of_one_number_and_two_names(tmp_path):
    folder = published.pets(tmp_path)
    listed = folder / "annotations" / "test.txt"
    listed.write_text(listed.read_text().replace("Bengal_", "Bengali_"))
    with pytest.raises(UserError, match=r"for train in .* names the class 'Bengal', which it has none of"):
        lists.pets(folder)


def test_an_annotation_that_is_no_file_and_number(tmp_path):
    folder = published.cars(tmp_path)
    rows = np.array([(7, "a", 3.0)], dtype=[("bbox_x1", object), ("class", object), ("fname", object)])
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": rows})
    with pytest.raises(UserError, match="has an annotation that is no file name and class"):
        matlab.cars(folder)


def test_labels_of_a_food_list_that_are_no_mapping(tmp_path):
    folder = published.food101(tmp_path)
    for content in ("[1]", "3", "[" * 100_000, '{"a": 3}'):
        (folder / "meta" / "test.json").write_text(content)
        with pytest.raises(UserError, match=r"test\.json is damaged"):
            lists.food101(folder)


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
