"""Sets whose images lie in arrays: STL10, FashionMNIST, CIFAR10 and CIFAR100 with three kinds of labels."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import pickletools
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.dataset import Labels
from bissl_fast.data.sets.readers.from_arrays import from_array
from bissl_fast.data.sets.readers.holdout import with_validation
from bissl_fast.data.sets.readers.source import Listing, Source
from bissl_fast.data.sets.readers.text import read_text, require
from bissl_fast.data.sets.splits import cross_classes
from bissl_fast.errors import UserError

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
STL10_SIDE, CIFAR_SIDE = 96, 32
MOST_BYTES = 1 << 29  # of an IDX file, unpacked: ten times FashionMNIST's training images


# STL10: raw uint8, (N, 3, width, height), labels from 1


def stl10(folder: Path) -> Listing:
    """Read `train_X.bin`, `train_y.bin`, `test_X.bin`, `test_y.bin` and `class_names.txt`, if that is there."""
    names = folder / "class_names.txt"
    classes = tuple(read_text(names, "STL10").split()) if names.exists() else tuple(f"class {i}" for i in range(1, 11))
    parts = {}
    for split in ("train", "test"):
        images = require(folder / f"{split}_X.bin", "STL10")
        labels = np.fromfile(require(folder / f"{split}_y.bin", "STL10"), np.uint8).astype(np.int64) - 1
        _stl10_check(images, len(labels))
        load = partial(_stl10_images, images)
        parts[split] = from_array(f"stl10/{split}", load, STL10_SIDE, (images,), labels, classes)
    return with_validation(parts["train"], parts["test"])


def stl10_unlabelled(folder: Path) -> Source:
    """Read `unlabeled_X.bin`: 100,000 images."""
    images = require(folder / "unlabeled_X.bin", "STL10")
    count = _stl10_check(images)
    load = partial(_stl10_images, images)
    return from_array("stl10/unlabelled", load, STL10_SIDE, (images,), None, (), count)


def _stl10_check(path: Path, expected: int | None = None) -> int:
    count, rest = divmod(path.stat().st_size, 3 * STL10_SIDE * STL10_SIDE)
    if rest or (expected is not None and count != expected):
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes, which is not {expected or 'a whole number of'} images of "
            f"3 x {STL10_SIDE} x {STL10_SIDE} bytes: it is cut off; download STL10 again."
        )
    return count


def _stl10_images(path: Path) -> npt.NDArray[np.uint8]:
    stored = np.memmap(path, np.uint8, mode="r").reshape(-1, 3, STL10_SIDE, STL10_SIDE)  # (N, 3, W, H)
    return stored.transpose(0, 3, 2, 1)  # (N, H, W, 3)


# FashionMNIST: IDX files, plain or gzipped


def fashion_mnist(folder: Path) -> Listing:
    """Read the four IDX files `{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]`."""
    parts = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _plain_or_gz(folder / f"{prefix}-images-idx3-ubyte")
        labels = read_idx(_plain_or_gz(folder / f"{prefix}-labels-idx1-ubyte")).reshape(-1).astype(np.int64)
        load = partial(_fashion_images, images, len(labels))
        parts[split] = from_array(f"fashionmnist/{split}", load, 28, (images,), labels, FASHION_CLASSES)
    return with_validation(parts["train"], parts["test"])


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in `.gz`.

    Raises:
        UserError: The file is cut off, or is no such file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)  # a few bytes may unpack to more than memory holds
        zeros, kind, dimensions = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
    except (EOFError, OSError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is cut off or damaged ({error}): download it again.") from error
    if (zeros, kind) != (0, 8):
        raise UserError(
            f"{path} is no IDX file of unsigned bytes (it starts with {data[:4].hex()}): download it again."
        )
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if body.size != math.prod(shape):
        raise UserError(f"{path} announces {shape} bytes and holds {body.size}: it is cut off; download it again.")
    return body.reshape(shape)


def _plain_or_gz(path: Path) -> Path:
    return path if path.exists() else require(path.with_name(path.name + ".gz"), "FashionMNIST")


def _fashion_images(path: Path, expected: int) -> npt.NDArray[np.uint8]:
    images = read_idx(path)
    if images.shape != (expected, 28, 28):
        raise UserError(f"{path} holds an array of {images.shape} where {(expected, 28, 28)} is expected.")
    return images


# CIFAR: pickles of dictionaries


def cifar10(folder: Path) -> Listing:
    """Read the batches of `cifar-10-batches-py`."""
    batches = [folder / f"data_batch_{i}" for i in range(1, 6)]
    files = batches, folder / "test_batch"
    return with_validation(*_cifar("cifar10", folder / "batches.meta", *files, "labels", "label_names"))


def cifar100(folder: Path) -> Listing:
    """Read `cifar-100-python` with its 100 fine labels."""
    return with_validation(*_cifar100(folder))


def cifar100_coarse(folder: Path) -> Listing:
    """Read `cifar-100-python` with its 20 superclasses; train, validation and test images are those of `cifar100`."""
    listing, (superclass, names) = cifar100(folder), _superclasses(folder)

    def coarse(source: Source) -> Source:
        return source.relabelled(superclass[source.labels], names, source.name.replace("cifar100", "cifar100-coarse"))

    return Listing(coarse(listing.train), coarse(listing.val), coarse(listing.test), listing.notes)


def cifar100_cross(folder: Path) -> Listing:
    """Read the half of CIFAR-100's classes that :func:`cross_classes` leaves for evaluation, labelled 0 to 49.

    Every superclass has two or three of its five classes here, the others in :func:`cifar100_cross_pretext`. Source:
    FUSSL, "Cross-class/cluster learning"; which classes they are is not published, so the choice is ours.
    """
    listing, (superclass, _) = cifar100(folder), _superclasses(folder)
    chosen = np.flatnonzero(~cross_classes(superclass))

    def half(source: Source) -> Source:
        assert source.labels is not None
        name = source.name.replace("cifar100", "cifar100-cross")
        rows = np.flatnonzero(np.isin(source.labels, chosen))
        classes = tuple(source.classes[label] for label in chosen)
        return source.take(rows, name).relabelled(np.searchsorted(chosen, source.labels[rows]), classes, name)

    return Listing(half(listing.train), half(listing.val), half(listing.test), listing.notes)


def cifar100_cross_pretext(folder: Path) -> Source:
    """All training images of the other half of the classes, without their labels: 25,000."""
    (train, _), (superclass, _) = _cifar100(folder), _superclasses(folder)
    rows = np.flatnonzero(cross_classes(superclass)[train.labels])
    return train.take(rows, "cifar100-cross/unlabelled").unlabelled()


def _cifar100(folder: Path) -> tuple[Source, Source]:
    """Training and test images with fine labels."""
    files = [folder / "train"], folder / "test"
    return _cifar("cifar100", folder / "meta", *files, "fine_labels", "fine_label_names")


def _superclasses(folder: Path) -> tuple[Labels, tuple[str, ...]]:
    """The superclass of every class, (classes,), by the training images' two labels; and the superclasses' names."""
    path, meta = folder / "train", folder / "meta"
    content, description = load_plain_pickle(require(path, "cifar100")), load_plain_pickle(require(meta, "cifar100"))
    names = tuple(_field(meta, description, "coarse_label_names"))
    fine, coarse = (np.asarray(_field(path, content, f"{kind}_labels"), dtype=np.int64) for kind in ("fine", "coarse"))
    superclass = np.full(len(_field(meta, description, "fine_label_names")), -1, dtype=np.int64)
    superclass[fine] = coarse
    if fine.shape != coarse.shape or not np.array_equal(superclass[fine], coarse):
        raise UserError(f"{path} gives images of one class several superclasses: download the set again.")
    if not (superclass.min() >= 0 and superclass.max() < len(names)):
        raise UserError(
            f"{path} does not give each of {len(superclass)} classes one of {len(names)} superclasses: download the "
            "set again."
        )
    return superclass, names


def _cifar(
    name: str, meta: Path, train: list[Path], test: Path, labels_key: str, names_key: str
) -> tuple[Source, Source]:
    classes = tuple(_field(meta, load_plain_pickle(require(meta, name)), names_key))

    def source(split: str, files: list[Path]) -> Source:
        contents = [load_plain_pickle(require(file, name)) for file in files]
        labels: Labels = np.concatenate([np.asarray(_field(f, c, labels_key), dtype=np.int64)
                                 for f, c in zip(files, contents, strict=True)])  # fmt: skip
        pixels = [np.asarray(_field(f, c, "data")) for f, c in zip(files, contents, strict=True)]
        if sum(map(len, pixels)) != len(labels) or any(p.shape[1:] != (3 * CIFAR_SIDE**2,) for p in pixels):
            raise UserError(f"{files[0].parent} holds images that do not match their labels: download {name} again.")
        return from_array(f"{name}/{split}", partial(_cifar_images, pixels), CIFAR_SIDE, files, labels, classes)

    return source("train", train), source("test", [test])


def _cifar_images(pixels: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    return np.concatenate(pixels).reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1)


def _field(path: Path, content: dict[str, Any], key: str) -> Any:
    if key not in content:
        raise UserError(f"{path} has no entry {key!r}, only {sorted(content)}: download the set again.")
    return content[key]


class PlainUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and NumPy arrays, and refuses whatever else a pickle could run."""

    _ALLOWED = frozenset(
        {
            ("_codecs", "encode"),
            *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a data file has no need of")
        if name == "_reconstruct":
            return _empty_array
        return name if name == "ndarray" else super().find_class(module, name)  # the class itself is not to be called


def _empty_array(*_: Any) -> npt.NDArray[np.int8]:
    """What an array's state is then read into: NumPy's own function takes as much memory as it is told to."""
    return np.zeros(0, dtype=np.int8)


def _require_few_parts(data: bytes) -> None:
    """Refuse numbers of parts beyond their count: the unpickler takes memory for all numbers below."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise pickle.UnpicklingError(f"it numbers one of its parts {argument}")


def load_plain_pickle(path: Path) -> dict[str, Any]:
    """Read a dictionary from a pickle of Python 2 or 3 without running code from it.

    Raises:
        UserError: The file is damaged, or wants more than plain data.
    """
    try:
        data = path.read_bytes()
        _require_few_parts(data)
        content = PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} cannot be read ({error}): download it again from its official page.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where a dictionary is expected: download it again.")
    return {key if isinstance(key, str) else str(key, "latin1"): value for key, value in content.items()}
