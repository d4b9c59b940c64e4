"""Omniglot: handwritten characters, ink (0) on white (255), from PNG files, their archives or arrays of bits."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.dataset import Images
from bissl_fast.data.sets.readers.class_folders import class_names, from_class_folders
from bissl_fast.data.sets.readers.decode import printable
from bissl_fast.data.sets.readers.folder import images_below
from bissl_fast.data.sets.readers.from_arrays import from_array
from bissl_fast.data.sets.readers.from_files import class_notes
from bissl_fast.data.sets.readers.holdout import carve
from bissl_fast.data.sets.readers.source import Listing, Source, digest
from bissl_fast.data.sets.splits import TEST_SEED
from bissl_fast.errors import UserError
from bissl_fast.plain import load_arrays

SIDE, CHARACTERS = 105, 1623
BACKGROUND_CHARACTERS = 964
PARTS = ("background", "evaluation")
MOST_BYTES = 1 << 20  # of a drawing's file, which has a few hundred
TURNS = 4  # of a character by a right angle

Bits = npt.NDArray[np.uint8]  # (N, 1379), 1 for ink


def omniglot(folder: Path) -> Listing:
    """Read Omniglot with every character as a class, and its twenty drawings as images of 105 pixels.

    Either `images_{background,evaluation}/<alphabet>/<character>/*.png`, or the two as `.zip`, or
    `omniglot_images_{background,evaluation}_bits105.npz` with `packed` `(N, 1379)`, the bits of 105 x 105 pixels, 1 for
    ink, `y` `(N,)` and `classes`. The background's characters come first. The set is made for few-shot tasks and has
    no splits by drawing: a fifth of every character's drawings is the test split, a fifth of the others validates.
    """
    whole, _ = _characters(folder)
    rest, test, notes = carve(whole, "omniglot/test", TEST_SEED, "omniglot/train")
    train, val, more = carve(rest, "omniglot/val")
    notes += tuple(class_notes("Omniglot", whole.classes, CHARACTERS, "characters"))
    return Listing(train, val, test, (*notes, *more))


def omniglot_few_shot(folder: Path, turned: bool = False) -> Listing:
    """Read Omniglot split by character: those of the background alphabets train, those of the others are the test.

    A fifth of the drawings of every background character validates. Labels number the characters of all splits, so
    that none of the test split is one of training.

    Args:
        folder: As for :func:`omniglot`.
        turned: Background characters turned by 90, 180 and 270 degrees are characters of their own, as few-shot
            learners are trained on them since Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks",
            ICML 2016. Those of the test are never turned.

    Raises:
        UserError: One of the two parts is missing.
    """
    name = "omniglot-turned" if turned else "omniglot-fewshot"
    background, evaluation = _parts(folder)
    learned = _turned(background) if turned else background
    classes = (*learned.classes, *evaluation.classes)
    assert learned.labels is not None
    assert evaluation.labels is not None
    train, val, notes = carve(learned.relabelled(learned.labels, classes, f"{name}/train"), f"{name}/val")
    test = evaluation.relabelled(evaluation.labels + len(learned.classes), classes, f"{name}/test")
    few = class_notes("Omniglot", (*background.classes, *evaluation.classes), CHARACTERS, "characters")
    return Listing(train, val, test, (*notes, *few))


def omniglot_background(folder: Path, turned: bool = False) -> Source:
    """All drawings of the background alphabets, without their labels."""
    background, _ = _parts(folder)
    images = (_turned(background) if turned else background).unlabelled()
    return replace(images, name="omniglot-turned/unlabelled" if turned else "omniglot-fewshot/unlabelled")


def _parts(folder: Path) -> tuple[Source, Source]:
    """Background and evaluation alphabets, each with labels of its own."""
    whole, background = _characters(folder)
    assert whole.labels is not None
    first = whole.labels < background
    if not first.any() or first.all():
        missing = PARTS[0] if not first.any() else PARTS[1]
        raise UserError(
            f"Omniglot is incomplete: {folder} lacks its {missing} alphabets, images_{missing}; download or unpack "
            "the set again."
        )
    parts = [whole.take(np.flatnonzero(rows), name) for rows, name in zip((first, ~first), PARTS, strict=True)]
    labels = [part.labels for part in parts if part.labels is not None]
    return (
        parts[0].relabelled(labels[0], whole.classes[:background], PARTS[0]),
        parts[1].relabelled(labels[1] - background, whole.classes[background:], PARTS[1]),
    )


def _turned(source: Source) -> Source:
    """The images four times, turned by 0, 90, 180 and 270 degrees, each turn of a class being another class."""
    count, read = source.count, source.read
    assert source.labels is not None
    labels = np.concatenate([source.labels + turn * len(source.classes) for turn in range(TURNS)])
    classes = tuple(
        f"{name}, turned by {90 * turn} degrees" if turn else name for turn in range(TURNS) for name in source.classes
    )

    def turned(index: int, size: int) -> Images:
        return np.ascontiguousarray(np.rot90(read(index % count, size), index // count))

    return replace(
        source,
        count=TURNS * count,
        read=turned,
        describe=lambda index: source.describe(index % count),
        remarks=lambda index: source.remarks(index % count),
        labels=labels,
        classes=classes,
        identity=digest(source.identity, "turned"),
        files=source.files * TURNS,
    )


def _characters(folder: Path) -> tuple[Source, int]:
    """All drawings, and how many of their classes, the first ones, are of background alphabets."""
    forms = {
        "bits": [folder / f"omniglot_images_{part}_bits105.npz" for part in PARTS],
        "tree": [folder / f"images_{part}" for part in PARTS],
        "zip": [folder / f"images_{part}.zip" for part in PARTS],
    }
    for form, paths in forms.items():
        present = [path for path in paths if path.exists()]
        if present:
            first = paths[0] in present
            return _tree(folder, present, first) if form == "tree" else _arrays(present, first)
    raise UserError(f"Omniglot is incomplete: {forms['tree'][0]} is missing; download or unpack the set again.")


def _tree(folder: Path, parts: list[Path], first: bool) -> tuple[Source, int]:
    found = [[part / a / c for a in class_names(part) for c in class_names(part / a)] for part in parts]
    characters = [character for part in found for character in part]
    classes = [f"{character.parent.name}/{character.name}" for character in characters]
    files = [images_below(path) for path in characters]
    return from_class_folders("omniglot", folder, classes, files, SIDE), len(found[0]) if first else 0


def _arrays(paths: list[Path], first: bool) -> tuple[Source, int]:
    """Of archives of drawings, which are decoded when the first one is wanted, or of bits."""
    parts = [_zipped(path) if path.suffix == ".zip" else _bits(path) for path in paths]
    classes = tuple(name for _, _, names in parts for name in names)
    starts = np.cumsum([0, *(len(names) for _, _, names in parts)])
    labels = np.concatenate([numbers + start for (_, numbers, _), start in zip(parts, starts, strict=False)])

    def load() -> Bits:
        return np.concatenate([bits() for bits, _, _ in parts])

    source = from_array("omniglot", load, SIDE, paths, labels, classes, unpack=_unpacked)
    return source, len(parts[0][2]) if first else 0


Part = tuple["partial[Bits]", npt.NDArray[np.int64], list[str]]  # bits when they are wanted, labels, class names


def _bits(path: Path) -> Part:
    try:
        bits, numbers, names = load_arrays(path, ("packed", "y", "classes")).values()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): get the file again.") from error
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or names.ndim != 1 or names.dtype.kind not in "US":
        raise UserError(f"{path} holds no lists of whole numbers `y` and names `classes`: get the file again.")
    numbers = numbers.astype(np.int64)
    if bits.shape != (len(numbers), (SIDE**2 + 7) // 8) or bits.dtype != np.uint8:
        raise UserError(f"{path} holds {bits.shape} {bits.dtype} where ({len(numbers)}, 1379) uint8 is expected.")
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(names)):
        raise UserError(f"{path} holds labels outside its {len(names)} classes: get the file again.")
    return partial(np.asarray, bits), numbers, [str(name) for name in names]


def _zipped(path: Path) -> Part:
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(name for name in archive.namelist() if PurePosixPath(name).match("images_*/*/*/*.png"))
    except Exception as error:  # a damaged archive can make its reader raise anything
        raise UserError(f"{path} cannot be read ({error}): download it again.") from error
    if not members:
        raise UserError(f"{path} holds no images_*/<alphabet>/<character>/*.png: download it again.")
    characters = ["/".join(PurePosixPath(name).parts[1:3]) for name in members]
    names = sorted(set(characters))
    number = {name: label for label, name in enumerate(names)}
    labels = np.array([number[character] for character in characters], dtype=np.int64)
    return partial(_unzipped, path, members), labels, [printable(name) for name in names]


def _unzipped(path: Path, members: list[str]) -> Bits:
    from PIL import Image

    rows = []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in members:
                if archive.getinfo(name).file_size > MOST_BYTES:
                    raise ValueError(f"{name} unpacks to more than {MOST_BYTES:,} bytes")
                drawing = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("L"))
                if drawing.shape != (SIDE, SIDE):
                    raise UserError(
                        f"{path} holds {name} of {drawing.shape} pixels where {SIDE} x {SIDE} are expected."
                    )
                rows.append(np.packbits(drawing < 128))
    except UserError:
        raise
    except Exception as error:  # likewise, and so can a damaged drawing
        raise UserError(f"{path} cannot be read ({error}): download it again.") from error
    return np.stack(rows)


def _unpacked(row: Bits) -> npt.NDArray[np.uint8]:
    ink = np.unpackbits(row, count=SIDE**2).reshape(SIDE, SIDE)
    return (1 - ink) * np.uint8(255)
