"""A user's folder whose classes or splits cannot be told ends in a sentence that says what is expected."""

import pytest

from bissl_fast.data.sets.readers.folder import image_folder, loose_images
from bissl_fast.errors import UserError
from tests.data import trees


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
