"""How long a stage has been at work, over all processes that worked at it."""

import contextlib
import json
import time
from pathlib import Path

from bissl_fast.errors import UserError
from bissl_fast.training.files import write_json

FILE = "seconds.json"


class Clock:
    """Seconds of work at a stage, kept in its folder.

    It goes on from what was last kept there. The time between two processes does not count, nor does, of one that was
    killed, the time after its last checkpoint, whose work is done again.

    Args:
        folder: the stage's folder.

    Example:
        >>> Clock(Path("runs/demo/bissl")).keep()  # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._before, self._started = folder, active_seconds(folder) or 0.0, time.monotonic()

    def keep(self) -> None:
        """Write down what it shows. Where that cannot be written, nothing is lost but a time."""
        seconds = self._before + time.monotonic() - self._started
        with contextlib.suppress(UserError):
            write_json(self._folder / FILE, {"seconds": round(seconds, 3)})


def active_seconds(folder: Path) -> float | None:
    """What was last kept; None for a stage without a clock, as of earlier versions."""
    try:
        return float(json.loads((folder / FILE).read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
