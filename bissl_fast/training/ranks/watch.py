"""What becomes of a rank when others fail, or do not answer any more: watched beside its work, and told once."""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from bissl_fast.training.interruption import Interruption
from bissl_fast.training.ranks.roll import MISSED, Farewell, Roll, named

WHOLE = "Every checkpoint and finished stage is whole: a start of all ranks goes on from there."
CALL = signal.SIGURG
"""Sent to the main thread by the watch: nobody else sends it, and where nothing awaits it, it is ignored."""

TICK = 0.25
"""Seconds between two looks at the roll."""

BLOCKED = 6.0
"""Seconds after which a main thread that did not hear the watch is taken for blocked in a collective."""

UNHEARD = 15.0
"""Likewise for SIGINT and SIGTERM; torchrun kills after 30."""

LEAVING = 60.0
"""Seconds that rank 0 may be busy with its last checkpoint, after others have stopped on request."""

_LOST = re.compile(r"/gloo/|NCCL|ProcessGroup|Connection (closed|reset) by peer|Broken pipe|Timed out waiting")


class Ended(BaseException):
    """The watch's call, on its way up: this rank has to end."""


@dataclass(frozen=True)
class Verdict:
    """Why a rank ends that has made no mistake.

    Attributes:
        text: the sentence.
        status: what its process ends with.
        patience: seconds in which this rank may meet the same by itself.
        of: the rank whose words these are, if they are another's.
        speaks: whether this rank tells them.
    """

    text: str
    status: int = 2
    patience: float = 0.0
    of: int | None = None
    speaks: bool = True


def verdict(roll: Roll, missed: int, keeper: str) -> Verdict | None:
    """What the roll says against going on.

    Args:
        roll: of the ranks.
        missed: beats without which a rank is gone.
        keeper: of the store, in words.
    """
    unheard = time.monotonic() - roll.heard
    if (roll.broken and unheard > 3 * roll.seconds) or unheard > roll.patience * roll.seconds:
        return Verdict(f"{keeper} is gone: the store that it keeps for all ranks no longer answers. {WHOLE}")
    if gone := roll.gone(missed):
        seconds = max(roll.silent[rank] for rank in gone) * roll.seconds
        are = "are" if len(gone) > 1 else "is"
        text = f"{named(gone)} of {roll.size} {are} gone, without a sign for {seconds:.0f} s. {WHOLE}"
        return Verdict(text, speaks=_speaks(roll, gone))
    failed = [rank for rank, farewell in roll.left.items() if farewell.how in ("failed", "stopped")]
    if failed:
        first = min(failed)
        said = roll.left[first]
        patience = 2.0 if said.how == "failed" else LEAVING if roll.rank == 0 else BLOCKED
        return Verdict(f"rank {first}: {said.text}", said.status, patience, first, first > 0 and _speaks(roll, ()))
    if any(farewell.how == "lost" for farewell in roll.left.values()):
        return Verdict("other ranks have ended.", patience=2.0, speaks=False)
    return None


def _speaks(roll: Roll, gone: tuple[int, ...]) -> bool:
    """Whether this is the lowest rank that is still there to speak."""
    left = {rank for rank, farewell in roll.left.items() if farewell.how != "lost"}
    return roll.rank == min(set(range(roll.size)) - left - set(gone), default=roll.rank)


def lost_by(error: BaseException | None) -> str:
    """The first line of an error that a collective or the store has raised as others did not answer; else nothing."""
    from torch.distributed import DistError

    while error is not None:
        text = re.sub(r"^\[.*?\] *", "", (str(error) or type(error).__name__).splitlines()[0])  # a file of gloo's
        if isinstance(error, DistError) or (type(error) is RuntimeError and _LOST.search(str(error))):
            return text
        error = error.__cause__ or error.__context__
    return ""


def asked_around(roll: Roll, keeper: str, lost: str) -> Verdict | None:
    """Why a collective has failed, or whether more is behind a request to stop, once the others had time to speak.

    Args:
        roll: of the ranks.
        keeper: of the store, in words.
        lost: what the collective said; nothing for a request to stop.
    """
    end = time.monotonic() + (MISSED + 3) * roll.seconds
    others = set(range(roll.size)) - {roll.rank}
    if lost:
        roll.leave(Farewell("lost", 2, lost))
    while time.monotonic() < end:
        found = verdict(roll, MISSED, keeper)
        if found is not None and (found.patience == 0 or found.of is not None) and not _only_stopped(roll, found, lost):
            return found
        if others <= set(roll.left):
            break
        time.sleep(0.1)
    if not lost:
        return None
    waited = {rank for rank, farewell in roll.left.items() if farewell.how == "lost" and farewell.text}
    late = others - waited
    are = "are" if len(late) > 1 else "is"
    why = f"{named(late)} {are} there, but did not come to where the others waited" if late else "all are there"
    speaks = roll.rank == min(waited | {roll.rank})
    return Verdict(f"the ranks have lost each other ({lost}): {why}. {WHOLE}", speaks=speaks)


def _only_stopped(roll: Roll, found: Verdict, lost: str) -> bool:
    return not lost and found.of is not None and roll.left[found.of].how == "stopped"


class Watch:
    """A thread that ends this rank where the roll speaks against going on, and where signals stay unheard.

    The main thread is called first, and may clean up. If it does not hear that, a collective blocks it: then the watch
    itself tells why, and ends the process.

    Args:
        roll: of the ranks.
        keeper: of the store, in words.
        tell: prints a sentence where a user sees it.
    """

    def __init__(self, roll: Roll, keeper: str, tell: Callable[[str], None]) -> None:
        self.verdict: Verdict | None = None
        self.roll, self.keeper, self.tell = roll, keeper, tell
        self._asked: float | None = None  # since when a signal has gone unheard
        self._heard, self._any = Interruption.heard, False
        self._ours, self._theirs = socket.socketpair()
        self._lock, self._resting = threading.Lock(), False
        for end in (self._ours, self._theirs):
            end.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """From the main thread, which is the one that is watched."""
        self._main = threading.get_ident()
        signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def rest(self) -> None:
        """The main thread ends by itself: leave it alone."""
        with self._lock:
            self._resting = True
        signal.set_wakeup_fd(-1)

    def _watch(self) -> None:
        while not self._resting:
            before = time.monotonic()
            time.sleep(TICK)
            if (late := time.monotonic() - before - TICK) > TICK:
                self.roll.heard += late  # this process stood still, or something kept the interpreter to itself
            unheard = self._unheard()
            patience = MISSED if unheard else 2 * MISSED if self._any else self.roll.patience
            found = verdict(self.roll, patience, self.keeper)
            if found is not None:
                self._end(found)
            elif unheard:
                text = f"stopped on request, while it waited for other ranks. {WHOLE}"
                speaks = self.roll.rank == 0 or 0 in self.roll.gone(MISSED)
                self._end(Verdict(text, 130, speaks=speaks), blocked=True)

    def _unheard(self) -> bool:
        """Whether SIGINT or SIGTERM came long ago and the main thread has not got to its handler."""
        heard = Interruption.heard
        try:
            came = self._ours.recv(4096)
        except BlockingIOError:
            came = b""
        if {signal.SIGINT, signal.SIGTERM} & set(came):
            self._any = True
            if self._asked is None and heard == self._heard:
                self._asked = time.monotonic()
        if heard != self._heard:
            self._asked, self._heard = None, heard
        return self._asked is not None and time.monotonic() - self._asked > UNHEARD

    def _end(self, found: Verdict, blocked: bool = False) -> None:
        self._wait(found.patience)
        if not blocked:
            with self._lock:
                if self._resting:
                    return
                self.verdict = found
                signal.pthread_kill(self._main, CALL)
            self._wait(BLOCKED)
        with self._lock:
            if self._resting:
                return
            self.roll.leave(farewell(found))
            told(self.roll, found, self.tell)
            sys.stdout.flush()
            os._exit(found.status)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._resting:
            time.sleep(0.1)


def farewell(found: Verdict) -> Farewell:
    """Of a rank that ends by a verdict: without words, unless it was asked to stop and nobody else has said so."""
    stopped = found.of is None and found.status == 130
    return Farewell("stopped" if stopped else "lost", found.status, found.text if stopped else "")


def told(roll: Roll, found: Verdict, tell: Callable[[str], None]) -> None:
    """Tell a verdict if that is this rank's to do, and the others how this one ends; a moment for them to hear it."""
    if found.speaks:
        tell(found.text)
        if found.of is not None:
            roll.answer(found.of)
    time.sleep(1.5 * roll.seconds)
