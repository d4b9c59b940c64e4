"""A set is found by name and place, or a sentence says how to get it; nothing is replaced silently."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bissl_fast.data.sets import textures
from bissl_fast.data.sets.catalogue import download, load_downstream, load_pretext, notes_of, shortfall
from bissl_fast.data.sets.entries import ENTRIES
from bissl_fast.data.sets.readers.folder import image_folder
from bissl_fast.errors import UserError
from bissl_fast.methods.presets import TABLE_2_BASELINE
from tests.data import published, trees


def downstream(spec, root, cache, size=16):
    return load_downstream(spec, root, size, cache, progress=False)


def pretext(spec, root, cache, size=16):
    return load_pretext(spec, root, size, cache, progress=False)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cifar-10", r"There is no data set 'cifar-10'\. Did you mean 'cifar10'\? Known are textures, stl10, flowers"),
        ("DTD", "Did you mean 'dtd'"),
        ("Flowers-102", "Did you mean 'flowers'"),
        ("OxfordIIITPet", "Did you mean 'pets'"),
        ("qqqqqq", r"There is no data set 'qqqqqq'\. Known are"),
        ("folder:", r"lacks its path: write it as folder:PATH"),
    ],
)
def test_an_unknown_set_names_the_known_and_the_closest(name, sentence, tmp_path):
    for load in (downstream, pretext):
        with pytest.raises(UserError, match=sentence):
            load(name, tmp_path, tmp_path)


def test_a_path_without_its_prefix_is_understood(tmp_path):
    with pytest.raises(UserError, match=f"Did you mean 'folder:{tmp_path}'"):
        downstream(str(tmp_path), None, tmp_path)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if not e.embedded], ids=lambda e: e.name)
def test_a_missing_set_names_folder_command_and_alternative(entry, tmp_path):
    with pytest.raises(UserError) as error:
        downstream(entry.name, tmp_path, tmp_path)
    for part in (
        f"Expected is {tmp_path}/{entry.folders[0]}",
        f"`bissl-fast data prepare {entry.name} --data-root {tmp_path}`"
        if entry.downloads
        else f"{entry.undownloadable}, so put the files there by hand",
        "`--dataset textures`",
    ):
        assert part in str(error.value)
    with pytest.raises(UserError, match="no --data-root was given"):
        pretext(entry.name, None, tmp_path)


@pytest.mark.parametrize(
    ("name", "tree"),
    [(tree.__name__, tree) for tree in (trees.stl10, trees.cifar10, trees.cifar100, trees.dtd, *published.TREES)],
)
def test_a_set_is_found_under_its_root_or_given_itself(name, tree, tmp_path):
    folder = tree(tmp_path / "data")
    below, itself = (downstream(name, root, tmp_path / "cache") for root in (tmp_path / "data", folder))
    assert below.train.content_hash == itself.train.content_hash
    assert below.train.images.shape[1:] == (16, 16, 3)
    assert below.train.name == f"{name}/train"


@pytest.mark.parametrize("place", ["FashionMNIST/raw", "fashion-mnist", "."])
def test_fashion_mnist_is_found_in_each_usual_place(place, tmp_path):
    trees.fashion_mnist(tmp_path / "root" / place)
    assert len(downstream("fashionmnist", tmp_path / "root", tmp_path / "cache").test) == 20


def test_pretext_images_are_the_unlabelled_split_where_there_is_one(tmp_path):
    trees.stl10(tmp_path)
    images = pretext("stl10", tmp_path, tmp_path / "cache")
    assert (images.name, len(images), images.labels, images.classes) == ("stl10/unlabelled", 40, None, ())


def test_pretext_images_are_else_the_training_images_and_never_val_or_test(tmp_path):
    trees.cifar10(tmp_path)
    images = pretext("cifar10", tmp_path, tmp_path / "cache")
    train = downstream("cifar10", tmp_path, tmp_path / "cache").train
    assert np.array_equal(images.images, train.images)
    assert images.labels is None
    assert images.content_hash != train.content_hash


def test_a_folder_serves_both_purposes_and_names_what_it_leaves_out(tmp_path):
    root = trees.class_folders(tmp_path / "set", {"a": 10, "b": 10})
    (root / "a" / "000.png").write_bytes(b"no image")
    splits = downstream(f"folder:{root}", None, tmp_path / "cache")
    parts = (splits.train, splits.val, splits.test)
    assert sum(map(len, parts)) == 19
    assert any("1 of" in note and "a/000.png: cannot identify" in note for note in splits.notes)
    images = pretext(f"folder:{root}", None, tmp_path / "cache")
    assert len(images) == 19
    assert "1 of 20 images of set/unlabelled could not be read" in notes_of(images)[0]


def test_a_class_of_nothing_readable_is_no_class(tmp_path):
    root = trees.class_folders(tmp_path / "set", {"a": 10, "b": 10, "c": 10})
    for path in (root / "b").iterdir():
        path.write_bytes(b"no image")
    splits = downstream(f"folder:{root}", None, tmp_path / "cache")
    assert splits.train.classes == splits.val.classes == splits.test.classes == ("a", "c")
    assert np.bincount(splits.test.labels).tolist() == [2, 2]
    assert "No image of b can be read: 2 of 3 classes are left." in splits.notes
    assert splits.train.content_hash == downstream(f"folder:{root}", None, tmp_path / "cache").train.content_hash
    for path in (root / "b").iterdir():
        path.write_bytes((root / "a" / path.name).read_bytes())
    assert splits.train.content_hash != downstream(f"folder:{root}", None, tmp_path / "cache").train.content_hash


def test_a_class_without_a_readable_training_image_is_named(tmp_path):
    for split in ("train", "test"):
        trees.class_folders(tmp_path / "set" / split, {"a": 10, "b": 10, "c": 10})
    for path in (tmp_path / "set" / "train" / "b").iterdir():
        path.write_bytes(b"no image")
    splits = downstream(f"folder:{tmp_path / 'set'}", None, tmp_path / "cache")
    assert splits.train.classes == ("a", "b", "c")
    assert "No training image of b can be read: it cannot be learned." in splits.notes


def test_what_was_turned_scaled_or_guessed_is_said_each_time(tmp_path):
    root = trees.class_folders(tmp_path / "set", {"a": 10, "b": 10})
    Image.new("RGBA", (8, 8)).save(root / "a" / "logo.png")
    (root / "a" / "notes.txt").write_text("")
    for _ in ("built", "opened again"):
        splits = downstream(f"folder:{root}", None, tmp_path / "cache")
        loose = notes_of(pretext(f"folder:{root}", None, tmp_path / "cache"))
        for notes in (splits.notes, loose):
            assert any("1 of " in note and "become gray: a/logo.png." in note for note in notes)
            assert any("a/notes.txt" in note for note in notes)


def test_pretext_images_that_are_test_images_are_counted_and_can_be_left_out(tmp_path):
    labelled = trees.class_folders(tmp_path / "photos" / "labelled", {"a": 10, "b": 10})
    listing = image_folder(labelled)
    copies = trees.class_folders(tmp_path / "photos" / "copies", {"x": 0})
    for i in range(2):
        shutil.copy(labelled / listing.test.describe(i), copies / "x" / f"{i}.png")
    specs = (f"folder:{tmp_path / 'photos'}", None, 16, tmp_path / "cache", False, f"folder:{labelled}")
    images = load_pretext(*specs)
    assert len(images) == 22
    assert any("6 of the 22 images of photos/unlabelled are also test images of" in n for n in notes_of(images))
    rest = load_pretext(*specs, exclude_test=True)
    assert len(rest) == 16
    assert any("6 of the 22" in note and "are left out" in note for note in notes_of(rest))
    test = downstream(f"folder:{labelled}", None, tmp_path / "cache").test
    assert not (rest.images[:, None] == test.images[None]).all(axis=(2, 3, 4)).any()


def test_pretext_images_of_another_folder_are_not_mentioned(tmp_path):
    trees.class_folders(tmp_path / "labelled", {"a": 10, "b": 10})
    trees.save_image(tmp_path / "loose" / "1.png", value=199)
    images = load_pretext(
        f"folder:{tmp_path / 'loose'}", None, 16, tmp_path / "cache", False, f"folder:{tmp_path / 'labelled'}"
    )
    assert notes_of(images) == ()


def test_nothing_but_test_images_for_the_pretext_task_is_an_error(tmp_path):
    for split in ("train", "test"):
        trees.class_folders(tmp_path / split, {"a": 5, "b": 5})
    with pytest.raises(UserError, match="All 10 images of test/unlabelled are test images of folder"):
        load_pretext(
            f"folder:{tmp_path / 'test'}", None, 16, tmp_path / "cache", False, f"folder:{tmp_path}", exclude_test=True
        )


def test_a_fork_with_more_classes_than_the_set_has_is_said(tmp_path):
    folder = published.tinyimagenet(tmp_path)
    wnids = [f"n9{i:07}" for i in range(200)]
    with (folder / "wnids.txt").open("a") as file:
        file.writelines(f"{wnid}\n" for wnid in wnids)
    for wnid in wnids:
        trees.save_image(folder / "train" / wnid / "images" / "0.JPEG")
    (entry,) = (entry for entry in ENTRIES if entry.name == "tinyimagenet")
    notes = entry.labelled(folder).notes
    assert any("Tiny-ImageNet has 200 classes, and here are 202: this is another version of it" in n for n in notes)


def test_a_folder_of_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_text("no image")
    with pytest.raises(UserError, match="None of the 1 images of set/unlabelled could be read"):
        pretext(f"folder:{tmp_path / 'set'}", None, tmp_path / "cache")


def test_textures_need_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(textures, "COUNTS", {"unlabelled": 46, "train": 24, "val": 12, "test": 12})
    splits = downstream("textures", None, tmp_path, size=112)
    assert splits.train.images.shape == (24, textures.SIZE, textures.SIZE, 3)
    assert np.array_equal(splits.val.images[5], textures.render_texture("val", 5))
    assert len(pretext("textures", None, tmp_path)) == 46


def test_a_set_that_nobody_offers_says_so_instead_of_downloading(tmp_path):
    (cars,) = (entry for entry in ENTRIES if entry.name == "cars")
    with pytest.raises(
        UserError, match=r"Stanford Cars cannot be downloaded: its official download is gone.*stanford_"
    ):
        download(cars, tmp_path)


def test_what_a_set_on_disk_lacks_is_said(tmp_path):
    entries = {entry.name: entry for entry in ENTRIES}
    sentences = shortfall(entries["dtd"], trees.dtd(tmp_path))
    assert sentences[0] == "There are 4 of 1,880 train, 4 of 1,880 val, 4 of 1,880 test images."
    assert "2 of its 47 classes" in sentences[1]
    folder = trees.stl10(tmp_path)
    (folder / "unlabeled_X.bin").unlink()
    assert "unlabeled_X.bin is missing" in shortfall(entries["stl10"], folder)[0]
    assert shortfall(entries["textures"], tmp_path) == ()


def test_every_set_of_the_papers_tables_is_in_the_catalogue():
    assert TABLE_2_BASELINE.keys() <= {entry.name for entry in ENTRIES}


def test_the_table_in_the_docs_is_the_catalogue():
    lines = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| [")]
    documented = {row[0]: row for row in rows}
    files = [entry for entry in ENTRIES if not entry.embedded]
    assert len(documented) == len(files)
    for entry in files:
        row = documented[f"[{entry.name}]({entry.page})"]
        assert row[1] == f"{entry.classes:,}"
        assert row[2] == " / ".join(f"{size:,}" for size in entry.sizes)
        assert f"`{entry.folders[0]}/" in row[4]
