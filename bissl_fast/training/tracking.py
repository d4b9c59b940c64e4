"""Metrics as JSON lines and TensorBoard events; progress on the terminal."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bissl_fast.plain import parse_json, shown
from bissl_fast.training.files import unwritable

Item = TypeVar("Item")
Record = dict[str, Any]

LINE_SECONDS = 15.0
"""Time between two progress lines where the output is not a terminal."""


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: names and paths are no markup, steer no terminal and are never wrapped."""
    console.print(shown(text), style=style, markup=False, highlight=False, soft_wrap=True)


class Metrics:
    """``metrics.jsonl`` and TensorBoard events of one stage, continued from a checkpoint without gap or repetition.

    Args:
        folder: the stage's folder.
        offset: length of ``metrics.jsonl`` at the checkpoint, bytes; what was written after it is cut off.
        step: step of the checkpoint, 0 if there is none; what TensorBoard has of later steps is purged.
    """

    def __init__(self, folder: Path, offset: int = 0, step: int = 0) -> None:
        # TensorBoard looks for this name, and does without an installed TensorFlow: it takes seconds to load, and
        # crashes where torchvision is loaded after it.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        try:
            self._file = open(self._path, "ab")  # noqa: SIM115
            self._file.truncate(min(offset, self._file.tell()))  # a file that lost its end is not filled up with zeros
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise unwritable(self._path, error) from None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line; numbers also go to TensorBoard."""
        try:
            self._file.write((json.dumps({"step": step, **values}) + "\n").encode())
            self._file.flush()
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            raise unwritable(self._path, error) from None

    def sync(self) -> None:
        """Let what was written outlast a power failure, as the checkpoint that counts on it does."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self._path, error) from None

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def close(self) -> None:
        """Let go of the files. A disk that fails only now is met by what the stage writes next."""
        for file in (self._file, self._board):
            with suppress(OSError):
                file.close()


def read_metrics(path: Path) -> list[Record]:
    """Read a metrics.jsonl.

    A killed writer leaves at most one truncated line, at the end or where the resumed run went on: lines that
    are not a JSON object with an integer `step` are skipped. Of a step that was logged twice, the later
    record counts.

    Args:
        path: the file; it may be absent.

    Returns:
        The records in the order of their steps; empty where there is no file.
    """
    if not path.is_file():
        return []
    by_step: dict[int, Record] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            by_step[record["step"]] = record
    return [by_step[step] for step in sorted(by_step)]


def tracked(console: Console, items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
    """The items, under a progress bar that says how many of them are behind us."""
    with ProgressBar(console, title, total, 0) as bar:
        for number, item in enumerate(items, 1):
            yield item
            bar.update(number)


class ProgressBar:
    """Step, images per second, time left and loss of one stage: a bar on a terminal, else a line now and then."""

    def __init__(self, console: Console, title: str, total: int, done: int) -> None:
        self._console, self._title, self._total = console, title, total
        self._bar = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, rate="", note="")
        self._first, self._started = done, time.monotonic()
        self._line_due = self._started + LINE_SECONDS

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, images_per_second: float | None = None, note: str = "") -> None:
        """Tell that ``done`` steps are behind us."""
        rate = "" if images_per_second is None else f"{images_per_second:,.0f} images/s"
        self._bar.update(self._task, completed=done, rate=rate, note=note)
        now = time.monotonic()
        lines = not (self._console.is_terminal or self._console.quiet)
        if lines and (now >= self._line_due or done == self._total):
            self._line_due = now + LINE_SECONDS
            left = (now - self._started) / max(1, done - self._first) * (self._total - done)
            print(
                f"{self._title}  {done}/{self._total}  {rate}  {left:.0f} s left  {note}",
                file=sys.stdout,
                flush=True,
            )
