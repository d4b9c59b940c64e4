"""Sets whose classes are split, into those to learn from and those to be tested on: miniImageNet and CIFAR-FS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bissl_fast.data.sets.readers.class_folders import class_names
from bissl_fast.data.sets.readers.folder import images_below
from bissl_fast.data.sets.readers.from_files import from_lists
from bissl_fast.data.sets.readers.source import Listing
from bissl_fast.data.sets.readers.text import read_text, require
from bissl_fast.errors import UserError

SPLITS = ("train", "val", "test")
CLASSES = 100  # of both sets: 64 train, 16 validate, 20 test
CIFAR_SIDE = 32

Entries = dict[str, list[tuple[str, str]]]  # file and class of every image of a split


def mini_imagenet(folder: Path) -> Listing:
    """Read `{train,val,test}.csv` with `images/*.jpg`, or `{train,val,test}/<class>/*`; classes are WordNet ids.

    The lists are those of Ravi and Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017: a line
    `filename,label`, then an image a line. Images are squares of 84 pixels or ImageNet's own; neither is enlarged or
    cropped before the cache.

    Raises:
        UserError: Lists or folders are missing or damaged, or splits share a class.
    """
    if (folder / "train.csv").exists():
        splits = {split: _rows(folder / f"{split}.csv") for split in SPLITS}
        return _listing("miniimagenet", "miniImageNet", folder / "images", splits)
    splits = {split: _by_class(folder, split, class_names(require(folder / split, "miniImageNet"))) for split in SPLITS}
    return _listing("miniimagenet", "miniImageNet", folder, splits)


def cifar_fs(folder: Path) -> Listing:
    """Read `data/<class>/*.png` by `splits/bertinetto/{train,val,test}.txt`, which name a class a line.

    Source: Bertinetto et al., "Meta-learning with differentiable closed-form solvers", ICLR 2019.

    Raises:
        UserError: Lists or folders are missing or damaged, or splits share a class.
    """
    splits: Entries = {}
    for split in SPLITS:
        names = read_text(folder / "splits" / "bertinetto" / f"{split}.txt", "CIFAR-FS").split()
        splits[split] = _by_class(folder, "data", names)
    return _listing("cifarfs", "CIFAR-FS", folder, splits, CIFAR_SIDE)


def _rows(path: Path) -> list[tuple[str, str]]:
    """The images of a list, without its first line."""
    rows = [line.strip().split(",") for line in read_text(path, "miniImageNet").splitlines() if line.strip()]
    strange = next((row for row in rows if len(row) != 2), None)
    if strange is not None:
        raise UserError(f"{path} has the line '{','.join(strange)}' where filename,label is expected: get it again.")
    return [(file, label) for file, label in rows if (file, label) != ("filename", "label")]


def _by_class(folder: Path, inside: str, names: Sequence[str]) -> list[tuple[str, str]]:
    root = require(folder / inside, "the set")
    there = set(class_names(root))
    present = [name for name in names if name in there]
    return [(path.relative_to(folder).as_posix(), name) for name in present for path in images_below(root / name)]


def _listing(
    name: str, title: str, root: Path, splits: Mapping[str, list[tuple[str, str]]], side: int | None = None
) -> Listing:
    """The splits, whose labels number the classes of all three, so that none of the test is one of training."""
    classes = {split: list(dict.fromkeys(label for _, label in entries)) for split, entries in splits.items()}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if shared := sorted(set(classes[first]) & set(classes[second])):
            raise UserError(
                f"{title} in {root} has the class {shared[0]} in both {first} and {second}, which in a few-shot set "
                "have classes of their own: unpack it again, or give it as folder:PATH if it is another set."
            )
    ordered = [label for split in SPLITS for label in sorted(classes[split])]
    return from_lists(name, title, root, splits, ordered, CLASSES, side)
