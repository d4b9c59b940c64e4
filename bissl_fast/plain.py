"""Plain data from files that a stranger may have made: what cannot be read raises `ValueError`, and nothing else.

The parsers of JSON, YAML and NumPy raise a dozen types for damaged files, recurse as deeply as a file says, and take as
much memory as it announces.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

DEEPEST = 50  # levels of lists and groups within each other
MOST_VALUES = 1_000_000  # of a file of settings, aliases counted as often as they stand for something
MOST_BYTES = 1 << 30  # that the wanted arrays of an archive may take together

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but the tab and the end of a line, those that turn the direction of writing, and halves of
characters, which cannot be printed."""


def shown(text: str) -> str:
    """Text that steers no terminal: the characters that would are written out.

    Example:
        >>> print(shown("\\x1b[2Jleaf"))
        \\x1b[2Jleaf
    """
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or is nested more deeply than anything that is written here.

    Example:
        >>> parse_json('{"step": 3}')
        {'step': 3}
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text: data alone, whatever tags it has.

    Raises:
        ValueError: it is none, is nested too deeply, or stands for far more than it holds (by aliases of aliases).

    Example:
        >>> parse_yaml("seeds: 3")
        {'seeds': 3}
    """
    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # YAML's own errors, and what its dates and numbers raise
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    require_bounded(value)
    return value


def require_bounded(value: Any, lists: bool = True) -> None:
    """Refuse groups within groups without end, which few bytes can stand for.

    Args:
        value: that a file holds.
        lists: whether what lists hold counts, too.

    Raises:
        ValueError: it is nested too deeply, refers to itself, or stands for far more than it holds.
    """
    waiting, count = [(value, 0)], 0
    while waiting:
        inner, depth = waiting.pop()
        count += 1
        if depth > DEEPEST or count > MOST_VALUES:
            raise ValueError("it is nested too deeply, or refers to itself")
        if isinstance(inner, dict):
            waiting += [(child, depth + 1) for item in inner.items() for child in item]
        elif lists and isinstance(inner, list | tuple | set):
            waiting += [(child, depth + 1) for child in inner]


def load_array(path: Path, mapped: bool = False) -> npt.NDArray[Any]:
    """The array of a `.npy` file, in memory or mapped from the disk; nothing is unpickled.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it holds no whole array.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # which takes no memory that the file does not hold
    except (OSError, ValueError):
        raise
    except Exception as error:  # of a damaged header
        raise ValueError(f"it holds no array ({type(error).__name__})") from None
    return array if mapped else np.array(array)


def load_arrays(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an `.npz` file by name; nothing is unpickled.

    Raises:
        OSError: the file cannot be opened.
        KeyError: it lacks one of them.
        ValueError: it is damaged, or holds more than a gigabyte.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [archive.getinfo(f"{name}.npy") for name in names]
            if sum(member.file_size for member in members) > MOST_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
            return {name: _array(archive.read(member)) for name, member in zip(names, members, strict=True)}
    except (FileNotFoundError, IsADirectoryError, PermissionError, KeyError, ValueError):
        raise
    except Exception as error:  # a damaged archive can make its reader raise anything
        raise ValueError(str(error) or type(error).__name__) from None


def array_names(path: Path) -> list[str]:
    """What the arrays of an `.npz` file are called; errors likewise."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _array(data: bytes) -> npt.NDArray[Any]:
    """The array of a `.npy` file's bytes: NumPy's own reader takes the memory that the header asks for first."""
    file = io.BytesIO(data)
    major, _ = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = header(file)
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError("it holds objects, which are never unpickled here")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > len(data):
        raise ValueError(f"it announces {shape} {dtype} and is cut off")
    flat = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order="F" if by_columns else "C").copy()
