"""MATLAB files by our own reader: SciPy's values of whole files, and a ValueError for damaged ones."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from bissl_fast.data.sets.readers import mat_file
from bissl_fast.data.sets.readers.mat_file import HEADER, read_variable

ROWS = np.array([(1, "a.jpg"), (2, "b é.jpg")], dtype=[("class", object), ("fname", object)])
VALUES: dict[str, Any] = {
    "doubles": np.arange(6.0).reshape(2, 3), "bytes": np.arange(300, dtype=np.uint8)[None], "text": "a longer text",
    "wide": np.array([[2**40, -1]], dtype=np.int64), "cells": np.array(["x", "Łódź"], dtype=object), "rows": ROWS,
    "floats": np.float32([[0.5]]), "none": np.zeros((0, 3)),
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
def test_values_are_scipys(compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, VALUES, do_compression=compressed)
    data, theirs = path.read_bytes(), loadmat(path)
    for name in ("doubles", "bytes", "wide", "floats", "none"):
        found = read_variable(data, name)
        assert found.shape == theirs[name].shape
        np.testing.assert_array_equal(found, theirs[name])
    assert read_variable(data, "text") == str(theirs["text"][0])
    assert read_variable(data, "cells") == [str(cell[0]) for cell in theirs["cells"][0]]
    found = read_variable(data, "rows")
    assert [row["fname"] for row in found] == [str(row["fname"][0]) for row in theirs["rows"][0]]
    assert [row["class"].tolist() for row in found] == [row["class"].tolist() for row in theirs["rows"][0]]
    with pytest.raises(KeyError):
        read_variable(data, "absent")


def matrix(flags: bytes, sizes: bytes, content: bytes) -> bytes:
    """A file of one matrix `x`, whose elements are given with their tags."""
    body = flags + sizes + struct.pack("<HH4s", 1, 1, b"x") + content
    return b" " * 124 + b"\x00\x01IM" + struct.pack("<II", 14, len(body)) + body


FLAGS = struct.pack("<IIII", 6, 8, 6, 0)
SIZES = struct.pack("<IIii", 5, 8, 1, 1)
NUMBER = struct.pack("<IId", 9, 8, 7)
DAMAGED = {
    "a number type that does not exist": matrix(FLAGS, SIZES, struct.pack("<IId", 76, 8, 7)),
    "fewer numbers than announced": matrix(FLAGS, struct.pack("<IIii", 5, 8, 2, 3), NUMBER),
    "a negative size": matrix(FLAGS, struct.pack("<IIii", 5, 8, -1, 1), NUMBER),
    "an element that ends behind the file": matrix(FLAGS, SIZES, struct.pack("<IId", 9, 2**31, 7)),
    "a class that no label has": matrix(struct.pack("<IIII", 6, 8, 17, 0), SIZES, NUMBER),
    "billions of cells": matrix(struct.pack("<IIII", 6, 8, 1, 0), struct.pack("<IIii", 5, 8, 2**30, 2), b""),
    "fields of no width": matrix(struct.pack("<IIII", 6, 8, 2, 0), SIZES, struct.pack("<HHiHH4s", 5, 4, 0, 1, 1, b"a")),
    "another level": b"x" * 200,
    "nothing": b"",
    "a damaged packing": b" " * 124 + b"\x00\x01IM" + struct.pack("<II", 15, 8) + b"x" * 8,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_a_value_error(content: bytes) -> None:
    assert read_variable(matrix(FLAGS, SIZES, NUMBER), "x") == 7
    with pytest.raises(ValueError, match=r"its? "):
        read_variable(content, "x")


def test_a_small_file_does_not_become_a_large_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zlib.compress(matrix(FLAGS, SIZES, NUMBER)[HEADER:] + bytes(10_000))
    data = b" " * 124 + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed
    assert read_variable(data, "x") == 7
    monkeypatch.setattr(mat_file, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="unpacks to more"):
        read_variable(data, "x")
