"""A folder of images whose classes stand in a table of text: path and class, and where it is fixed the split."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bissl_fast.data.sets.readers.decode import printable
from bissl_fast.data.sets.readers.from_files import absent_notes, from_files
from bissl_fast.data.sets.readers.holdout import split_in_three, with_validation
from bissl_fast.data.sets.readers.source import Listing, Source, listed
from bissl_fast.data.sets.readers.stacks import extensions
from bissl_fast.data.sets.readers.tree import Tree
from bissl_fast.errors import UserError

HEADS = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "imagepath"),
        *("image_file", "image_name", "img", "img_path"),
    ),
    "class": ("class", "class_name", "classname", "category", "label", "target"),
    "split": ("split", "set", "subset", "partition"),
}
"""What columns may be called, in any case and with blanks or hyphens; of several for one thing the first counts."""
NAME_THEM = "if its columns have names or another order, write path, class and split above them"
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}


class Row(NamedTuple):
    """One line: a file, its class, and its split, which is empty where the table has none."""

    file: Path
    label: str
    split: str


def labelled_table(root: Path, table: Path, channels: int = 3) -> Listing:
    """The images of a folder by a table of their classes.

    Without splits a fifth is for the test and a fifth of the rest for validation, stratified and always alike. With
    them, a missing validation split is held out of the training images; without a test split, validation serves as it.

    Args:
        root: folder of the images.
        table: as :func:`read_table` takes it.
        channels: of the images; 3 is RGB.

    Raises:
        UserError: if the table cannot be used, none of its files is there, or there are fewer than two classes.
    """
    present, notes = _present(root, table, channels)
    classes = _classes(present)
    if len(classes) < 2:
        raise UserError(f"{table} has the class {classes[0]!r} alone: two or more are expected in its column 'class'.")
    title = printable(root.name)
    splits = {split: [row for row in present if row.split == split] for split in SPLITS}
    if not any(splits.values()):
        whole = _source(title, root, present, classes, channels)
        return split_in_three(whole, f"{printable(table)} names no splits", notes)
    if not splits["test"]:
        splits["test"], splits["val"] = splits["val"], []
        notes += (f"{printable(table)} has no test split: its validation images serve as that.",)
    parts = {split: _source(f"{title}/{split}", root, part, classes, channels) for split, part in splits.items()}
    for split in ("train", "test"):
        if not splits[split]:
            raise UserError(f"{table} has no images for {split}: add them, or leave out the column of splits.")
    if splits["val"]:
        return Listing(parts["train"], parts["val"], parts["test"], notes)
    return with_validation(parts["train"], parts["test"], notes)


def whole_table(root: Path, table: Path, channels: int = 3) -> Source:
    """Every image that a table names, whatever its split; errors likewise."""
    present, notes = _present(root, table, channels)
    return replace(_source(printable(root.name), root, present, _classes(present), channels), notes=notes)


def read_table(root: Path, table: Path) -> list[Row]:
    """The lines of a table, each file once.

    Args:
        root: what paths are relative to.
        table: text in UTF-8, columns separated by comma, semicolon or tab: path, class and optionally split, in this
            order, or in any order and among others under a first line that names them (:data:`HEADS`).

    Raises:
        UserError: if it cannot be read, a line lacks something, a file lies outside the folder or has two classes.
    """
    return _rows(root, table, _cells(table))


def _rows(root: Path, table: Path, lines: Sequence[Sequence[str]]) -> list[Row]:
    columns = _columns(lines[0])
    named = columns is not None
    if columns is None and len(lines[0]) > len(HEADS):
        heads = listed([cell for cell in lines[0] if cell])
        raise UserError(f"{table} names no columns that are known, found {heads}: {NAME_THEM}.")
    columns = columns or {name: place for place, name in enumerate(HEADS) if place < len(lines[0])}
    found: dict[Path, Row] = {}
    for number, cells in enumerate(lines[named:], start=1 + named):
        row = _row(root, table, number, cells, columns)
        if found.setdefault(row.file, row) != row:
            raise UserError(f"{table}, line {number}: {row.file} stands in another line with another class or split.")
    if not found:
        raise UserError(f"{table} names no file: each line is expected to hold a path and a class.")
    if 0 < sum(not row.split for row in found.values()) < len(found):
        raise UserError(f"{table} names the split of some files and not of others: name all or none.")
    return list(found.values())


def _cells(table: Path) -> list[list[str]]:
    """The cells of all lines that are not empty."""
    try:
        text = table.read_text(encoding="utf-8-sig")  # spreadsheets write a mark first
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        lines = [[cell.strip() for cell in line] for line in csv.reader(text.splitlines(), delimiter=delimiter)]
    except OSError as error:
        raise UserError(f"{table} cannot be read ({error.strerror}): give the path of a table with --labels.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no table of text in UTF-8 ({error}): save it as CSV.") from None
    lines = [line for line in lines if any(line)]
    if not lines:
        raise UserError(f"{table} is empty: each line is expected to hold a path and a class.")
    return lines


def _columns(first: Sequence[str]) -> dict[str, int] | None:
    """Where the columns are, if the first line names them."""
    heads = [cell.lower().replace(" ", "_").replace("-", "_") for cell in first]
    places = {name: next((heads.index(word) for word in words if word in heads), -1) for name, words in HEADS.items()}
    if places["path"] < 0 or places["class"] < 0:
        return None
    return {name: place for name, place in places.items() if place >= 0}


def _row(root: Path, table: Path, number: int, cells: Sequence[str], columns: dict[str, int]) -> Row:
    values = {name: cells[place] if place < len(cells) else "" for name, place in columns.items()}
    help = f"; {NAME_THEM}" if number == 1 else ""
    if not values.get("path") or not values.get("class"):
        raise UserError(f"{table}, line {number}: a path and a class are expected, found {', '.join(cells)!r}{help}.")
    path = values["path"]
    if "\\" in path and not os.path.exists(root / path):  # of Windows; in names of Linux it is a letter like others
        path = path.replace("\\", "/")
    file = Path(os.path.normpath(root / path))
    if not file.is_relative_to(root):  # or is, by another name: through a symbolic link, or without one
        folder, real = Path(os.path.realpath(file.parent)), Path(os.path.realpath(root))
        file = root / folder.relative_to(real) / file.name if folder.is_relative_to(real) else file
    if not file.is_relative_to(root):
        raise UserError(f"{table}, line {number}: {values['path']} lies outside {root}, the folder of the images.")
    word = values.get("split", "").lower()
    split = next((name for name, words in SPLITS.items() if word in words), "")
    if word and not split:
        raise UserError(f"{table}, line {number}: the split is {word!r}; known are {', '.join(SPLITS)}{help}.")
    return Row(file, values["class"], split)


def _present(root: Path, table: Path, channels: int) -> tuple[list[Row], tuple[str, ...]]:
    """The lines whose files are there, and notes on the others and on the images that no line names."""
    lines = _cells(table)
    rows = _rows(root, table, lines)
    present = [row for row in rows if os.path.isfile(row.file)]  # false, too, for names that no file can have
    if not present:
        raise UserError(
            f"None of the {len(rows)} files that {table} lists is in {root}: paths are relative to it, and the first "
            f"was looked for as {rows[0].file}."
        )
    there = {row.file for row in present}
    absent = [row.file.relative_to(root).as_posix() for row in rows if row.file not in there]
    notes = (
        *_unread_notes(table, lines[0]),
        *absent_notes(table.name, absent),
        *_unnamed_notes(root, table, there, channels),
    )
    return present, notes


def _unread_notes(table: Path, first: Sequence[str]) -> tuple[str, ...]:
    """A note on the named columns that mean nothing here, as a split by another word."""
    columns = _columns(first) or {}
    unread = [head for place, head in enumerate(first) if head and place not in columns.values()] if columns else []
    read = " and ".join(printable(first[place]) for place in columns.values())
    shown = printable(listed(unread))
    return (f"Of {printable(table)} {read} are read, and not {shown}.",) if unread else ()


def _unnamed_notes(root: Path, table: Path, named: set[Path], channels: int) -> tuple[str, ...]:
    """A note on the images of the folder that the table does not name, if there are any."""
    others = [path for path in Tree(root, [root], extensions(channels)).images(root) if path not in named]
    if others:  # they may be named by links
        real = {os.path.realpath(path) for path in named}
        others = [path for path in others if os.path.realpath(path) not in real]
    if not others:
        return ()
    shown = listed([path.relative_to(root).as_posix() for path in others])
    reason = f"because {printable(table)} does not name them"
    return (f"{len(others):,} images of {printable(root)} left out, {reason}: {shown}.",)


def _classes(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(sorted({row.label for row in rows}))


def _source(name: str, root: Path, rows: Iterable[Row], classes: tuple[str, ...], channels: int) -> Source:
    chosen, number = sorted(rows), {label: place for place, label in enumerate(classes)}
    labels = [number[row.label] for row in chosen]
    files, shown = [row.file for row in chosen], tuple(map(printable, classes))
    return from_files(name, files, root, labels, shown, as_shown=True, channels=channels)
