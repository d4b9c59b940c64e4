"""The text files of published sets, and sentences for those that are missing or damaged."""

from __future__ import annotations

from pathlib import Path

from bissl_fast.errors import UserError


def require(path: Path, what: str) -> Path:
    """The path, if a file or folder is there; reading from a pipe in its place would never end.

    Raises:
        UserError: There is none.
    """
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{what} is incomplete: {path} is missing; download or unpack the set again.")
    return path


def read_text(path: Path, what: str) -> str:
    """The text of a set's file.

    Raises:
        UserError: It is missing, or is no text in UTF-8.
    """
    try:
        return require(path, what).read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): download or unpack {what} again.") from error


def read_rows(path: Path, what: str, columns: int | None = None) -> list[list[str]]:
    """The words of every line that is not blank; with `columns`, each line must have so many.

    Raises:
        UserError: The file is missing, no text, or a line has another number of words.
    """
    rows = [line.split() for line in read_text(path, what).splitlines() if line.strip()]
    for row in rows:
        if columns is not None and len(row) != columns:
            raise UserError(
                f"{path} has the line '{' '.join(row)}' where {columns} words are expected: download {what} again."
            )
    return rows


def label_of(number: str | int, classes: int, path: Path) -> int:
    """The label of a class number that counts from 1, as in the files of many sets.

    Raises:
        UserError: There is no class of that number.
    """
    digits = str(number)
    if not digits.isdecimal() or len(digits) > 9 or not 1 <= int(digits) <= classes:
        raise UserError(
            f"{path} holds the class number {digits[:20]} where 1 to {classes} are expected: download the set again."
        )
    return int(number) - 1
