"""The paper's photograph sets, Tiny-ImageNet and Omniglot: the label of every image, the size of every split."""

import numpy as np
import pytest
from torchvision import datasets

from bissl_fast.data.sets import cache
from bissl_fast.data.sets.catalogue import load_downstream, load_pretext
from bissl_fast.data.sets.dataset import count_by_class
from bissl_fast.data.sets.readers import class_folders, lists, matlab, omniglot
from bissl_fast.data.sets.readers.voc import CLASSES, voc2007
from tests.data import published, trees
from tests.data.sets.test_readers_read_the_real_formats import extract, sizes


def parts(listing):
    return listing.train, listing.val, listing.test


def names(listing):
    return [part.describe(i) for part in parts(listing) for i in range(part.count)]


def assert_labels_are_those_of_the_images(listing):
    for part in parts(listing):
        red = [part.read(i, 8)[4, 4, 0] for i in range(part.count)]
        assert np.array_equal(np.rint(np.array(red) / published.STEP), part.labels), part.name
    assert len(set(names(listing))) == sum(sizes(listing))


@pytest.mark.parametrize(
    ("tree", "read", "expected", "note"),
    [
        (published.flowers, matlab.flowers, (6, 6, 6), "Flowers-102 is here with 3 of its 102 classes: pink primrose"),
        (
            published.cars,
            matlab.cars,
            (12, 3, 15),
            "Stanford Cars is here with 3 of its 196 classes: AM General Hummer",
        ),
        (published.aircraft, lists.aircraft, (6, 6, 6), "3 of its 100 classes: 707-320, Cessna 172, A300B4."),
        (published.pets, lists.pets, (12, 3, 15), "3 of its 37 classes: Abyssinian, american_bulldog, Bengal."),
        (published.food101, lists.food101, (12, 3, 15), "3 of its 101 classes: apple_pie, sushi, waffles."),
        (
            published.sun397,
            lists.sun397,
            (12, 3, 15),
            "3 of its 397 classes: abbey, apartment_building/outdoor, bakery/shop",
        ),
        (published.cub200, lists.cub200, (8, 2, 10), "2 of its 200 classes: 001.Black_footed_Albatross, 002.Laysan"),
        (published.caltech101, class_folders.caltech101, (48, 12, 11), "2 of its 101 classes: Faces, accordion."),
        (
            published.tinyimagenet,
            class_folders.tiny_imagenet,
            (8, 2, 10),
            "2 of its 200 classes: n01443537, n02124075.",
        ),
        (published.tiny_imagenet_by_class, class_folders.tiny_imagenet, (8, 2, 10), "2 of its 200 classes"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_splits_labels_and_notes(tree, read, expected, note, tmp_path):
    listing = read(tree(tmp_path))
    assert sizes(listing) == expected
    assert_labels_are_those_of_the_images(listing)
    assert len(listing.notes) == 1
    assert note in listing.notes[0]
    for part in parts(listing):  # every tree is balanced, and stays so
        per_class = count_by_class(part.labels, len(part.classes))
        assert per_class.min() > 0
        assert per_class.min() == per_class.max() or read is class_folders.caltech101


@pytest.mark.parametrize(
    ("tree", "read", "peer"),
    [
        (published.cars, matlab.cars, lambda root: datasets.StanfordCars(root, split="test")),
        (published.aircraft, lists.aircraft, lambda root: datasets.FGVCAircraft(root, split="test")),
        (published.pets, lists.pets, lambda root: datasets.OxfordIIITPet(root, split="test")),
        (published.food101, lists.food101, lambda root: datasets.Food101(root, split="test")),
    ],
    ids=["cars", "aircraft", "pets", "food101"],
)
def test_the_test_split_is_torchvisions_image_for_image(tree, read, peer, tmp_path):
    test = read(tree(tmp_path)).test
    theirs = peer(tmp_path)
    assert sorted(test.labels.tolist()) == sorted(label for _, label in theirs)
    if read is not lists.food101:  # which torchvision takes in the order of the file's classes, and this reader sorted
        assert test.labels.tolist() == [label for _, label in theirs]


def test_flowers_keep_the_order_of_their_numbers(tmp_path):
    listing = matlab.flowers(published.flowers(tmp_path))
    assert [listing.train.describe(i) for i in range(2)] == ["image_00018.jpg", "image_00017.jpg"]


def test_an_absent_image_is_left_out_and_named(tmp_path):
    folder = published.pets(tmp_path)
    (folder / "images" / "Bengal_101.jpg").unlink()
    listing = lists.pets(folder)
    assert listing.test.count == 14
    assert listing.notes[1] == (
        "Not on disk, though Oxford-IIIT Pets's lists name them: 1 of its images (Bengal_101.jpg)."
    )


def test_sun397_does_not_depend_on_the_order_of_its_lists(tmp_path):
    folder = published.sun397(tmp_path)
    before = lists.sun397(folder)
    path = folder / "Partitions" / "Training_01.txt"
    path.write_text("\n".join(sorted(path.read_text().split())))
    assert names(lists.sun397(folder)) == names(before)


def test_caltech_trains_on_thirty_per_class_without_its_background(tmp_path):
    listing = class_folders.caltech101(published.caltech101(tmp_path))
    trained = np.concatenate([listing.train.labels, listing.val.labels])
    assert np.bincount(trained).tolist() == [30, 30]
    assert np.bincount(listing.test.labels).tolist() == [1, 10]
    assert not any("BACKGROUND" in name for name in names(listing))


def test_tiny_imagenet_is_never_enlarged(tmp_path):
    train = class_folders.tiny_imagenet(published.tinyimagenet(tmp_path)).train
    assert train.read(0, 112).shape == (64, 64, 3)
    assert train.read(0, 32).shape == (32, 32, 3)


def test_omniglot_is_the_same_from_drawings_and_from_bits(tmp_path):
    tree, bits = (read(tmp_path) for read in (published.omniglot, published.omniglot_bits))
    pictures, arrays = omniglot.omniglot(tree), omniglot.omniglot(bits)
    assert sizes(pictures) == sizes(arrays) == (12, 4, 4)
    assert (
        pictures.train.classes
        == arrays.train.classes
        == tuple(c for part in published.CHARACTERS.values() for c in part)
    )
    for ours, theirs in zip(parts(pictures), parts(arrays), strict=True):
        assert ours.labels.tolist() == theirs.labels.tolist()
        for i in range(ours.count):
            assert np.array_equal(ours.read(i, 112), theirs.read(i, 112))
    first = arrays.train.read(0, 112)
    assert first.shape == (105, 105, 3)
    assert first[-1, -1].tolist() == [0, 0, 0]  # ink
    assert 0.85 < (first == 255).mean() < 0.95
    assert "4 of its 1623 characters" in arrays.notes[0]


def test_voc_targets_are_the_values_of_its_files(tmp_path):
    folder = published.voc2007(tmp_path, CLASSES)
    (folder / "JPEGImages" / "000001.jpg").unlink()
    listing = voc2007(folder)
    assert sizes(listing) == (3, 4, 4)
    expected = np.full((4, 20), -1, dtype=np.int8)
    expected[range(4), range(4)] = 1
    expected[range(4), range(1, 5)] = 0
    assert listing.test.labels.dtype == np.int8
    assert np.array_equal(listing.test.labels, expected)
    assert np.array_equal(listing.train.labels, expected[[0, 2, 3]])
    assert listing.notes == ("Not on disk, though VOC2007's lists name them: 1 of its images (000001.jpg).",)


def test_multi_label_targets_go_through_the_cache(tmp_path):
    folder = published.voc2007(tmp_path, CLASSES)
    for _ in ("built", "opened again"):
        test = load_downstream("voc2007", tmp_path, 16, tmp_path / "cache", progress=False).test
        assert np.array_equal(test.labels, voc2007(folder).test.labels)
        assert test.labels.dtype == np.int8
        assert count_by_class(test.labels, 20).tolist() == [1, 1, 1, 1] + [0] * 16
    assert test.subset([2, 0], "two").labels[:, 0].tolist() == [-1, 1]
    assert load_pretext("voc2007", tmp_path, 16, tmp_path / "cache", progress=False).labels is None
    assert test.content_hash == cache.content_hash(test.images, test.labels, test.classes)


def test_real_omniglot_has_1623_characters_of_twenty_drawings(real_data):
    listing = omniglot.omniglot(real_data)
    assert sizes(listing) == (21099, 4869, 6492)
    assert listing.notes == ()
    assert listing.train.classes[0] == "Alphabet_of_the_Magi/character01"
    assert np.bincount(listing.test.labels).tolist() == [4] * 1623
    ink = 1 - np.mean([listing.test.read(i, 105).mean() for i in range(0, 6000, 100)]) / 255
    assert 0.03 < ink < 0.2  # strokes on an empty ground


def test_real_tiny_imagenet_is_read_with_its_labels(real_data, tmp_path):
    wnids = ("n01443537", "n02124075")

    def wanted(name):
        return name.endswith("wnids.txt") or any(f"/{wnid}/" in name for wnid in wnids)

    extract(real_data / "tiny_imagenet_train100_val.tar.gz", tmp_path, wanted, 1 + 2 * 150)
    listing = class_folders.tiny_imagenet(tmp_path / "tin")
    assert sizes(listing) == (160, 40, 100)
    assert listing.train.classes == wnids
    for i in range(listing.train.count):
        assert listing.train.describe(i).split("/")[1] == wnids[listing.train.labels[i]]
    assert np.bincount(listing.test.labels).tolist() == [50, 50]
    images = np.stack([listing.test.read(i, 112) for i in range(100)])
    assert images.shape == (100, 64, 64, 3)
    assert images.reshape(100, -1).std(axis=1).min() > 5


def test_a_name_that_is_not_utf8_is_read_and_printable(tmp_path):
    root = trees.class_folders(tmp_path / "set", {"a": 5, "b": 5})
    try:
        (root / "a" / "000.png").rename(root / "a" / b"caf\xe9.png".decode("utf-8", "surrogateescape"))
        (root / "b").rename(root / b"b\xff".decode("utf-8", "surrogateescape"))
        (root / "a" / b"\xfe.png".decode("utf-8", "surrogateescape")).write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    splits = load_downstream(f"folder:{root}", None, 16, tmp_path / "cache", progress=False)
    assert sum(map(len, (splits.train, splits.val, splits.test))) == 10
    assert splits.train.classes == ("a", "b\ufffd")
    assert "a/\ufffd.png: cannot identify image file '\ufffd.png'" in splits.notes[-1]
    "".join(splits.notes).encode()  # what the terminal will do
