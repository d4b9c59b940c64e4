"""`--labels file.csv`: path, class and optionally split of a folder's images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bissl_fast.cli import main
from bissl_fast.data.sets.catalogue import list_labelled, load_downstream
from bissl_fast.data.sets.readers.source import Source
from bissl_fast.errors import UserError
from tests.data.trees import save_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images of which no sub-folder tells the class."""
    root = tmp_path / "images"
    for index in range(20):
        save_image(root / f"day{index % 2}" / f"{index:02}.png")
    return root


def classes_of(part: Source) -> dict[str, str]:
    assert part.labels is not None
    return {part.describe(i): part.classes[label] for i, label in enumerate(part.labels.tolist())}


def table(folder: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    path = folder.parent / "labels.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def everything(folder: Path) -> dict[str, str]:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return {path: ("cat", "dog")[index // 10] for index, path in enumerate(paths)}


@pytest.mark.parametrize(
    ("head", "line", "encoding"),
    [
        (None, "{path},{label}", "utf-8"),
        ("path,class", "{path},{label}", "utf-8-sig"),
        ("id;Label;File", "7;{label};{path}", "utf-8"),
        ("filename\tclass", '"{path}"\t{label}', "utf-8"),
        (",filepath,target", "3,{path},{label}", "utf-8"),  # as pandas writes its index
        ("width,Image Path,class_name,label", "640,.\\{path},{label},0", "utf-8"),  # as from Windows
    ],
)
def test_columns_stand_in_their_order_or_under_their_names(
    folder: Path, head: str | None, line: str, encoding: str
) -> None:
    expected = everything(folder)
    lines = [line.format(path=path, label=label) for path, label in expected.items()]
    listing = list_labelled(f"folder:{folder}", None, table(folder, [head, *lines] if head else lines, encoding))
    parts = (listing.train, listing.val, listing.test)
    assert {path: label for part in parts for path, label in classes_of(part).items()} == expected
    assert [part.count for part in parts] == [14, 2, 4]
    assert any("names no splits: 14 images train, 2 validate, 4 test" in note for note in listing.notes)


def test_columns_that_are_not_read_are_told(folder: Path) -> None:
    lines = [f"{index},{path},{label},{index % 5}" for index, (path, label) in enumerate(everything(folder).items())]
    listing = list_labelled(f"folder:{folder}", None, table(folder, [",file,label,fold", *lines]))
    assert f"Of {folder.parent / 'labels.csv'} file and label are read, and not fold." in listing.notes
    named = [f"{path},{label}" for path, label in everything(folder).items()]
    listing = list_labelled(f"folder:{folder}", None, table(folder, ["path,class", *named]))
    assert not any("are read" in note for note in listing.notes)


def test_splits_of_the_table_are_kept(folder: Path) -> None:
    splits = ["train"] * 6 + ["Validation"] * 2 + ["test"] * 2
    lines = [f"{path},{label},{splits[i % 10]}" for i, (path, label) in enumerate(everything(folder).items())]
    listing = list_labelled(f"folder:{folder}", None, table(folder, lines))
    assert [part.count for part in (listing.train, listing.val, listing.test)] == [12, 4, 4]
    listing = list_labelled(f"folder:{folder}", None, table(folder, [line.replace("test", "val") for line in lines]))
    assert [part.count for part in (listing.train, listing.val, listing.test)] == [10, 2, 8]
    assert any("its validation images serve as that" in note for note in listing.notes)


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev", "Dev"])
def test_every_word_for_validation_images_of_a_folder_is_one_of_a_table(folder: Path, word: str) -> None:
    splits = ["train"] * 6 + [word] * 2 + ["test"] * 2
    lines = [f"{path},{label},{splits[i % 10]}" for i, (path, label) in enumerate(everything(folder).items())]
    assert list_labelled(f"folder:{folder}", None, table(folder, lines)).val.count == 4


@pytest.mark.parametrize("named_by_link", [True, False])
def test_absolute_paths_may_go_through_a_symbolic_link(folder: Path, tmp_path: Path, named_by_link: bool) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder.parent, target_is_directory=True)
    linked = link / folder.name
    root, other = (linked, folder) if named_by_link else (folder, linked)
    lines = [f"{other / path},{label}" for path, label in everything(folder).items()]
    listing = list_labelled(f"folder:{root}", None, table(folder, lines))
    assert listing.train.count + listing.val.count + listing.test.count == 20


def test_files_that_are_not_there_are_told_and_a_line_may_stand_twice(folder: Path) -> None:
    lines = [f"{path},{label}" for path, label in everything(folder).items()]
    listing = list_labelled(f"folder:{folder}", None, table(folder, [*lines, lines[0], "day0/gone.png,cat"]))
    assert sum(part.count for part in (listing.train, listing.val, listing.test)) == 20
    assert any("1 of its images (day0/gone.png)" in note for note in listing.notes)


def test_a_run_loads_the_images_that_the_table_names_and_no_others(folder: Path, tmp_path: Path) -> None:
    lines = [f"{path},{label}" for path, label in everything(folder).items()][2:]
    splits = load_downstream(f"folder:{folder}", None, 16, tmp_path / "cache", False, labels=table(folder, lines))
    assert len(splits.train) + len(splits.val) + len(splits.test) == 18
    assert splits.train.classes == ("cat", "dog")


def test_photographs_stand_upright_as_in_a_folder_of_classes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(5):
            Image.radial_gradient("L").crop((0, 0, 128, 90)).save(
                tmp_path / "images" / label / f"{index}.jpg", exif=exif
            )
    folder = tmp_path / "images"
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*.jpg"))]
    by_table = list_labelled(f"folder:{folder}", None, table(folder, [f"{path},{path.parent}" for path in files]))
    by_folder = list_labelled(f"folder:{folder}", None)
    np.testing.assert_array_equal(by_table.train.read(0, 32), by_folder.train.read(0, 32))
    assert by_table.train.remarks(0) == by_folder.train.remarks(0) != ()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "is empty"),
        (["path,class"], "names no file"),
        (["day0/00.png"], "line 1: a path and a class are expected, found 'day0/00.png'"),
        (["day0/00.png,cat", "day0/02.png,"], "line 2: a path and a class are expected"),
        (["../labels.csv,cat", "day0/00.png,dog"], "line 1: ../labels.csv lies outside"),
        (["/etc/hostname,cat"], "lies outside"),
        (["day0/00.png,cat", "day0/./00.png,dog"], "line 2: .* stands in another line with another class or split"),
        (["day0/00.png,cat,later"], "the split is 'later'; known are train, val, test"),
        (["day0/00.png,cat,train", "day0/02.png,dog,"], "names the split of some files and not of others"),
        (["day0/00.png,cat,train", "day0/02.png,dog,train"], "has no images for test"),
        (
            ["nowhere.png,cat", f"{'x' * 300}.png,dog"],
            "None of the 2 files .* the first was looked for as .*nowhere.png",
        ),
        (["where,width,height,what", "day0/00.png,9,9,cat"], "names no columns .* found where, width, height, what"),
        (["where,width,what", "day0/00.png,9,cat"], "line 1: the split is 'what'.* path, class and split above them"),
        ([",where,what", "0,day0/00.png,cat"], "line 1: .*path, class and split above them"),
        (["day0/00.png,cat", "day0/02.png,cat"], "has the class 'cat' alone"),
    ],
)
def test_a_table_that_cannot_be_used_says_where(folder: Path, lines: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        list_labelled(f"folder:{folder}", None, table(folder, lines))


def test_tables_that_are_none_and_sets_that_need_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for labels, sentence in (("binary.csv", "is no table of text in UTF-8"), ("nowhere.csv", "cannot be read")):
        with pytest.raises(UserError, match=sentence):
            list_labelled(f"folder:{folder}", None, folder / labels)
    assert main(["train", "--labels", "labels.csv"]) == 2
    assert "textures has its own, so leave it out" in capsys.readouterr().err
    with pytest.raises(UserError, match="There is no folder"):
        list_labelled("folder:/nowhere", None, folder / "binary.csv")


def test_images_that_the_table_does_not_name_are_counted(folder: Path) -> None:
    named = list(everything(folder).items())[1:18]
    (folder / "link.png").symlink_to(folder / "day1" / "19.png")  # another name of one that the table lacks
    listing = list_labelled(f"folder:{folder}", None, table(folder, [f"{path},{label}" for path, label in named]))
    (note,) = [note for note in listing.notes if "does not name" in note]
    assert note == (
        f"3 images of {folder} left out, because {folder.parent / 'labels.csv'} does not name them: "
        "day0/00.png, day1/17.png, day1/19.png."
    )
    (folder / "other.png").symlink_to(folder / "day0" / "00.png")  # a name that the table gives
    lines = [f"{path},{label}" for path, label in [*named, ("day1/17.png", "dog"), ("day1/19.png", "dog")]]
    whole = list_labelled(f"folder:{folder}", None, table(folder, [*lines, "other.png,cat"]))
    assert [note for note in whole.notes if "does not name" in note] == []


def test_a_table_of_too_few_images_asks_for_images_or_a_split(folder: Path) -> None:
    lines = ["day0/00.png,cat,train", "day1/01.png,dog,train", "day0/02.png,cat,test", "day1/03.png,dog,test"]
    with pytest.raises(UserError, match=r"held out as images/val: add images, or a split val of its own\."):
        list_labelled(f"folder:{folder}", None, table(folder, lines))
