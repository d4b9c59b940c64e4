"""Lists of published sets that are damaged, or contradict each other or the disk, end in a sentence."""

import os

import numpy as np
import pytest
from scipy.io import savemat

from bissl_fast.data.sets.readers import class_folders, lists, matlab
from bissl_fast.data.sets.readers.lists import dtd
from bissl_fast.data.sets.readers.voc import CLASSES, voc2007
from bissl_fast.errors import UserError
from tests.data import published, trees


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
