"""`bissl-fast data` lists, prepares and verifies, and ends in a sentence where it cannot."""

import os
import shutil
from pathlib import Path

import pytest
import tyro
from PIL import Image
from torchvision import datasets

from bissl_fast.cli.data import list_command, prepare_command, verify_command
from bissl_fast.data.sets import textures
from bissl_fast.data.sets.readers.voc import CLASSES
from bissl_fast.errors import UserError
from tests.data import published, trees


def test_list_says_what_is_there_and_where_the_rest_comes_from(tmp_path, capsys):
    trees.dtd(tmp_path)
    list_command(data_root=tmp_path)
    lines = capsys.readouterr().out
    assert f"in {tmp_path}/dtd/dtd (there: {tmp_path}/dtd/dtd), from https://www.robots.ox.ac.uk" in lines
    assert f"in {tmp_path}/stl10_binary (not there)" in lines
    for name in ("textures", "fashionmnist", "cifar10", "cifar100", "folder:PATH"):
        assert name in lines


def test_prepare_fills_the_cache_with_the_embedded_set(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(textures, "COUNTS", {"unlabelled": 23, "train": 12, "val": 12, "test": 12})
    prepare_command("textures", cache_dir=tmp_path)
    assert "textures/unlabelled: 23 images of 64 px" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 4


def test_prepare_downloads_what_is_missing_and_only_that(tmp_path, monkeypatch):
    downloads = []

    def fake(root, download):
        downloads.append(root)
        trees.dtd(root)

    monkeypatch.setattr(datasets, "DTD", fake)
    for _ in range(2):
        prepare_command("dtd", data_root=tmp_path / "data", size=16, cache_dir=tmp_path / "cache")
    assert downloads == [tmp_path / "data"]


def test_a_failing_download_is_a_sentence(tmp_path, monkeypatch):
    def fail(root, download):
        raise OSError("Name or service not known")

    monkeypatch.setattr(datasets, "STL10", fail)
    with pytest.raises(UserError, match=r"Downloading STL-10 failed \(Name or service.*unpack them to .*stl10_binary"):
        prepare_command("stl10", data_root=tmp_path, cache_dir=tmp_path)


def test_prepare_without_a_root_asks_for_one(tmp_path):
    with pytest.raises(UserError, match="needs a folder to be downloaded to: add --data-root DIR"):
        prepare_command("cifar10", cache_dir=tmp_path)


def test_loose_images_are_prepared_for_pretext(tmp_path, capsys):
    trees.save_image(tmp_path / "set" / "a.png")
    prepare_command(f"folder:{tmp_path / 'set'}", unlabelled=True, size=16, cache_dir=tmp_path / "cache")
    assert "set/unlabelled: 1 images of 16 px" in capsys.readouterr().out


def test_loose_images_are_verified_for_pretext(tmp_path, capsys):
    trees.save_image(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "b.png").write_text("no image")
    with pytest.raises(UserError, match=r"`data prepare` and `data verify` take them with --unlabelled"):
        verify_command(f"folder:{tmp_path / 'set'}")
    verify_command(f"folder:{tmp_path / 'set'}", unlabelled=True)
    output = capsys.readouterr().out
    assert ["set/unlabelled", "2", "1", "unlabelled"] in [
        line.replace("│", " ").split() for line in output.splitlines()
    ]
    assert "unreadable: set/unlabelled: b.png: cannot identify" in output
    with pytest.raises(UserError, match="--unlabelled verifies images without labels: leave it or --labels out"):
        verify_command(f"folder:{tmp_path / 'set'}", unlabelled=True, labels=tmp_path / "labels.csv")


def test_verify_counts_per_split_and_class_and_names_the_unreadable(tmp_path, capsys):
    folder = trees.dtd(tmp_path, per_split=3)
    (folder / "images" / "banded" / "banded_0000.jpg").write_text("no image")
    verify_command("dtd", data_root=tmp_path)
    output = capsys.readouterr().out
    rows = [line.replace("│", " ").split() for line in output.splitlines()]
    assert ["dtd/train", "6", "5", "2", "2", "to", "3"] in rows
    assert ["banded", "2", "3", "3"] in rows
    assert "unreadable: dtd/train: banded/banded_0000.jpg: cannot identify" in output
    assert "2 of its 47 classes" in output


def test_verify_says_when_nothing_is_left_to_train_on(tmp_path, capsys):
    for name in ("a", "b"):
        for i in range(5):
            path = tmp_path / "set" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("no image")
    verify_command(f"folder:{tmp_path / 'set'}")
    assert "No image of set/train, set/val, set/test can be read: training refuses the set." in capsys.readouterr().out


@pytest.mark.parametrize("size", [0, -5, 100_000])
def test_a_size_that_no_cache_can_hold_is_refused(size, tmp_path):
    with pytest.raises(UserError, match=f"--size must be between 8 and 4096 pixels, found {size}"):
        prepare_command("textures", size=size, cache_dir=tmp_path)


def test_verify_of_a_missing_set_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match="bissl-fast data prepare fashionmnist"):
        verify_command("fashionmnist", data_root=tmp_path)


def test_the_functions_become_subcommands(tmp_path, capsys):
    commands = {"list": list_command, "prepare": prepare_command, "verify": verify_command}
    trees.class_folders(tmp_path / "set", {"a": 5, "b": 5})
    tyro.extras.subcommand_cli_from_dict(commands, args=["verify", f"folder:{tmp_path / 'set'}"])
    assert "Every image can be read." in capsys.readouterr().out


def test_a_set_of_two_parts_is_downloaded_in_two_steps(tmp_path, monkeypatch, capsys):
    asked = []

    def fake(root, download, year, image_set):
        asked.append((year, image_set))
        published.voc2007(root, CLASSES)

    monkeypatch.setattr(datasets, "VOCDetection", fake)
    prepare_command("voc2007", data_root=tmp_path / "data", size=16, cache_dir=tmp_path / "cache")
    assert asked == [("2007", "trainval"), ("2007", "test")]
    assert "voc2007/test: 4 images of 16 px" in capsys.readouterr().out
    verify_command("voc2007", data_root=tmp_path / "data")
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["voc2007/train", "4", "4", "20", "0", "to", "1"] in rows
    assert ["boat", "1", "1", "1"] in rows


def test_a_download_that_leaves_the_set_incomplete_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DTD", lambda root, download: (root / "dtd").mkdir())
    with pytest.raises(
        UserError, match=r"does not hold labels/\*1\.txt: an earlier download was stopped; remove .*/dtd "
    ):
        prepare_command("dtd", data_root=tmp_path, cache_dir=tmp_path / "cache")


def test_list_says_what_a_set_lacks(tmp_path, capsys):
    trees.dtd(tmp_path)
    list_command(data_root=tmp_path)
    output = capsys.readouterr().out
    assert "There are 4 of 1,880 train, 4 of 1,880 val, 4 of 1,880 test images." in output
    assert "DTD is here with 2 of its 47 classes" in output
    assert "(not there), from https://ai.stanford.edu/~jkrause/cars/car_dataset.html (no download)" in output
    assert (
        "caltech101       Caltech-101, 30 training images per class: 101 classes; 2,424 train, 606 val, 5,647 test"
        in output
    )


def test_prepare_tells_what_the_cache_costs_and_keeps_whole_images_if_asked(tmp_path, capsys):
    trees.dtd(tmp_path)  # 40 x 30 pixels
    for options, line in (
        ({"size": 112}, "dtd/train: 4 images of 112 px, 0.2 MB"),
        ({"size": 224, "whole": True}, "dtd/train: 4 images of 224 px, whole, 0.6 MB"),
    ):
        prepare_command("dtd", data_root=tmp_path, cache_dir=tmp_path / "cache", **options)
        assert line in capsys.readouterr().out.splitlines()


def test_verify_names_images_that_are_in_two_splits_or_under_two_labels(tmp_path, capsys):
    for number, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(("a", "b")):
            for i in range(3):
                trees.save_image(tmp_path / split / name / f"{i}.png", 60 * number + 20 * label + i)
    shutil.copy(tmp_path / "test" / "a" / "0.png", tmp_path / "train" / "a" / "leak.png")
    shutil.copy(tmp_path / "train" / "a" / "1.png", tmp_path / "train" / "b" / "other.png")
    shutil.copy(tmp_path / "train" / "a" / "2.png", tmp_path / "train" / "a" / "again.png")  # harmless
    verify_command(f"folder:{tmp_path}")
    notes = [line for line in capsys.readouterr().out.splitlines() if "byte for byte" in line]
    assert notes == [
        f"note: The same byte for byte in {tmp_path.name}/train and in {tmp_path.name}/test: 1 (a/leak.png = a/0.png).",
        "note: The same byte for byte under several labels: 1 (a/1.png (a) = b/other.png (b)).",
    ]


def test_verify_compares_the_pixels_of_sets_without_files(tmp_path, capsys):
    trees.cifar10(tmp_path)
    verify_command("cifar10", data_root=tmp_path)
    notes = [line for line in capsys.readouterr().out.splitlines() if "byte for byte" in line]
    assert len(notes) == 3  # of its five batches, all alike, and the test's
    assert notes[1].startswith("note: The same byte for byte in cifar10/train and in cifar10/test: 20 (")


@pytest.mark.timeout(60)
def test_verify_waits_for_no_pipe_and_names_what_was_guessed(tmp_path, capsys):
    trees.class_folders(tmp_path, {"a": 5, "b": 5})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "a" / "logo.png")
    verify_command(f"folder:{tmp_path}")
    output = capsys.readouterr().out
    assert "pipes, devices or broken links: a/pipe.png." in output
    assert "are transparent in places, which become gray: a/logo.png." in output
    assert "Every image can be read." in output


@pytest.mark.parametrize("setting", [{"labels": Path("labels.csv")}, {"whole": True}])
def test_prepare_refuses_what_has_no_meaning_for_unlabelled_images(tmp_path, setting):
    (flag,) = setting
    with pytest.raises(
        UserError, match=f"--unlabelled prepares images without labels, as squares: leave it or --{flag}"
    ):
        prepare_command(f"folder:{tmp_path}", unlabelled=True, **setting)
