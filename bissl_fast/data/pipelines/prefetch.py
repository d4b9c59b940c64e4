"""One batch ahead: a thread makes what is asked for by number, and the next one while that is used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Everything, asked for or guessed, is made by one thread, so that prefetching cannot change a bit of it.

    Args:
        make: From a number to what is wanted.
        name: Of the thread.
    """

    def __init__(self, make: Callable[[int], T], name: str) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._ahead: tuple[int, Future[T] | None] = (0, None)  # the number in the making

    def get(self, number: int) -> T:
        """What belongs to a number: any at any time, but the one after the last call's is ready soonest.

        Raises:
            Exception: whatever went wrong while it was made, in the call that asks for it.
        """
        guess, wanted = self._ahead
        if wanted is None or guess != number:
            if wanted is not None:
                wanted.cancel()
            wanted = self._thread.submit(self._make, number)
        self._ahead = (number + 1, self._thread.submit(self._make, number + 1))
        return wanted.result()

    def close(self) -> None:
        """Stops the thread; what is in progress is finished and thrown away."""
        self._thread.shutdown(wait=True, cancel_futures=True)
