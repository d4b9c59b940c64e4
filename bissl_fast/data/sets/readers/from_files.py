"""Sources whose images are files."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bissl_fast.data.sets.dataset import Images, Targets
from bissl_fast.data.sets.readers.decode import Sides, decode, printable
from bissl_fast.data.sets.readers.holdout import with_validation
from bissl_fast.data.sets.readers.source import Listing, Source, digest, file_states, listed
from bissl_fast.data.sets.readers.stacks import decode_channels
from bissl_fast.errors import UserError


def from_files(
    name: str,
    paths: Sequence[Path],
    root: Path,
    labels: Sequence[int] | Targets | None = None,
    classes: tuple[str, ...] = (),
    native: int | None = None,
    as_shown: bool = False,
    notes: tuple[str, ...] = (),
    whole: bool = False,
    channels: int = 3,
) -> Source:
    """A source of image files below `root`.

    Args:
        name: Set and split.
        paths: The files.
        root: Folder that messages name them from.
        labels: One per file, or `None`.
        classes: Class names by label.
        native: Side of all images, if they are equal: none is enlarged then.
        as_shown: As in `decode_file`.
        notes: Sentences that a user should read.
        whole: Images are stretched to squares, in place of what lies in their middle.
        channels: Of the images; 3 is RGB.
    """
    given = (name, paths, root, labels, classes)
    targets = labels if labels is None or isinstance(labels, np.ndarray) else np.asarray(labels, dtype=np.int64)
    side = native or sys.maxsize
    reader = decode if channels == 3 else partial(decode_channels, channels=channels)
    remarks: dict[int, list[str]] = {}
    sides: dict[int, Sides] = {}

    def read(index: int, size: int) -> Images:
        told = list[str]()
        image, sides[index] = reader(paths[index], min(size, side), whole, as_shown, told.append)
        if told:
            remarks[index] = told
        return image

    return Source(
        name,
        len(paths),
        read=read,
        describe=lambda index: printable(paths[index].relative_to(root).as_posix()),
        identity=digest(
            file_states(paths, root),
            np.zeros(0) if targets is None else targets,
            "\n".join(classes),
            variant(as_shown, whole, channels),
        ),
        labels=targets,
        classes=classes if targets is not None else (),
        native=native,
        files=tuple(paths),
        whole=None if whole or native else partial(from_files, *given, None, as_shown, notes, True, channels),
        sides=sides.__getitem__ if whole else None,
        remarks=lambda index: remarks.get(index, ()),
        notes=notes,
        channels=channels,
    )


def from_lists(
    name: str,
    title: str,
    root: Path,
    splits: Mapping[str, Sequence[tuple[str, str]]],
    classes: Sequence[str],
    total: int,
    native: int | None = None,
) -> Listing:
    """The splits of a set that names its image files and their classes in lists.

    A tree with only some of the classes, or some of the images, is read as it is, and the notes say so.

    Args:
        name: Name of the set.
        title: Its name in messages.
        root: Folder of the images.
        splits: File below `root` and class of every image of `train`, `test` and, if the set has it, `val`. Where it
            has not, a fifth of `train` becomes it.
        classes: Class names in the order of their labels.
        total: Number of classes of the complete set.
        native: Side of the images, if all are equal.

    Raises:
        UserError: A split has no image on disk.
    """
    known, present = set(classes), dict[str, list[tuple[str, str]]]()
    for split, entries in splits.items():
        for file, label in entries:
            if leaves(file) or label not in known:
                what = f"the class '{label}', which it has none of" if label not in known else f"'{file}', outside it"
                raise UserError(f"{title}'s list of images for {split} in {root} names {what}: get the set again.")
        present[split] = [entry for entry in entries if os.path.exists(root / entry[0])]  # False for impossible names
        if not present[split]:
            raise UserError(
                f"None of the {len(entries)} images that {title} lists for {split} is in {root}: unpack the set again."
            )
    used = {label for entries in present.values() for _, label in entries}
    kept = tuple(label for label in classes if label in used)
    number = {label: i for i, label in enumerate(kept)}
    sources = {
        split: from_files(
            f"{name}/{split}", [root / file for file, _ in entries], root, [number[c] for _, c in entries], kept, native
        )
        for split, entries in present.items()
    }
    notes = class_notes(title, kept, total)
    found = {file for entries in present.values() for file, _ in entries}
    notes += absent_notes(title, [file for entries in splits.values() for file, _ in entries if file not in found])
    if "val" in sources:
        return Listing(sources["train"], sources["val"], sources["test"], tuple(notes))
    return with_validation(sources["train"], sources["test"], tuple(notes))


def variant(as_shown: bool, whole: bool, channels: int) -> str:
    """How files are read, for the identity of a source; empty where nothing is special."""
    return ("as shown" if as_shown else "") + (" whole" if whole else "") + (f" {channels}" if channels != 3 else "")


def leaves(file: str) -> bool:
    """Whether a path in a list leads out of the folder that it is relative to."""
    return file.startswith("/") or ".." in file.split("/")


def class_notes(title: str, classes: Sequence[str], total: int, noun: str = "classes") -> list[str]:
    """A note on a set that is here with another number of classes than the complete set has, if so."""
    if len(classes) == total:
        return []
    few = f"{title} is here with {len(classes)} of its {total} {noun}"
    many = f"{title} has {total} {noun}, and here are {len(classes)}: this is another version of it, or a fork"
    return [f"{few if len(classes) < total else many}: {listed(classes, 12)}."]


def absent_notes(title: str, absent: Sequence[str]) -> list[str]:
    """A note on the images that a set's lists name and the disk does not hold, if any."""
    if not absent:
        return []
    return [f"Not on disk, though {title}'s lists name them: {len(absent)} of its images ({listed(absent)})."]
