"""PASCAL VOC 2007: photographs with any number of twenty classes each."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.readers.from_files import absent_notes, from_files, leaves
from bissl_fast.data.sets.readers.source import Listing, Source
from bissl_fast.data.sets.readers.text import read_rows
from bissl_fast.errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VALUES = {"1": 1, "0": 0, "-1": -1}  # present, only as objects marked difficult, absent


def voc2007(folder: Path) -> Listing:
    """Read `JPEGImages/*.jpg` by the lists `ImageSets/Main/{train,val,test}.txt` and `<class>_{train,val,test}.txt`.

    Targets are multi-label, `(N, 20)` int8, with the files' own values: what an image whose only objects of a class are
    difficult counts as is for the loss and the metric to say. The splits are VOC's own.

    Raises:
        UserError: A list is missing or contradicts another, or a split has no image on disk.
    """
    parts = [_split(folder, split) for split in ("train", "val", "test")]
    (train, val, test), absent = [part for part, _ in parts], [name for _, names in parts for name in names]
    return Listing(train, val, test, tuple(absent_notes("VOC2007", absent)))


def _split(folder: Path, split: str) -> tuple[Source, list[str]]:
    """One split of the images on disk, and the names of those that are not."""
    lists, photographs = folder / "ImageSets" / "Main", folder / "JPEGImages"
    images = [name for (name,) in read_rows(lists / f"{split}.txt", "VOC2007", 1)]
    targets = np.stack([_column(lists / f"{label}_{split}.txt", images) for label in CLASSES], axis=1)  # (N, 20)
    if strange := next((name for name in images if leaves(name)), None):
        raise UserError(f"{lists / f'{split}.txt'} names the image '{strange}', outside {photographs}: get it again.")
    there = np.array([os.path.exists(photographs / f"{name}.jpg") for name in images], dtype=bool)
    if not there.any():
        raise UserError(
            f"None of the {len(images)} images that VOC2007 lists for {split} is in {photographs}: unpack the set "
            f"again."
        )
    paths = [photographs / f"{name}.jpg" for name, here in zip(images, there, strict=True) if here]
    absent = [f"{name}.jpg" for name, here in zip(images, there, strict=True) if not here]
    return from_files(f"voc2007/{split}", paths, photographs, targets[there], CLASSES), absent


def _column(path: Path, images: list[str]) -> npt.NDArray[np.int8]:
    """The values of one class, `(N,)` int8, in the order of the images."""
    values = dict(read_rows(path, "VOC2007", 2))
    strange = sorted(set(values.values()) - set(VALUES))
    if strange:
        raise UserError(f"{path} holds the value {strange[0]} where 1, 0 and -1 are expected: unpack the set again.")
    unlabelled = [name for name in images if name not in values]
    if unlabelled:
        raise UserError(f"{path} does not label the image {unlabelled[0]}: unpack the set again.")
    return np.array([VALUES[values[name]] for name in images], dtype=np.int8)
