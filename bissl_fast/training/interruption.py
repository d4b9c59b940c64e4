"""Ctrl-C and SIGTERM as a request that is answered between two steps."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from bissl_fast.errors import UserError
from bissl_fast.training.ranks.lead import writes

_STOPPING = b"\nStopping after this step, with a checkpoint. Ctrl-C stops at once, at the last checkpoint.\n"


class Interrupted(UserError):
    """Work was stopped on request; everything up to the last step is in the checkpoint."""


class _Stop(BaseException):
    """SIGTERM on its way up, past whatever takes exceptions for failures of what it tries."""


class Interruption:
    """Context in which SIGINT and SIGTERM only set :attr:`requested`. A second Ctrl-C stops at once.

    Attributes:
        echo: seconds in which another SIGINT is the same request: a launcher passes on what the terminal has sent
            already.
        heard: how many signals all contexts have answered.
    """

    echo = 0.0
    heard = 0

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._kept: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._kept[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        Interruption.heard += 1
        if self.requested:
            if number == signal.SIGINT and time.monotonic() - self._since >= self.echo:
                raise KeyboardInterrupt
            return
        self.requested, self._since = True, time.monotonic()
        if writes():
            os.write(2, _STOPPING)


@contextmanager
def interruptible() -> Iterator[None]:
    """Context in which SIGTERM and Ctrl-C end in :class:`Interrupted` also where no loop is running."""

    def stop(number: int, frame: FrameType | None) -> None:
        Interruption.heard += 1
        raise _Stop

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Stop:
        raise Interrupted(
            "stopped on request between two steps; every checkpoint and finished stage is whole."
        ) from None
    except KeyboardInterrupt:
        raise Interrupted("stopped at once; every checkpoint and finished stage is whole.") from None
    finally:
        signal.signal(signal.SIGTERM, kept)
