"""The same image in two places: in training and test, under two labels, or among the images of the pretext task."""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.dataset import Images
from bissl_fast.data.sets.readers.source import Source, listed

_TAIL = 4096  # bytes at the end of a file that are compared before all of it


class Duplicates:
    """Collects images and tells which of them are the same, byte for byte, in two splits or under two labels.

    Example:
        >>> found = Duplicates(sources)  # doctest: +SKIP
        >>> found.add(0, index, image)  # doctest: +SKIP
        >>> found.notes()  # doctest: +SKIP
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._places: dict[bytes, list[tuple[int, int]]] = defaultdict(list)

    def add(self, source: int, index: int, image: Images) -> None:
        """Add an image: what counts are the bytes of its file or, of an image in an array, its pixels.

        Args:
            source: Number of its source.
            index: Number of the image in it.
            image: Its pixels, not resized if it has no file.
        """
        files = self._sources[source].files
        data = files[index].read_bytes() if files else np.ascontiguousarray(image).tobytes()
        self._places[hashlib.blake2b(data, digest_size=16).digest()].append((source, index))

    def notes(self) -> tuple[str, ...]:
        """A sentence for each pair of splits that share images, and one on images under several labels."""
        shared: dict[str, list[str]] = defaultdict(list)
        contradicted: list[str] = []
        for places in self._places.values():
            first = {source: index for source, index in reversed(places)}
            pairs = [(a, b) for a in sorted(first) for b in sorted(first) if a < b]
            for a, b in pairs:
                splits = f"in {self._sources[a].name} and in {self._sources[b].name}"
                shared[splits].append(f"{self._name(a, first[a])} = {self._name(b, first[b])}")
            labels = {label: place for place in places if (label := self._label(*place))}
            if len(labels) > 1:
                names = [f"{self._name(*place)} ({label})" for label, place in labels.items()]
                contradicted.append(" = ".join(names))
        if contradicted:
            shared["under several labels"] = contradicted
        return tuple(
            f"The same byte for byte {where}: {len(names)} ({listed(names)})." for where, names in shared.items()
        )

    def _name(self, source: int, index: int) -> str:
        return self._sources[source].describe(index)

    def _label(self, source: int, index: int) -> str:
        labels, classes = self._sources[source].labels, self._sources[source].classes
        if labels is None:
            return ""
        if labels.ndim == 1:
            return classes[int(labels[index])]
        return " and ".join(name for name, value in zip(classes, labels[index], strict=True) if value == 1)


def same_files(files: Sequence[Path], others: Sequence[Path]) -> npt.NDArray[np.bool_]:
    """Which files hold the bytes of one of the others.

    Args:
        files: N paths.
        others: Any number of paths.

    Returns:
        (N,) bool. Only files of the same size are opened, and only those with the same end are read whole.
    """
    sizes, other_sizes = [_size(path) for path in files], [_size(path) for path in others]
    common = (set(sizes) & set(other_sizes)) - {0}
    candidates: dict[tuple[int, bytes], list[Path]] = defaultdict(list)
    for path, size in zip(others, other_sizes, strict=True):
        if size in common:
            candidates[size, _tail(path, size)].append(path)

    def found(path: Path, size: int) -> bool:
        alike = candidates.get((size, _tail(path, size)), ()) if size in common else ()
        return any(os.path.samefile(path, other) or filecmp.cmp(path, other, shallow=False) for other in alike)

    return np.array([found(path, size) for path, size in zip(files, sizes, strict=True)], dtype=bool)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() and os.access(path, os.R_OK) else 0


def _tail(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        return file.read()
