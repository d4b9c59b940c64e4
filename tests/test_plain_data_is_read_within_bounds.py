"""Whatever a file of JSON, YAML or arrays holds: its value, or a ValueError, and no more memory than the file has."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bissl_fast import plain
from bissl_fast.plain import array_names, load_array, load_arrays, parse_json, parse_yaml

LAUGHS = "a: &a [0,0,0,0,0,0,0,0,0,0]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", "9" * 5000, b"\xff\xfe"])
def test_json_that_is_no_value_or_nested_without_end(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    ["[" * 3000, "a: b: c", "2001-99-99", "9" * 5000, "&a [*a]", "&a {b: *a}", LAUGHS, "!!python/name:os.system",
     "!!python/object/apply:os.system ['true']", "!!int x", "!!timestamp 'x'", "? [a]\n: b", "[" * 60 + "]" * 60],
)  # fmt: skip
def test_yaml_that_is_no_data_refers_to_itself_or_stands_for_billions(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_yaml(text)


def test_yaml_may_name_a_value_and_use_it_again() -> None:
    assert parse_yaml("a: &a {lr: 0.1}\nb: *a") == {"a": {"lr": 0.1}, "b": {"lr": 0.1}}


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


WHOLE = saved(np.arange(12).reshape(3, 4))
DAMAGED = {
    "a header that never ends": WHOLE.replace(b"(3, 4)", b"(3, (("),
    "petabytes": WHOLE.replace(b"(3, 4), }              ", b"(3, 4000000000000000), }"[:23]),
    "negative sides": WHOLE.replace(b"(3, 4)", b"(-3,4)"),
    "cut off": WHOLE[:-9],
    "objects": saved(np.array([1], dtype="i8")).replace(b"'<i8'", b"'|O' "),
    "no magic": b"x" + WHOLE[1:],
    "a name for a type": WHOLE.replace(b"'<i8'", b"'abc'"),
    "nothing": b"",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_an_array_that_is_not_what_it_announces(content: bytes, tmp_path: Path) -> None:
    path, packed = tmp_path / "a.npy", tmp_path / "a.npz"
    path.write_bytes(content)
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.npy", content)
    for read in (lambda: load_array(path), lambda: load_array(path, mapped=True), lambda: load_arrays(packed, ["a"])):
        with pytest.raises(ValueError, match=r"."):
            read()


@pytest.mark.parametrize("array", [np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.zeros((2, 0, 3), "u1"),
                                   np.array(["a", "bc"]), np.float32(3)])  # fmt: skip
def test_arrays_are_those_that_were_saved(array: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=array, second=np.arange(3))
    found = load_arrays(tmp_path / "a.npz", ("second", "first"))
    assert list(found) == ["second", "first"]
    assert found["first"].dtype == np.asarray(array).dtype
    np.testing.assert_array_equal(found["first"], array)
    assert array_names(tmp_path / "a.npz") == ["first", "second"]
    if array.size > 1:
        np.save(tmp_path / "a.npy", array)
        np.testing.assert_array_equal(load_array(tmp_path / "a.npy"), array)


def test_a_small_archive_does_not_become_a_large_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", zeros=np.zeros(100_000))
    assert (tmp_path / "a.npz").stat().st_size < 2000
    monkeypatch.setattr(plain, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="unpacks to more than 1,000 bytes"):
        load_arrays(tmp_path / "a.npz", ["zeros"])


def test_a_damaged_archive_is_a_value_error_and_a_missing_array_a_key_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", zeros=np.zeros(3))
    with pytest.raises(KeyError):
        load_arrays(tmp_path / "a.npz", ["ones"])
    whole = (tmp_path / "a.npz").read_bytes()
    at = whole.rindex(b"PK\x01\x02")
    for content in (
        whole[:-30],
        whole[: at + 10] + b"\x63\x00" + whole[at + 12 :],
        whole[: at + 8] + b"\x01" + whole[at + 9 :],
    ):
        (tmp_path / "b.npz").write_bytes(content)  # cut off; packed by another method; said to be encrypted
        with pytest.raises(ValueError, match=r"."):
            load_arrays(tmp_path / "b.npz", ["zeros"])
