"""What is told on the terminal: lines, and the progress of a stage."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bissl_fast.plain import shown

Item = TypeVar("Item")

LINE_SECONDS = 15.0
"""Time between two progress lines where the output is not a terminal."""


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: names and paths are no markup, steer no terminal and are never wrapped."""
    console.print(shown(text), style=style, markup=False, highlight=False, soft_wrap=True)


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
