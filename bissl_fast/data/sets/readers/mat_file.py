"""MATLAB files of level 5: numbers, text, cells and structures, read so that a damaged file ends in `ValueError`.

SciPy's reader looks number types up without a check and ends the process where a file names one that does not exist.
Format: "MAT-File Format", The MathWorks, sections on level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

MOST_BYTES = 1 << 28  # that a variable may unpack to
DEEPEST = 8  # cells and structures within each other
HEADER = 128
CELL, STRUCT, CHAR = 1, 2, 4
NUMERIC = range(6, 16)
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}


class Element(NamedTuple):
    """A typed piece of a file."""

    kind: int
    data: bytes


class Matrix(NamedTuple):
    """A variable, or what lies in a cell or a field: its class and shape, and the elements with its content."""

    kind: int
    shape: tuple[int, ...]
    content: Reader

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Reader:
    """Takes elements off some bytes, one after the other.

    Args:
        data: the bytes.
        order: `<` or `>`.
    """

    def __init__(self, data: bytes, order: str) -> None:
        self.data, self.order, self.at = data, order, 0

    @property
    def ended(self) -> bool:
        return self.at >= len(self.data)

    def element(self) -> Element:
        """The next one; of up to four bytes it may lie within its own tag."""
        (word,) = self._words(1)
        if word >> 16:
            kind, size, start, end = word & 0xFFFF, word >> 16, self.at, self.at + 4
        else:
            kind, (size,), start = word, self._words(1), self.at
            end = start + size + (0 if kind == COMPRESSED else -size % 8)
        if size > len(self.data) - start or (word >> 16 and size > 4):
            raise ValueError("it is cut off")
        self.at = end
        return Element(kind, self.data[start : start + size])

    def numbers(self) -> np.ndarray[tuple[int], np.dtype[Any]]:
        """The next element, of numbers of any type."""
        kind, data = self.element()
        if kind not in NUMBERS:
            raise ValueError(f"it holds elements of the type {kind} where numbers are expected")
        return np.frombuffer(data, self.order + NUMBERS[kind])

    def text(self) -> str:
        """The next element, of characters."""
        kind, data = self.element()
        if kind not in TEXTS:
            raise ValueError(f"it holds elements of the type {kind} where text is expected")
        coding = TEXTS[kind] + {"<": "-le", ">": "-be"}[self.order] if TEXTS[kind] == "utf-16" else TEXTS[kind]
        return data.decode(coding, "replace")

    def _words(self, count: int) -> tuple[int, ...]:
        words = struct.unpack_from(f"{self.order}{count}I", self.data, self.at)
        self.at += 4 * count
        return words


def read_variable(data: bytes, name: str) -> Any:
    """A variable of a MATLAB file.

    Args:
        data: the whole file.
        name: of the variable.

    Returns:
        Of numbers an array in MATLAB's shape; of characters text; of a cell array a list of its cells, of a structure
        array a list of mappings from field to value, both in the order of columns.

    Raises:
        KeyError: there is none of that name.
        ValueError: the file is damaged, or of another level.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:HEADER])
    if order is None:
        raise ValueError("it is not of level 5, which `save -v7` writes")
    file = Reader(data[HEADER:], order)
    try:
        while not file.ended:
            kind, content = file.element()
            if kind == COMPRESSED:
                kind, content = Reader(unpacked(content), order).element()
            if kind == MATRIX and content:
                found, matrix = _named(content, order)
                if found == name:
                    return _value(matrix)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"it is cut off or damaged ({error})") from None
    raise KeyError(name)


def unpacked(data: bytes) -> bytes:
    """What zlib has packed, within bounds."""
    packer = zlib.decompressobj()
    found = packer.decompress(data, MOST_BYTES)
    if not packer.eof:
        raise ValueError("it is cut off, or unpacks to more than a set's labels can take")
    return found


def _named(content: bytes, order: str) -> tuple[str, Matrix]:
    """A matrix and its name."""
    inner = Reader(content, order)
    flags, sizes, name = inner.numbers(), inner.numbers(), inner.text()
    if flags.dtype.kind not in "iu" or len(flags) != 2 or sizes.dtype.kind != "i" or sizes.min(initial=0) < 0:
        raise ValueError("its matrices have no class or size")
    return name, Matrix(int(flags[0]) & 0xFF, tuple(map(int, sizes)), inner)


def _value(matrix: Matrix, depth: int = 0) -> Any:
    kind, shape, inner = matrix
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    if kind in NUMERIC:
        values = inner.numbers()
        if len(values) != matrix.size:
            raise ValueError(f"it announces {matrix.size} numbers and holds {len(values)}")
        return values.reshape(shape, order="F")
    if kind == CHAR:
        return inner.text() if matrix.size else ""
    if kind not in (CELL, STRUCT):
        raise ValueError(f"it holds a matrix of the class {kind}, which no set's labels have")
    if matrix.size > len(inner.data):
        raise ValueError("it is cut off")
    if kind == CELL:
        return [_inside(inner, depth) for _ in range(matrix.size)]
    width, names = inner.numbers(), inner.element().data
    if width.dtype.kind != "i" or len(width) != 1 or width[0] < 1:
        raise ValueError("its structures have no fields")
    fields = [names[at : at + width[0]].split(b"\0")[0].decode("latin1") for at in range(0, len(names), width[0])]
    return [{field: _inside(inner, depth) for field in fields} for _ in range(matrix.size)]


def _inside(inner: Reader, depth: int) -> Any:
    """The next matrix within another one; an empty one has no content at all."""
    kind, content = inner.element()
    if kind != MATRIX:
        raise ValueError(f"it holds elements of the type {kind} where matrices are expected")
    return _value(_named(content, inner.order)[1], depth + 1) if content else np.zeros((0, 0))
