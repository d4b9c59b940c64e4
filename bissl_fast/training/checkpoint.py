"""Checkpoints: the last few of a stage, each whole and with a checksum, so that a damaged one costs a minute and not a
run."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.training.console import say
from bissl_fast.training.files import unwritable, write_atomic
from bissl_fast.training.memory import is_full
from bissl_fast.training.ranks.lead import writes
from bissl_fast.version import __version__

FORMAT = 1
"""Raised when checkpoints of before could not be read any more. It stands in their first line."""

FILES = "checkpoint*"
"""All that is left of checkpoints in a stage's folder."""

_MAGIC = b"bissl-fast-checkpoint"
_ZIP = b"PK"  # what checkpoints began with before they had a first line


class DamagedError(Exception):
    """A checkpoint does not hold what was written."""


class Checkpoints:
    """The last checkpoints of a stage: ``checkpoint.pt``, and before it ``checkpoint-1.pt`` and so on.

    Args:
        folder: the stage's.
        kept: how many.
        console: where a damaged one is told.

    Example:
        >>> Checkpoints(Path("runs/demo/bissl")).newest(torch.device("cpu"))  # doctest: +SKIP
    """

    def __init__(self, folder: Path, kept: int = 2, console: Console | None = None) -> None:
        self._folder, self._kept, self._console = folder, kept, console or Console()

    def save(self, state: dict[str, Any]) -> None:
        """Write tensors and plain values; a crash at any moment leaves at least the checkpoint before.

        Raises:
            UserError: if they cannot be written.
        """
        first, *others = (self._folder / _name(age) for age in range(self._kept))
        buffer = io.BytesIO()
        torch.save(state, buffer)
        body = buffer.getbuffer()
        write_atomic(first, _first_line(FORMAT, __version__, body), body, before=others)

    def newest(self, device: torch.device) -> dict[str, Any] | None:
        """What the youngest whole checkpoint holds, ``None`` if there is none; a damaged one is told and set aside.

        Args:
            device: of the tensors.

        Raises:
            UserError: if it is of another format, or a damaged one cannot be moved.
        """
        damaged: list[str] = []
        for path in self._found():
            try:
                state = read_checkpoint(path, device)
            except DamagedError as error:
                damaged.append(self._set_aside(path, error))
                continue
            self._tell(damaged, f"{path.name}, which was written before, serves in its place")
            return state
        self._tell(damaged, "no other is left, and the stage starts again from its first step")
        return None

    def _found(self) -> Iterator[Path]:
        """From young to old; also those of a run that kept more."""
        numbered = self._folder.glob("checkpoint-[0-9]*.pt")
        old = sorted(numbered, key=lambda path: int(path.stem.removeprefix("checkpoint-")))
        return (path for path in (self._folder / _name(0), *old) if path.exists())

    def _set_aside(self, path: Path, error: DamagedError) -> str:
        try:
            if writes():
                path.replace(path.with_name("checkpoint-damaged.pt"))
        except OSError as failure:
            raise unwritable(path, failure) from None
        return f"{path} is damaged: {error}"

    def _tell(self, damaged: list[str], instead: str) -> None:
        if damaged:
            what = "; ".join(damaged)
            say(self._console, f"{self._folder.name}: {what}; {instead} (kept as checkpoint-damaged.pt)", "yellow")


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What a checkpoint holds. Nothing in the file is executed.

    Args:
        path: of the file.
        device: of the tensors.

    Raises:
        DamagedError: if it is not as it was written.
        UserError: if it is whole and cannot be used.
    """
    try:
        with path.open("rb") as file:
            checked = _check_first_line(path, file)
            body = file.read() if checked is None else checked
    except OSError as error:
        raise DamagedError(f"it cannot be read ({error.strerror or error})") from None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    except Exception as error:  # torch raises a different type for each way in which a file can be broken
        if is_full(error):
            raise
        if checked is None:
            raise DamagedError(f"it is not a readable checkpoint ({type(error).__name__})") from None
        raise UserError(
            f"{path} is whole, but PyTorch {torch.__version__} does not read it ({type(error).__name__}); go on with "
            "the versions in environment.json beside it, or move it away to start its stage over."
        ) from None
    return state


def _check_first_line(path: Path, file: IO[bytes]) -> bytes | None:
    """The content behind the first line, whose checksum is right; ``None`` for a file of before there were any.

    Raises:
        DamagedError: if it is not.
        UserError: for another format.
    """
    if file.peek(2)[:2] == _ZIP:  # type: ignore[attr-defined]
        return None
    line = file.readline(200)
    words, body = line.split(), file.read()
    if not line:
        raise DamagedError("it is empty")
    if len(words) != 4 or words[0] != _MAGIC or not words[1].isdigit():
        raise DamagedError("it does not begin as checkpoints do")
    number, version = int(words[1]), words[2].decode(errors="replace")
    if line != _first_line(number, version, body):
        raise DamagedError(f"its checksum is not that of its {len(body):,} bytes")
    if number != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {number}, written by bissl-fast {version}; this one, {__version__}, reads "
            f"format {FORMAT}: go on with that version, or move the file away to start its stage over."
        )
    return body


def _first_line(number: int, version: str, body: bytes | memoryview) -> bytes:
    """Format, version of the package, and a checksum of both and the content."""
    about = f"{number} {version}".encode()
    total = hashlib.sha256(about)
    total.update(body)
    return b"%s %s %s\n" % (_MAGIC, about, total.hexdigest().encode())


def _name(age: int) -> str:
    return f"checkpoint-{age}.pt" if age else "checkpoint.pt"
