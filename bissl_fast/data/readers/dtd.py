"""The Describable Textures Dataset: photographs in class folders, split by lists."""

from __future__ import annotations

from pathlib import Path

from bissl_fast.data.readers.source import Listing, Source, from_files, listed, require
from bissl_fast.errors import UserError

CLASSES = 47
SPLITS = ("train", "val", "test")


def dtd(folder: Path) -> Listing:
    """Read `images/<class>/*.jpg` by `labels/{train,val,test}1.txt`: split 1 of ten, as everyone reports.

    A tree with only some of the classes, or some of the images, is read as it is, and the notes say so.

    Raises:
        UserError: A list is missing, or a split has no image on disk.
    """
    entries = {s: _entries(require(folder / "labels" / f"{s}1.txt", "DTD")) for s in SPLITS}
    present = {s: [e for e in entries[s] if (folder / "images" / e).exists()] for s in SPLITS}
    for split in SPLITS:
        if not present[split]:
            raise UserError(
                f"None of the {len(entries[split])} images that labels/{split}1.txt lists is in {folder / 'images'}: "
                f"unpack DTD again."
            )
    classes = tuple(sorted({e.split("/")[0] for s in SPLITS for e in present[s]}))
    train, val, test = (_source(folder, split, present[split], classes) for split in SPLITS)
    absent = [e for s in SPLITS for e in entries[s] if e not in set(present[s])]
    return Listing(train, val, test, tuple(_notes(classes, absent)))


def _entries(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _source(folder: Path, split: str, entries: list[str], classes: tuple[str, ...]) -> Source:
    root = folder / "images"
    labels = [classes.index(e.split("/")[0]) for e in entries]
    return from_files(f"dtd/{split}", [root / e for e in entries], root, labels, classes)


def _notes(classes: tuple[str, ...], absent: list[str]) -> list[str]:
    notes = []
    if len(classes) < CLASSES:
        notes.append(f"DTD is here with {len(classes)} of its {CLASSES} classes: {listed(classes, 12)}.")
    if absent:
        notes.append(f"Not on disk, though DTD's lists name them: {len(absent)} of its images ({listed(absent)}).")
    return notes
