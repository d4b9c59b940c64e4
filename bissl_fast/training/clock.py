"""How long a stage has been at work and the most memory that it held, over all processes that worked at it."""

import contextlib
import math
import time
from pathlib import Path

from bissl_fast.errors import UserError
from bissl_fast.plain import parse_json
from bissl_fast.training.files import write_json
from bissl_fast.training.memory import forget_peak, peak_of_process

FILE = "seconds.json"


class Clock:
    """Seconds of work at a stage, and its peak of memory in bytes, kept in its folder.

    It goes on from what was last kept there. The time between two processes does not count, nor does, of one that was
    killed, the time after its last checkpoint, whose work is done again.

    Args:
        folder: the stage's folder.

    Example:
        >>> Clock(Path("runs/demo/bissl")).keep()  # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._before, self._started = folder, active_seconds(folder) or 0.0, time.monotonic()
        forget_peak()

    def keep(self) -> None:
        """Write down what it shows. Where that cannot be written, nothing is lost but a time."""
        seconds = self._before + time.monotonic() - self._started
        with contextlib.suppress(UserError):
            told = {"seconds": round(seconds, 3), "peak_memory": max(peak_memory(self._folder) or 0, peak_of_process())}
            write_json(self._folder / FILE, told)


def active_seconds(folder: Path) -> float | None:
    """What was last kept; None for a stage without a clock, as of earlier versions."""
    return _told(folder, "seconds")


def peak_memory(folder: Path) -> int | None:
    """Bytes, likewise."""
    peak = _told(folder, "peak_memory")
    return None if peak is None else int(peak)


def _told(folder: Path, name: str) -> float | None:
    try:
        value = float(parse_json((folder / FILE).read_bytes())[name])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return value if 0 <= value < math.inf else None
