"""Harmless damage, drawn from a seed: bytes of a file changed, or one value within what it holds."""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
from typing import Any

import yaml

MOST_BYTES = 1 << 20
INTEGERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63)
TOKENS = (
    b"", b"\0", b"\xff", b"\n", b"\r\n", b" ", b"0", b"-1", b"1e999", b"9" * 30, b"9" * 5000, b"NaN", b"null", b"true",
    b"[", b"{", b"]", b"}", b'"', b"'", b":", b",", b"../", b"/", b"\\", b"..", b"<b>", b"&a ", b"*a",
    b"!!python/name:x", b"!!binary x", b"2001-99-99", b"[" * 3000, b'{"a":' * 3000, b"a" * 5000,
    "\u202e\u00e9\U0001f600".encode(),
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.0, -0.5, 1e308, float("nan"), float("inf"),
    "", "a", "\0", "9" * 30, "<b>", "../..", "é\u202e", "nan", [], {}, [[]], [0], [None], ["a", 1], {"a": 1}, {"": 0},
    [1.0, 2.0, 3.0], [{}], "x" * 3000,
)  # fmt: skip


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The content of a file, damaged in one to four places: within what it packs or writes down, or anywhere.

    Args:
        data: a whole file.
        draw: decides everything, so that a seed gives the same bytes again.
    """
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        change = draw.choice((_bytes, _bytes, _structure))
        data = change(data, draw)[:MOST_BYTES]
    return data


def _bytes(data: bytes, draw: random.Random) -> bytes:
    """A few bytes flipped, overwritten, inserted, repeated, removed or cut off."""
    at, length = draw.randrange(len(data) + 1), min(len(data), int(2 ** draw.uniform(0, 9)))
    before, after = data[:at], data[at:]
    kind = draw.randrange(9)
    if kind == 0 and after:
        return before + bytes([after[0] ^ 1 << draw.randrange(8)]) + after[1:]
    if kind == 1:
        return before + draw.randbytes(min(length, 16)) + after[min(length, 16) :]
    if kind == 2:
        width, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
        return before + (draw.choice(INTEGERS) % 256**width).to_bytes(width, order) + after[width:]
    if kind == 3:
        return before + draw.choice(TOKENS) + after
    if kind == 4:
        return before + draw.choice(TOKENS) + after[length:]
    if kind == 5:
        return before + after[length:]
    if kind == 6:
        return before + after[:length] * draw.choice((2, 3, 30)) + after[length:]
    if kind == 7:
        return before
    start = draw.randrange(len(data) + 1)
    return before + data[start : start + length] + after[length:]


def _structure(data: bytes, draw: random.Random) -> bytes:
    """Something within what the file holds, packed again so that its checksums are right; else some of its bytes."""
    try:
        if data[:2] == b"PK":
            return _zipped(data, draw)
        if data[:2] == b"\x1f\x8b":
            return gzip.compress(_bytes(gzip.decompress(data), draw), 1, mtime=0)
        if data[:1] in b"{[" and data:
            return json.dumps(_changed(json.loads(data), draw)).encode()
        if data[:8] == b"version:":
            return yaml.dump(_changed(yaml.load(data, yaml.CSafeLoader), draw), Dumper=yaml.CSafeDumper).encode()
    except Exception:  # damaged before
        pass
    return _bytes(data, draw)


def _zipped(data: bytes, draw: random.Random) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        names = old.namelist()
        chosen, dropped = draw.choice(names), draw.random() < 0.1
        for name in names:
            content = old.read(name)
            if name != chosen:
                new.writestr(name, content)
            elif not dropped:
                new.writestr(name, _bytes(content, draw))
    return packed.getvalue()


def _changed(value: Any, draw: random.Random) -> Any:
    """Plain data with one value, at any depth, replaced, removed, repeated or added."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or draw.random() < 0.1:
        return draw.choice(VALUES)
    key = draw.choice(keys)
    child = _changed(value[key], draw) if draw.random() < 0.85 else draw.choice(VALUES)
    kind = draw.random()
    if isinstance(value, dict):
        rest = {name: inner for name, inner in value.items() if name != key}
        return rest if kind < 0.1 else {**value, (str(draw.choice(VALUES))[:9] if kind < 0.2 else key): child}
    return value[:key] + ([] if kind < 0.1 else [child, child] if kind < 0.2 else [child]) + value[key + 1 :]
