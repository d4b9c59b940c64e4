"""Sets with a folder per class: Caltech-101 and Tiny-ImageNet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.readers.decode import printable
from bissl_fast.data.sets.readers.folder import images_below
from bissl_fast.data.sets.readers.from_files import class_notes, from_files, from_lists
from bissl_fast.data.sets.readers.holdout import with_validation
from bissl_fast.data.sets.readers.source import Listing, Source
from bissl_fast.data.sets.readers.text import read_rows, require
from bissl_fast.data.sets.splits import fixed_per_class
from bissl_fast.errors import UserError

CALTECH_TRAINING = 30  # images per class, by the convention that BiSSL, Appendix B.1, follows
TINY_SIDE = 64


def caltech101(folder: Path) -> Listing:
    """Read `101_ObjectCategories/<class>/*.jpg` without `BACKGROUND_Google`, which is no class.

    The set has no splits: thirty images per class, chosen once and for all by a hash, are for training, a fifth of them
    for validation, and all others for the test.
    """
    root = require(folder / "101_ObjectCategories", "Caltech-101")
    names = [name for name in class_names(root) if name != "BACKGROUND_Google"]
    if len(names) < 2:
        raise UserError(f"{root} holds {len(names)} class folders where 101 are expected: unpack Caltech-101 again.")
    whole = from_class_folders("caltech101", root, names, [images_below(root / name) for name in names])
    chosen, rest = fixed_per_class(_labels(whole), CALTECH_TRAINING)
    notes = tuple(class_notes("Caltech-101", names, 101))
    return with_validation(whole.take(chosen, "caltech101/train"), whole.take(rest, "caltech101/test"), notes)


def tiny_imagenet(folder: Path) -> Listing:
    """Read `train/<wnid>/images/*.JPEG` and `val/images/*.JPEG` by `val_annotations.txt`; classes are WordNet ids.

    The labelled validation set is the test split, as is usual where a test set has no public labels, and a fifth of the
    training images validate. A tree with `train/<wnid>/*` and `val/<wnid>/*` is read as well.
    """
    classes = sorted(wnid for (wnid,) in read_rows(folder / "wnids.txt", "Tiny-ImageNet", 1))
    annotations = folder / "val" / "val_annotations.txt"
    if annotations.exists():
        rows = [row[:2] for row in read_rows(annotations, "Tiny-ImageNet")]
        strange = [row for row in rows if len(row) < 2 or row[1] not in classes]
        if strange:
            raise UserError(f"{annotations} has the line '{' '.join(strange[0])}', which names no class of wnids.txt.")
        test = [(f"val/images/{file}", wnid) for file, wnid in rows]
    else:
        test = list(_by_class(folder, "val", classes))
    splits = {"train": list(_by_class(folder, "train", classes)), "test": test}
    return from_lists("tinyimagenet", "Tiny-ImageNet", folder, splits, classes, 200, TINY_SIDE)


def _by_class(folder: Path, split: str, classes: list[str]) -> Iterator[tuple[str, str]]:
    root = require(folder / split, "Tiny-ImageNet")
    there = set(class_names(root))
    for wnid in classes:
        if wnid in there:
            yield from ((path.relative_to(folder).as_posix(), wnid) for path in images_below(root / wnid))


def class_names(root: Path) -> list[str]:
    """The folders in a folder that are not hidden, in sorted order."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def from_class_folders(
    name: str, root: Path, classes: list[str], files: list[list[Path]], native: int | None = None
) -> Source:
    """A source of the files of each class, in their order."""
    paths = [path for found in files for path in found]
    labels = np.repeat(np.arange(len(files)), [len(found) for found in files])
    return from_files(name, paths, root, labels, tuple(map(printable, classes)), native)


def _labels(source: Source) -> npt.NDArray[np.int64]:
    assert source.labels is not None
    return source.labels.astype(np.int64, copy=False)
