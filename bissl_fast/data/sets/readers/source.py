"""What a reader hands over: splits that are listed and labelled, but not yet decoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.dataset import Images, Targets
from bissl_fast.data.sets.readers.decode import Sides, printable


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


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Names for a sentence: the first few, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return printable(", ".join(names[:limit])) + more
