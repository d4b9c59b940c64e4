"""Who of many ranks is there: each says so every second in the store that they share, and how it ended."""

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bissl_fast.plain import parse_json

BEAT = 1.0
"""Seconds between two signs of life, of up to 128 ranks: what all ask of the store grows with the square of R."""

QUIET = 40
"""Beats that a rank misses until it is given up, where nothing else speaks against it: a long call in C, of a library
that keeps the interpreter to itself meanwhile, is no reason."""

MISSED = 5
"""Beats that one misses until it is given up, after a collective has failed."""


@dataclass(frozen=True)
class Farewell:
    """How a rank ended.

    Attributes:
        how: ``done``; ``stopped`` on request; ``failed`` by an error of its own; ``lost``, as other ranks did not
            answer.
        status: what its process ends with.
        text: of the error.
    """

    how: Literal["done", "stopped", "failed", "lost"]
    status: int
    text: str = ""


class Roll:
    """The roll of one group of ranks. A thread keeps it, which nothing that the others do can hold up.

    Args:
        store: where they say so, over a connection of its own.
        rank: of this process.
        size: R, how many ranks there are.

    Attributes:
        seconds: of a beat.
        patience: beats that a rank may miss, where nothing else speaks against it.
        left: the farewells of those that have ended.
        silent: by rank, how many beats of ours it has missed, one after another; 0 for those that have left.
        heard: when the store last answered, by the monotonic clock.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        slower = max(1.0, size / 128)
        self.seconds, self.patience = BEAT * slower, max(MISSED, round(QUIET / slower))
        self.left: dict[int, Farewell] = {}
        self.silent = dict.fromkeys(range(size), 0)
        self.heard, self.broken = time.monotonic(), ""
        self._store, self._number, self._seen = store, 0, {rank: b"" for rank in range(size)}
        self._farewell: Farewell | None = None
        self._answers: set[int] = set()
        self._answered, self._sent = False, False
        self._hurry, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._keep, name="roll", daemon=True)

    def start(self, waits: Callable[[], bool]) -> None:
        """Keep the roll from now on, as soon as all are there.

        Args:
            waits: whether to wait any longer for those that are not.
        """
        for what, value in (("left", ""), ("answered", ""), ("beat", "0")):
            self._store.set(f"{what}/{self.rank}", value)
        while not self._store.check([f"beat/{rank}" for rank in range(self.size)]) and waits():
            time.sleep(0.02)
        self.heard = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Say nothing any more."""
        self._over = True
        self._hurry.set()
        self._thread.join(2 * self.seconds)

    def leave(self, farewell: Farewell) -> None:
        """Let the others know that this rank ends, and how."""
        self._farewell = farewell
        self._hurry.set()

    def answer(self, rank: int) -> None:
        """Let a rank know that its last words have been told."""
        self._answers.add(rank)
        self._hurry.set()

    @property
    def answered(self) -> bool:
        """Whether this rank's last words have been told by another."""
        return self._answered

    @property
    def sent(self) -> bool:
        """Whether this rank's own are where the others read them."""
        return self._sent

    def gone(self, missed: int) -> tuple[int, ...]:
        """Ranks that have missed so many beats, and did not say that they end."""
        return tuple(rank for rank, beats in self.silent.items() if beats >= missed and rank not in self.left)

    def _keep(self) -> None:
        while not self._over:
            self._hurry.wait(self.seconds)
            hurried = self._hurry.is_set()
            self._hurry.clear()
            try:
                self._exchange(counts=not hurried)
            except Exception as error:  # whatever the store's connection raises
                self.broken = (str(error) or type(error).__name__).splitlines()[0]
                time.sleep(self.seconds / 4)
                continue
            self.heard, self.broken = time.monotonic(), ""

    def _exchange(self, counts: bool) -> None:
        """Tell and ask; a beat counts as missed only if this rank has waited for it as long."""
        self._number += 1
        self._store.set(f"beat/{self.rank}", str(self._number))
        if self._farewell is not None:
            self._store.set(f"left/{self.rank}", json.dumps(asdict(self._farewell)))
            self._sent = True
        for rank in sorted(self._answers):
            self._store.set(f"answered/{rank}", "1")
        names = [f"{what}/{rank}" for what in ("beat", "left") for rank in range(self.size)]
        found = self._store.multi_get([*names, f"answered/{self.rank}"])
        self._answered = found.pop() != b""
        for rank, (beat, left) in enumerate(zip(found[: self.size], found[self.size :], strict=True)):
            if left and rank != self.rank:
                self.left.setdefault(rank, Farewell(**parse_json(left)))
            if beat != self._seen[rank] or left:
                self.silent[rank] = 0
            elif counts:
                self.silent[rank] += 1
            self._seen[rank] = beat


def named(ranks: Iterable[int]) -> str:
    """Ranks in words.

    Example:
        >>> named([3]), named([0, 2, 3])
        ('rank 3', 'ranks 0, 2 and 3')
    """
    *first, last = (str(rank) for rank in sorted(ranks))
    return f"ranks {', '.join(first)} and {last}" if first else f"rank {last}"
