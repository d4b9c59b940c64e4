"""What a reader hands over: splits that are listed and labelled, but not yet decoded."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.dataset import Images, Targets
from bissl_fast.data.sets.readers.decode import Sides, decode, printable, square_array
from bissl_fast.data.sets.readers.stacks import decode_channels
from bissl_fast.data.sets.splits import TEST_SEED, VALIDATION_FRACTION, VALIDATION_SEED, stratified_holdout
from bissl_fast.errors import UserError


@dataclass(frozen=True, eq=False)
class Source:
    """One split before it is decoded.

    Args:
        name: Set and split, e.g. `"dtd/train"`.
        count: Number of images.
        read: `read(index, size)` gives `(side(size), side(size), channels)` uint8, or raises `UnreadableImageError`.
        describe: `describe(index)` names an image in messages.
        identity: Digest of all that determines pixels and labels, without reading the pixels: files, sizes, times.
        labels: As those of `ImageSet`; `None` for an unlabelled split.
        classes: Class names by label.
        native: Side of the stored images, if all are equal: these are not enlarged.
        files: The file of every image; empty where the images lie in arrays.
        whole: Gives the same split with whole images, stretched to squares; `None` where the images are squares.
        sides: Of whole images, `sides(index)` is the height and width before, once `read` has read the image.
        remarks: `remarks(index)` says what `read` turned, scaled or guessed, once it has read the image.
        notes: Sentences that a user should read.
        channels: Of every image: 3 of RGB.
    """

    name: str
    count: int
    read: Callable[[int, int], Images]
    describe: Callable[[int], str]
    identity: str
    labels: Targets | None = None
    classes: tuple[str, ...] = ()
    native: int | None = None
    files: tuple[Path, ...] = ()
    whole: Callable[[], Source] | None = None
    sides: Callable[[int], Sides] | None = None
    remarks: Callable[[int], Sequence[str]] = lambda index: ()
    notes: tuple[str, ...] = ()
    channels: int = 3

    def side(self, size: int) -> int:
        """Side of the images that `read(..., size)` gives."""
        return size if self.native is None else min(size, self.native)

    def take(self, indices: npt.NDArray[np.int64], name: str) -> Source:
        """The part of this split at `indices`."""
        whole, sides = self.whole, self.sides
        return replace(
            self,
            name=name,
            count=len(indices),
            read=lambda index, size: self.read(int(indices[index]), size),
            describe=lambda index: self.describe(int(indices[index])),
            identity=digest(self.identity, indices),
            labels=None if self.labels is None else self.labels[indices],
            whole=None if whole is None else lambda: whole().take(indices, name),
            sides=None if sides is None else lambda index: sides(int(indices[index])),
            files=tuple(self.files[index] for index in indices) if self.files else (),
            remarks=lambda index: self.remarks(int(indices[index])),
        )

    def relabelled(self, labels: Targets, classes: tuple[str, ...], name: str) -> Source:
        """The same images under other labels."""
        whole = self.whole
        return replace(
            self,
            name=name,
            labels=labels,
            classes=classes,
            identity=digest(self.identity, labels, "\n".join(classes)),
            whole=None if whole is None else lambda: whole().relabelled(labels, classes, name),
        )

    def unlabelled(self) -> Source:
        """The same images without their labels."""
        whole = self.whole
        return replace(
            self,
            labels=None,
            classes=(),
            identity=digest(self.identity, "unlabelled"),
            whole=None if whole is None else lambda: whole().unlabelled(),
        )


@dataclass(frozen=True)
class Listing:
    """The labelled splits of a set, and sentences that a user should read."""

    train: Source
    val: Source
    test: Source
    notes: tuple[str, ...] = ()


def digest(*parts: str | npt.NDArray[Any]) -> str:
    """Hash strings and arrays; the parts' lengths are hashed too, so that they cannot run into each other."""
    total = hashlib.sha256()
    for part in parts:
        data = (
            part.encode("utf-8", "surrogateescape") if isinstance(part, str) else np.ascontiguousarray(part).tobytes()
        )
        total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()


def file_states(paths: Iterable[Path], root: Path) -> str:
    """One line per file: its path below `root`, size and time of last change. A broken link counts as an empty file."""
    lines = []
    for path in paths:
        state = path.stat() if os.path.exists(path) else None
        size, time = (state.st_size, state.st_mtime_ns) if state else (0, 0)
        lines.append(f"{path.relative_to(root).as_posix()} {size} {time}")
    return "\n".join(lines)


def variant(as_shown: bool, whole: bool, channels: int) -> str:
    """How files are read, for the identity of a source; empty where nothing is special."""
    return ("as shown" if as_shown else "") + (" whole" if whole else "") + (f" {channels}" if channels != 3 else "")


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


def from_array(
    name: str,
    load: Callable[[], npt.NDArray[np.uint8]],
    native: int,
    files: Sequence[Path],
    labels: npt.NDArray[np.int64] | None,
    classes: tuple[str, ...],
    count: int | None = None,
    unpack: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] | None = None,
) -> Source:
    """A source whose images lie in one array.

    Args:
        name: Set and split.
        load: Gives `(N, H, W)` or `(N, H, W, 3)` uint8; called once, when the first image is read.
        native: Side of the images in pixels.
        files: The files behind the array.
        labels: `(N,)` int64 or `None`.
        classes: Class names by label.
        count: N, where there are no labels to count.
        unpack: Makes `(H, W)` or `(H, W, 3)` of one stored image, where `load` gives another form.

    Raises:
        UserError: A label lies outside the range of the classes.
    """
    if labels is not None and len(labels) and not (labels.min() >= 0 and labels.max() < len(classes)):
        raise UserError(
            f"{name} holds labels from {labels.min()} to {labels.max()} where {len(classes)} classes are expected: "
            f"the files in {files[0].parent} are damaged; download them again."
        )
    images = once(load)
    return Source(
        name,
        len(labels) if labels is not None else count or 0,
        read=lambda index, size: square_array(unpack(images()[index]) if unpack else images()[index], size),
        describe=lambda index: f"image {index} of {files[0].name}",
        identity=digest(file_states(files, files[0].parent), np.zeros(0) if labels is None else labels),
        labels=labels,
        classes=classes if labels is not None else (),
        native=native,
    )


def once(load: Callable[[], npt.NDArray[np.uint8]]) -> Callable[[], npt.NDArray[np.uint8]]:
    """The same function, called at most once, whichever of several threads comes first."""
    lock, results = threading.Lock(), list[npt.NDArray[np.uint8]]()

    def get() -> npt.NDArray[np.uint8]:
        with lock:
            if not results:
                results.append(load())
        return results[0]

    return get


def carve(
    source: Source, name: str, seed: int = VALIDATION_SEED, kept_name: str | None = None
) -> tuple[Source, Source, tuple[str, ...]]:
    """Hold out a stratified fifth of a labelled split.

    Returns:
        The rest, the held-out part called `name`, and a note if a class is too small to give an image.

    Raises:
        UserError: No class has two images.
    """
    assert source.labels is not None
    labels = source.labels.astype(np.int64, copy=False)
    kept, held = stratified_holdout(labels, VALIDATION_FRACTION, seed)
    if len(held) == 0:
        raise UserError(
            f"No class of {source.name} has two images, so none can be held out as {name}: "
            f"add images, or a split {name.split('/')[-1]} of its own."
        )
    counts = np.bincount(labels, minlength=len(source.classes))
    single = [c for c, n in zip(source.classes, counts, strict=True) if n == 1]
    notes = (f"{listed(single)} of {source.name} has one image only: it stays in training.",) if single else ()
    return source.take(kept, kept_name or source.name), source.take(held, name), notes


def with_validation(train: Source, test: Source, notes: tuple[str, ...] = ()) -> Listing:
    """A set without a validation split: a fixed fifth of the training images becomes one (BiSSL, Appendix B.1)."""
    rest, val, more = carve(train, f"{train.name.split('/')[0]}/val")
    return Listing(rest, val, test, notes + more)


def split_in_three(whole: Source, why: str, notes: tuple[str, ...] = ()) -> Listing:
    """A set without splits: a stratified fifth is for the test, a fifth of the rest for validation, always alike.

    Args:
        whole: all of its images, labelled.
        why: the beginning of the note that tells it.
        notes: to go before it.
    """
    rest, test, few = carve(whole, f"{whole.name}/test", TEST_SEED)
    train, val, more = carve(rest, f"{whole.name}/val", kept_name=f"{whole.name}/train")
    told = f"{why}: {train.count} images train, {val.count} validate, {test.count} test."
    return Listing(train, val, test, (*notes, told, *dict.fromkeys(few + more)))


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Names for a sentence: the first few, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return printable(", ".join(names[:limit])) + more
