"""Of a user's folder nothing is left out, taken twice or taken for a class without a word."""

import os
import unicodedata

import pytest

from bissl_fast.data.sets.readers.folder import image_folder, loose_images
from bissl_fast.errors import UserError
from tests.data import trees


def sizes(listing):
    return listing.train.count, listing.val.count, listing.test.count


def names(source):
    return [source.describe(i) for i in range(source.count)]


def note(notes, part):
    (found,) = [sentence for sentence in notes if part in sentence]
    return found


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("Train", "Test"),
        ("TRAIN", "VALID"),
        ("train_set", "test_set"),
        ("training-set", "dev-set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("trainset", "testset"),
        ("train2017", "val2017"),
        ("train_images", "test_images"),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, train, test):
    trees.class_folders(tmp_path / train, {"a": 5, "b": 5})
    trees.class_folders(tmp_path / test, {"a": 3, "b": 3})
    listing = image_folder(tmp_path)
    assert sizes(listing) == (8, 2, 6)
    assert listing.train.classes == ("a", "b")


@pytest.mark.parametrize(
    "name", ["training_shoes", "test_pattern", "valley", "settle", "data", "train_station", "test_tube"]
)
def test_classes_that_only_begin_like_a_split_stay_classes(tmp_path, name):
    listing = image_folder(trees.class_folders(tmp_path, {"a": 5, name: 5}))
    assert listing.train.classes == tuple(sorted(("a", name)))


def test_a_class_of_trains_is_a_class_and_said(tmp_path):
    listing = image_folder(trees.class_folders(tmp_path, {"aeroplane": 5, "train": 5}))
    assert listing.train.classes == ("aeroplane", "train")
    assert "train/ is read as a class, though it sounds like a split." in listing.notes


def test_what_lies_beside_splits_and_classes_is_named(tmp_path):
    for split in ("train", "test"):
        trees.class_folders(tmp_path / split, {"a": 5, "b": 5})
    trees.save_image(tmp_path / "pred" / "1.png")
    trees.save_image(tmp_path / "train" / "2.png")
    notes = image_folder(tmp_path).notes
    assert note(notes, "beside the splits").startswith(f"1 of what lies in {tmp_path} left out")
    assert "train/2.png" in note(notes, "beside the class folders")


def run_folder(folder):
    trees.save_image(folder / "figures" / "curve.png")
    for name in ("config.yaml", "environment.json"):
        (folder / name).write_text("")


def test_a_run_inside_the_folder_is_neither_class_nor_image(tmp_path):
    trees.class_folders(tmp_path, {"a": 10, "b": 10})
    before = image_folder(tmp_path).train.identity, loose_images(tmp_path).identity
    run_folder(tmp_path / "runs" / "first")
    listing, loose = image_folder(tmp_path), loose_images(tmp_path)
    assert (listing.train.identity, loose.identity) == before
    for notes in (listing.notes, loose.notes):
        assert "runs/first" in note(notes, "they are runs of bissl-fast")


def test_a_link_to_a_parent_is_not_followed(tmp_path):
    for split in ("train", "test"):
        trees.class_folders(tmp_path / split, {"a": 5, "b": 5})
    before = sizes(image_folder(tmp_path)), loose_images(tmp_path).count
    (tmp_path / "train" / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "test" / "a" / "up").symlink_to(tmp_path / "test")
    listing, loose = image_folder(tmp_path), loose_images(tmp_path)
    assert (sizes(listing), loose.count) == before == ((8, 2, 10), 20)
    for notes in (listing.notes, loose.notes):
        assert note(notes, "links back to a folder that holds them").startswith("2 of what lies in")


def test_links_between_classes_and_splits_read_nothing_twice(tmp_path):
    for split in ("train", "test"):
        trees.class_folders(tmp_path / split, {"a": 5, "b": 5})
    (tmp_path / "train" / "a" / "more").symlink_to(tmp_path / "train" / "b")
    (tmp_path / "train" / "b" / "leak").symlink_to(tmp_path / "test" / "b")
    (tmp_path / "train" / "b" / "leak.png").symlink_to(tmp_path / "test" / "b" / "001.png")
    listing = image_folder(tmp_path)
    assert sizes(listing) == (8, 2, 10)
    assert note(listing.notes, "read in its own place").startswith("3 of")


def test_a_split_that_is_a_link_to_another_gives_no_file_twice(tmp_path):
    for split in ("train", "test"):
        trees.class_folders(tmp_path / split, {"a": 5, "b": 5})
    (tmp_path / "val").symlink_to(tmp_path / "test")
    listing = image_folder(tmp_path)
    assert sizes(listing) == (8, 2, 10)
    assert "a fifth of train/ is held out" in listing.notes[0]


def test_classes_that_are_links_to_a_folder_elsewhere_are_read_once(tmp_path):
    pool = trees.class_folders(tmp_path / "pool", {"a": 5, "b": 5, "c": 5})
    (tmp_path / "set").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "set" / name).symlink_to(pool / name)
    (tmp_path / "set" / "d").symlink_to(pool / "a")
    listing = image_folder(tmp_path / "set")
    assert sum(sizes(listing)) == 15
    assert "d" in note(listing.notes, "the same files or folders as others")


def test_hard_links_are_one_image_and_the_test_keeps_it(tmp_path):
    for split in ("train", "test"):
        trees.class_folders(tmp_path / split, {"a": 5, "b": 5})
    os.link(tmp_path / "test" / "a" / "000.png", tmp_path / "train" / "a" / "leak.png")
    listing = image_folder(tmp_path)
    assert sizes(listing) == (8, 2, 10)
    assert "train/a/leak.png" in note(listing.notes, "the same files")


@pytest.mark.parametrize("ending", [".jfif", ".JPE", ".avif"])
def test_every_ending_that_can_be_read_is_taken(tmp_path, ending):
    trees.class_folders(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "000.png").rename(tmp_path / "a" / f"000{ending}")
    assert sum(sizes(image_folder(tmp_path))) == 10


def test_endings_that_cannot_be_read_are_counted_and_named(tmp_path):
    trees.class_folders(tmp_path, {"a": 5, "b": 5})
    for name in ("IMG_1.HEIC", "IMG_2", "raw.dng"):
        (tmp_path / "a" / name).write_bytes(b"")
    for notes in (image_folder(tmp_path).notes, loose_images(tmp_path).notes):
        sentence = note(notes, "their names do not end")
        assert sentence.startswith("1 of what lies in")
        assert sentence.endswith("a/IMG_2.")
        assert note(notes, "save them as JPEG or PNG").endswith("a/IMG_1.HEIC, a/raw.dng.")


def test_the_sentence_on_a_folder_without_images_names_what_it_holds(tmp_path):
    (tmp_path / "IMG_1.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"No image is in .*expected files ending in .*IMG_1\.heic"):
        loose_images(tmp_path)


def test_pipes_broken_links_and_circles_are_left_out_unopened(tmp_path):
    trees.class_folders(tmp_path, {"a": 5, "b": 5})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "a" / "circle.png").symlink_to("circle.png")
    listing = image_folder(tmp_path)
    assert sum(sizes(listing)) == 10
    assert note(listing.notes, "pipes, devices or broken links").startswith("3 of")


def test_class_names_in_either_unicode_form_are_one_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    trees.class_folders(tmp_path / "train", {composed: 5, "b": 5})
    trees.class_folders(tmp_path / "test", {decomposed: 3, "b": 3})
    listing = image_folder(tmp_path)
    assert listing.train.classes == ("b", composed)
    assert listing.test.labels.tolist() == [0] * 3 + [1] * 3


def test_an_empty_class_folder_is_left_out_and_named(tmp_path):
    for split, counts in (("train", {"a": 5, "b": 5, "c": 0}), ("test", {"a": 3, "b": 0})):
        trees.class_folders(tmp_path / split, counts)
    listing = image_folder(tmp_path)
    assert listing.train.classes == ("a", "b")
    assert sizes(listing) == (8, 2, 3)
    assert note(listing.notes, "hold no image").endswith("test/b, train/c.")
