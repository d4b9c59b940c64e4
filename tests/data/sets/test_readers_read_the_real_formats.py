"""Every reader reads a small tree in the real format, and the real files where they are at hand."""

import tarfile

import numpy as np
import pytest

from bissl_fast.data.sets.readers import arrays
from bissl_fast.data.sets.readers.folder import image_folder, loose_images
from bissl_fast.data.sets.readers.lists import dtd
from tests.data import trees


def pixels(source, size=112):
    return np.stack([source.read(i, size) for i in range(source.count)])


def sizes(listing):
    return listing.train.count, listing.val.count, listing.test.count


def test_stl10_swaps_the_axes_and_counts_labels_from_zero(tmp_path):
    folder = trees.stl10(tmp_path)
    listing = arrays.stl10(folder)
    assert sizes(listing) == (10, 10, 20)  # two images per class: one of each validates
    images = pixels(listing.test)
    assert images.shape == (20, 96, 96, 3)
    assert (images[:, 0] == 255).all()
    assert images[:, 1, 0, 0].tolist() == list(range(20))
    assert listing.test.labels.tolist() == [*range(10), *range(10)]
    assert listing.test.classes[3] == "thing3"


def test_stl10_has_an_unlabelled_split(tmp_path):
    source = arrays.stl10_unlabelled(trees.stl10(tmp_path))
    assert source.labels is None
    assert pixels(source, 32).shape == (40, 32, 32, 3)


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_reads_idx_plain_or_zipped(tmp_path, zipped):
    listing = arrays.fashion_mnist(trees.fashion_mnist(tmp_path / "raw", zipped=zipped))
    assert sizes(listing) == (10, 10, 20)
    images = pixels(listing.test)
    assert images.shape == (20, 28, 28, 3)  # gray to RGB, and never enlarged
    assert images[:, 5, 5].tolist() == [[i] * 3 for i in range(20)]


@pytest.mark.parametrize(
    ("tree", "read", "n"), [(trees.cifar10, arrays.cifar10, 100), (trees.cifar100, arrays.cifar100, 200)]
)
def test_cifar_reads_pickles_channel_by_channel(tmp_path, tree, read, n):
    listing = read(tree(tmp_path))
    assert listing.train.count + listing.val.count == n
    images = pixels(listing.test)
    assert images.shape[1:] == (32, 32, 3)
    assert images[5, 9, 9].tolist() == [5, 6, 7]
    assert listing.test.labels[:12].tolist() == [i % len(listing.test.classes) for i in range(12)]
    assert listing.test.classes[7] == "thing7"


def test_dtd_uses_split_1_and_says_what_is_partial(tmp_path):
    folder = trees.dtd(tmp_path)
    (folder / "images" / "dotted" / "dotted_0003.jpg").unlink()
    listing = dtd(folder)
    assert sizes(listing) == (4, 3, 4)
    assert listing.val.labels.tolist() == [0, 0, 1]
    assert pixels(listing.train, 24).shape == (4, 24, 24, 3)
    assert listing.notes == (
        "DTD is here with 2 of its 47 classes: banded, dotted.",
        "Not on disk, though DTD's lists name them: 1 of its images (dotted/dotted_0003.jpg).",
    )


def test_class_folders_are_split_stratified(tmp_path):
    listing = image_folder(trees.class_folders(tmp_path / "set", {"a": 25, "b": 50}))
    assert sizes(listing) == (48, 12, 15)
    assert [np.bincount(s.labels).tolist() for s in (listing.train, listing.val, listing.test)] == [
        [16, 32],
        [4, 8],
        [5, 10],
    ]
    names = [s.describe(i) for s in (listing.train, listing.val, listing.test) for i in range(s.count)]
    assert len(set(names)) == 75
    assert "has no splits of its own" in listing.notes[0]


def test_own_splits_of_a_folder_are_used(tmp_path):
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        trees.class_folders(tmp_path / split, {"a": count, "b": count})
    listing = image_folder(tmp_path)
    assert sizes(listing) == (10, 4, 6)
    assert listing.notes == ()


@pytest.mark.parametrize(("present", "expected"), [("test", (8, 2, 6)), ("val", (8, 2, 6))])
def test_a_missing_val_or_test_folder_is_made_up_for_and_said(tmp_path, present, expected):
    for split, count in (("train", 5), (present, 3)):
        trees.class_folders(tmp_path / split, {"a": count, "b": count})
    listing = image_folder(tmp_path)
    assert sizes(listing) == expected
    assert "a fifth of train/ is held out for validation" in listing.notes[0]
    assert ("val/ serves as the test split" in listing.notes[0]) == (present == "val")


def test_one_image_classes_stay_in_training_and_a_note_says_so(tmp_path):
    listing = image_folder(trees.class_folders(tmp_path / "set", {"a": 10, "lonely": 1}))
    assert (listing.train.labels == 1).sum() == 1
    assert any("lonely" in note and "stays in training" in note for note in listing.notes)


def test_loose_images_are_found_at_any_depth_in_sorted_order(tmp_path):
    for name in ("b/z.PNG", "a/deep/x.jpg", "c.png", ".hidden/y.png", "._d.jpg"):
        trees.save_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = loose_images(tmp_path)
    assert [source.describe(i) for i in range(source.count)] == ["a/deep/x.jpg", "b/z.PNG", "c.png"]
    assert source.labels is None


def test_identity_follows_the_files(tmp_path):
    root = trees.class_folders(tmp_path / "set", {"a": 5, "b": 5})
    before = image_folder(root)
    assert before.train.identity == image_folder(root).train.identity
    assert len({before.train.identity, before.val.identity, before.test.identity}) == 3
    trees.save_image(root / "a" / "000.png", size=(50, 50))
    assert before.train.identity != image_folder(root).train.identity


def extract(archive, folder, wanted, limit):
    """The first `limit` members whose name is wanted."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and wanted(member.name):
                tar.extract(member, folder, filter="data")
                limit -= 1
                if limit == 0:
                    return


def test_real_fashion_mnist_has_the_authors_sizes(real_data):
    listing = arrays.fashion_mnist(real_data / "fashion-mnist")
    assert sizes(listing) == (48000, 12000, 10000)
    assert np.bincount(listing.val.labels).tolist() == [1200] * 10
    mean = np.mean([listing.test.read(i, 28).mean() for i in range(500)])
    assert 65 < mean < 80  # the training mean is 72.9


def test_real_dtd_photographs_are_read_as_a_partial_tree(real_data, tmp_path):
    def wanted(name):
        return "/labels/" in name or "/images/banded/" in name or "/images/blotchy/" in name

    extract(real_data / "dtd_10classes_s128.tar.gz", tmp_path, wanted, 3 + 2 * 120)
    listing = dtd(tmp_path / "dtd_10classes_s128" / "dtd" / "dtd")
    assert sizes(listing) == (80, 80, 80)
    assert listing.train.classes == ("banded", "blotchy")
    assert "2 of its 47 classes" in listing.notes[0]
    image = listing.test.read(3, 64)
    assert image.shape == (64, 64, 3)
    assert image.std() > 10


def test_real_tiny_imagenet_images_are_read_unlabelled_with_the_gray_ones(real_data, tmp_path):
    archive = real_data / "tiny_imagenet_train100_val.tar.gz"
    extract(archive, tmp_path, lambda name: name.startswith("tin/train/"), 150)
    source = loose_images(tmp_path)
    images = pixels(source, 64)
    assert images.shape == (150, 64, 64, 3)
    assert images.reshape(150, -1).std(axis=1).min() > 5
