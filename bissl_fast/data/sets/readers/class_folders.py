"""Sets with a folder per class: Caltech-101, Tiny-ImageNet, and Omniglot, which also comes as arrays of bits."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.readers.decode import printable
from bissl_fast.data.sets.readers.folder import images_below
from bissl_fast.data.sets.readers.source import (
    Listing,
    Source,
    carve,
    class_notes,
    from_array,
    from_files,
    from_lists,
    with_validation,
)
from bissl_fast.data.sets.readers.text import read_rows, require
from bissl_fast.data.sets.splits import TEST_SEED, fixed_per_class
from bissl_fast.errors import UserError

CALTECH_TRAINING = 30  # images per class, by the convention that BiSSL, Appendix B.1, follows
TINY_SIDE = 64
OMNIGLOT_SIDE, OMNIGLOT_CHARACTERS = 105, 1623
OMNIGLOT_PARTS = ("background", "evaluation")


def caltech101(folder: Path) -> Listing:
    """Read `101_ObjectCategories/<class>/*.jpg` without `BACKGROUND_Google`, which is no class.

    The set has no splits: thirty images per class, chosen once and for all by a hash, are for training, a fifth of them
    for validation, and all others for the test.
    """
    root = require(folder / "101_ObjectCategories", "Caltech-101")
    names = [name for name in _subfolders(root) if name != "BACKGROUND_Google"]
    if len(names) < 2:
        raise UserError(f"{root} holds {len(names)} class folders where 101 are expected: unpack Caltech-101 again.")
    whole = _labelled("caltech101", root, names, [images_below(root / name) for name in names])
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
    for wnid in classes:
        if (root / wnid).is_dir():
            yield from ((path.relative_to(folder).as_posix(), wnid) for path in images_below(root / wnid))


def omniglot(folder: Path) -> Listing:
    """Read Omniglot with every character as a class: ink on white, 105 pixels, twenty drawings of each.

    Either `images_{background,evaluation}/<alphabet>/<character>/*.png`, or `omniglot_images_{background,evaluation}_
    bits105.npz` with `packed` `(N, 1379)`, the bits of 105 x 105 pixels, 1 for ink, `y` `(N,)` and `classes`. The
    background's characters come first. The set is made for few-shot tasks and has no splits by drawing: a fifth of
    every character's drawings is the test split, a fifth of the others validates.
    """
    arrays = [folder / f"omniglot_images_{part}_bits105.npz" for part in OMNIGLOT_PARTS]
    trees = [folder / f"images_{part}" for part in OMNIGLOT_PARTS]
    from_bits = any(path.exists() for path in arrays)
    present = [path for path in (arrays if from_bits else trees) if path.exists()]
    if not present:
        raise UserError(f"Omniglot is incomplete: {trees[0]} is missing; download or unpack the set again.")
    whole = _omniglot_bits(present) if from_bits else _omniglot_tree(folder, present)
    rest, test, notes = carve(whole, "omniglot/test", TEST_SEED, "omniglot/train")
    train, val, more = carve(rest, "omniglot/val")
    notes += tuple(class_notes("Omniglot", whole.classes, OMNIGLOT_CHARACTERS, "characters"))
    return Listing(train, val, test, (*notes, *more))


def _omniglot_tree(folder: Path, parts: list[Path]) -> Source:
    alphabets = [part / alphabet for part in parts for alphabet in _subfolders(part)]
    characters = [alphabet / character for alphabet in alphabets for character in _subfolders(alphabet)]
    classes = [f"{character.parent.name}/{character.name}" for character in characters]
    return _labelled("omniglot", folder, classes, [images_below(path) for path in characters], OMNIGLOT_SIDE)


def _omniglot_bits(paths: list[Path]) -> Source:
    packed, labels, classes = [], [], list[str]()
    for path in paths:
        try:
            with np.load(path) as content:
                bits, numbers, names = content["packed"], content["y"].astype(np.int64), content["classes"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read ({error}): get the file again.") from error
        if bits.shape != (len(numbers), (OMNIGLOT_SIDE**2 + 7) // 8) or bits.dtype != np.uint8:
            raise UserError(f"{path} holds {bits.shape} {bits.dtype} where ({len(numbers)}, 1379) uint8 is expected.")
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(names)):
            raise UserError(f"{path} holds labels outside its {len(names)} classes: get the file again.")
        packed.append(bits)
        labels.append(numbers + len(classes))
        classes += [str(name) for name in names]
    every: npt.NDArray[np.uint8] = np.concatenate(packed)
    numbers = np.concatenate(labels)
    return from_array("omniglot", lambda: every, OMNIGLOT_SIDE, paths, numbers, tuple(classes), unpack=_unpack_bits)


def _unpack_bits(row: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    ink = np.unpackbits(row, count=OMNIGLOT_SIDE**2).reshape(OMNIGLOT_SIDE, OMNIGLOT_SIDE)
    return (1 - ink) * np.uint8(255)


def _subfolders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _labelled(name: str, root: Path, classes: list[str], files: list[list[Path]], native: int | None = None) -> Source:
    paths = [path for found in files for path in found]
    labels = np.repeat(np.arange(len(files)), [len(found) for found in files])
    return from_files(name, paths, root, labels, tuple(map(printable, classes)), native)


def _labels(source: Source) -> npt.NDArray[np.int64]:
    assert source.labels is not None
    return source.labels.astype(np.int64, copy=False)
