"""Ctrl-C and SIGTERM as a request that is answered between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from bissl_fast.errors import UserError


class Interrupted(UserError):
    """Work was stopped on request; everything up to the last step is in the checkpoint."""


class Interruption:
    """Context in which SIGINT and SIGTERM only set :attr:`requested`. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False
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
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
