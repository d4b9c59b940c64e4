"""Omniglot by alphabets, miniImageNet, CIFAR-FS and CIFAR-100's halves: which classes are where."""

import shutil

import numpy as np
import pytest

from bissl_fast.cli import main
from bissl_fast.data.sets.catalogue import load_downstream, load_pretext
from bissl_fast.data.sets.readers import arrays, few_shot, omniglot
from bissl_fast.data.sets.splits import cross_classes, labelled_share
from bissl_fast.errors import UserError
from tests.data import published, trees

WNIDS = {"train": ["n02", "n01"], "val": ["n03"], "test": ["n05", "n04"]}


def mini_by_lists(root, per_class=3):
    folder = root / "miniimagenet"
    for split, wnids in WNIDS.items():
        names = [(f"{wnid}{i:08}.jpg", wnid) for wnid in wnids for i in range(per_class)]
        published.lines(folder / f"{split}.csv", ["filename,label", *(f"{file},{wnid}" for file, wnid in names)])
        for file, wnid in names:
            published.photograph(folder / "images" / file, int(wnid[1:]))
    return folder


def mini_by_folders(root, per_class=3):
    folder = root / "mini-imagenet"
    for split, wnids in WNIDS.items():
        for wnid in wnids:
            for i in range(per_class):
                published.photograph(folder / split / wnid / f"{wnid}{i:08}.jpg", int(wnid[1:]))
    return folder


def cifar_fs(root, per_class=3):
    folder = root / "cifar-fs" / "cifar100"
    for split, wnids in WNIDS.items():
        published.lines(folder / "splits" / "bertinetto" / f"{split}.txt", wnids)
        for wnid in wnids:
            for i in range(per_class):
                trees.save_image(folder / "data" / wnid / f"{i}.png", 40 * int(wnid[1:]), (32, 32))
    return folder


def cifar100(root, n=1000):
    """Classes 5k to 5k + 4 are of superclass 19 - k; red tells the fine class."""
    folder = root / "cifar-100-python"
    fine = np.arange(n) % 100
    pixels = np.repeat(fine.astype(np.uint8)[:, None], 3072, axis=1)
    for name in ("train", "test"):
        trees.dump(
            folder / name,
            {"data": pixels, "fine_labels": fine.tolist(), "coarse_labels": (19 - fine // 5).tolist()},
        )
    names = {
        "fine_label_names": [f"thing{i}" for i in range(100)],
        "coarse_label_names": [f"kind{i}" for i in range(20)],
    }
    trees.dump(folder / "meta", names)
    return folder


def class_of(source):
    return [source.classes[label] for label in source.labels]


@pytest.mark.parametrize(
    ("tree", "read"),
    [(mini_by_lists, few_shot.mini_imagenet), (mini_by_folders, few_shot.mini_imagenet), (cifar_fs, few_shot.cifar_fs)],
)
def test_each_split_has_the_classes_of_its_list_and_labels_number_them_all(tree, read, tmp_path):
    listing = read(tree(tmp_path))
    for split, source in zip(("train", "val", "test"), (listing.train, listing.val, listing.test), strict=True):
        assert set(class_of(source)) == set(WNIDS[split])
        assert source.classes == ("n01", "n02", "n03", "n04", "n05")
        for i, name in enumerate(class_of(source)):
            assert abs(int(source.read(i, 16)[..., 0].mean()) - 40 * int(name[1:])) <= 3  # the image is of its class
    assert "5 of its 100 classes" in listing.notes[0]


@pytest.mark.parametrize(
    ("name", "tree"), [("miniimagenet", mini_by_lists), ("miniimagenet", mini_by_folders), ("cifarfs", cifar_fs)]
)
def test_sets_are_found_and_loaded_as_disjoint(name, tree, tmp_path):
    tree(tmp_path / "data")
    splits = load_downstream(name, tmp_path / "data", 16, tmp_path / "cache", progress=False)
    assert splits.disjoint
    assert (len(splits.train), len(splits.val), len(splits.test)) == (6, 3, 6)
    pretext = load_pretext(name, tmp_path / "data", 16, tmp_path / "cache", progress=False)
    assert np.array_equal(pretext.images, splits.train.images)


def test_an_unreadable_image_does_not_make_the_test_classes_untaught(tmp_path):
    folder = mini_by_folders(tmp_path)
    (folder / "train" / "n01" / "n0100000000.jpg").write_bytes(b"no image")
    splits = load_downstream("miniimagenet", tmp_path, 16, tmp_path / "cache", progress=False)
    assert len(splits.train) == 5
    assert not any("cannot be learned" in note for note in splits.notes)


def test_splits_that_share_a_class_are_refused(tmp_path):
    folder = mini_by_folders(tmp_path)
    shutil.copytree(folder / "train" / "n01", folder / "test" / "n01")
    with pytest.raises(UserError, match="has the class n01 in both train and test"):
        few_shot.mini_imagenet(folder)


def test_a_damaged_list_is_named(tmp_path):
    folder = mini_by_lists(tmp_path)
    published.lines(folder / "val.csv", ["filename,label", "n0300000000.jpg"])
    with pytest.raises(UserError, match=r"val\.csv has the line 'n0300000000\.jpg' where filename,label is expected"):
        few_shot.mini_imagenet(folder)


def zipped(root):
    tree = published.omniglot(root)
    for part in omniglot.PARTS:
        shutil.make_archive(str(root / "zips" / f"images_{part}"), "zip", tree, f"images_{part}")
    return root / "zips"


@pytest.mark.parametrize("read", [published.omniglot, published.omniglot_bits, zipped])
def test_omniglots_background_alphabets_train_and_the_others_test(read, tmp_path):
    folder = read(tmp_path)
    listing = omniglot.omniglot_few_shot(folder)
    background, evaluation = (published.CHARACTERS[part] for part in omniglot.PARTS)
    assert sorted(class_of(listing.train)) == sorted(background * 4)
    assert sorted(class_of(listing.val)) == sorted(background)
    assert class_of(listing.test) == evaluation * 5
    assert omniglot.omniglot_background(folder).count == 15
    drawn = published.drawings(20)[15:]  # the evaluation part's
    for i in range(5):
        image = listing.test.read(i, 105)
        assert np.array_equal(image[..., 0] == 0, drawn[i])  # ink is black
        assert np.array_equal(image[..., 0] == 255, ~drawn[i])  # on white


def test_a_turned_character_is_another_one_and_test_characters_are_never_turned(tmp_path):
    folder = published.omniglot(tmp_path)
    plain, turned = omniglot.omniglot_few_shot(folder), omniglot.omniglot_few_shot(folder, turned=True)
    assert turned.test.count == plain.test.count
    assert class_of(turned.test) == class_of(plain.test)
    assert turned.train.count + turned.val.count == 4 * (plain.train.count + plain.val.count)
    assert len(set(class_of(turned.train))) == 4 * len(set(class_of(plain.train))) == 12
    images = omniglot.omniglot_background(folder, turned=True)
    for turn in range(4):
        expected = np.rot90(images.read(2, 105), turn)
        assert np.array_equal(images.read(turn * 15 + 2, 105), expected)
    assert not np.array_equal(images.read(2, 105), images.read(17, 105))


@pytest.mark.parametrize(("part", "missing"), [("background", "evaluation"), ("evaluation", "background")])
def test_half_of_omniglot_makes_no_few_shot_set(part, missing, tmp_path):
    folder = published.omniglot(tmp_path)
    shutil.rmtree(folder / f"images_{missing}")
    with pytest.raises(UserError, match=f"lacks its {missing} alphabets"):
        omniglot.omniglot_few_shot(folder)
    assert omniglot.omniglot(folder).train.count > 0


def test_archives_that_are_none_are_named(tmp_path):
    (tmp_path / "images_background.zip").write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"images_background\.zip cannot be read"):
        omniglot.omniglot(tmp_path)


def test_real_omniglot_has_964_characters_to_train_and_659_to_test(real_data):
    listing = omniglot.omniglot_few_shot(real_data)
    assert listing.notes == ()
    assert len(set(listing.train.labels)) == 964
    assert np.bincount(listing.test.labels)[964:].tolist() == [20] * 659
    assert {name.split("/")[0] for name in class_of(listing.train)}.isdisjoint(
        name.split("/")[0] for name in class_of(listing.test)
    )
    assert omniglot.omniglot_background(real_data).count == 19280


def test_superclasses_label_the_same_images_as_classes_do(tmp_path):
    folder = cifar100(tmp_path)
    fine, coarse = arrays.cifar100(folder), arrays.cifar100_coarse(folder)
    for ours, theirs in ((coarse.train, fine.train), (coarse.val, fine.val), (coarse.test, fine.test)):
        assert np.array_equal(ours.labels, 19 - theirs.labels // 5)
        assert ours.classes == tuple(f"kind{i}" for i in range(20))
        assert all(np.array_equal(ours.read(i, 32), theirs.read(i, 32)) for i in range(5))


def test_a_cross_class_split_halves_every_superclass(tmp_path):
    folder = cifar100(tmp_path)
    listing, pretext = arrays.cifar100_cross(folder), arrays.cifar100_cross_pretext(folder)
    seen = {int(pretext.read(i, 32)[0, 0, 0]) for i in range(pretext.count)}
    tested = {int(name.removeprefix("thing")) for name in listing.test.classes}
    assert seen | tested == set(range(100))
    assert seen & tested == set()
    assert len(seen) == 50
    per_superclass = np.bincount([label // 5 for label in seen], minlength=20)
    assert np.bincount(per_superclass).tolist() == [0, 0, 10, 10]
    assert pretext.count == 500
    assert pretext.labels is None
    assert (listing.train.count, listing.val.count, listing.test.count) == (400, 100, 500)
    for source in (listing.train, listing.val, listing.test):
        for i in range(0, source.count, 7):
            assert f"thing{source.read(i, 32)[0, 0, 0]}" == source.classes[source.labels[i]]


def test_the_cross_classes_never_change():
    chosen = np.flatnonzero(cross_classes(np.arange(100) // 5))
    assert chosen.tolist()[:10] == [1, 4, 5, 6, 7, 11, 12, 13, 18, 19]


def test_superclasses_that_contradict_themselves_are_refused(tmp_path):
    folder = cifar100(tmp_path)
    fine = np.arange(1000) % 100
    content = {"data": np.zeros((1000, 3072), np.uint8), "fine_labels": fine.tolist()}
    trees.dump(folder / "train", {**content, "coarse_labels": [i % 20 for i in range(999)] + [3]})
    with pytest.raises(UserError, match="gives images of one class several superclasses"):
        arrays.cifar100_coarse(folder)


def test_the_cross_class_sets_images_of_the_pretext_task_are_its_own(tmp_path):
    cifar100(tmp_path)
    images = load_pretext("cifar100-cross", tmp_path, 32, tmp_path / "cache", progress=False)
    splits = load_downstream("cifar100-cross", tmp_path, 32, tmp_path / "cache", progress=False)
    assert len(images) == 500
    assert not set(images.images[:, 0, 0, 0].tolist()) & set(splits.train.images[:, 0, 0, 0].tolist())
    assert not splits.disjoint  # of training and test images of the labelled half


def test_verify_counts_the_classes_of_each_split(tmp_path, capsys):
    mini_by_folders(tmp_path)
    assert main(["data", "verify", "miniimagenet", "--data-root", str(tmp_path)]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "miniimagenet/" in line]
    assert [[cell.strip() for cell in row[3:]] for row in rows[:3]] == [
        ["2", "3 to 3"],
        ["1", "3 to 3"],
        ["2", "3 to 3"],
    ]


def test_a_share_of_the_labels_is_of_every_class_and_grows_with_itself():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [500, 40, 3]))
    small, large = (labelled_share(labels, share, 7) for share in (0.01, 0.1))
    assert np.bincount(labels[small]).tolist() == [5, 1, 1]
    assert np.bincount(labels[large]).tolist() == [50, 4, 1]
    assert set(small) <= set(large)
    assert np.array_equal(small, labelled_share(labels, 0.01, 7))
    assert not np.array_equal(small, labelled_share(labels, 0.01, 8))
