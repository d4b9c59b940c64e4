"""Telling trackers of a run from its metrics.jsonl, each step once, while training goes on as if there were none."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bissl_fast.plain import parse_json
from bissl_fast.training.files import write_json
from bissl_fast.training.interruption import Interrupted
from bissl_fast.training.log import read_metrics
from bissl_fast.training.trackers.tracker import About, Status, Tracker

RECORD = "tracking.json"
"""Of a run's folder: which run of a tracker has been told what, by the tracker's name."""

SECONDS = 5.0
"""Between two looks at the stages."""

LONGEST_PAUSE = 300.0
"""Before a tracker that has failed is tried again, seconds."""

CLOSING_SECONDS = 60.0
"""For the last word, after which a tracker that does not answer is left alone."""

Outcome = Callable[[], tuple[Mapping[str, float], Sequence[Path]]]
"""Results and files that are there when a run has finished."""


class Follower:
    """One tracker of one run, told of what the run's files hold.

    It is gone on with where settings and stages are those that it was told of; else it is told everything anew, in a
    run of its own.

    Args:
        name: of the tracker.
        tracker: that is told.
        about: the run.
        identity: of the settings.
    """

    def __init__(self, name: str, tracker: Tracker, about: About, identity: str) -> None:
        self.name, self._tracker, self._about, self._identity = name, tracker, about, identity
        self.opened = False
        self._stages: dict[str, str] = {}
        self._told: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    @property
    def place(self) -> str:
        """Where a user finds it, once it is open."""
        return self._tracker.place

    def send(self, stages: Sequence[Path]) -> None:
        """Tell every record that has not been told. Raises whatever the tracker does."""
        keys = {folder.name: _key(folder) for folder in stages}
        if not self.opened:
            self._open(keys)
        elif self._contradicted(keys):
            self._tracker.end("killed", {}, ())
            self._open(keys)
        if keys != self._stages:
            self._stages |= keys
            self._keep()
        for folder in stages:
            self._send_stage(folder)

    def end(self, status: Status, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Close it, likewise."""
        self._tracker.end(status, summary, files)
        self.opened = False

    def forget(self) -> None:
        """After it has failed: what it holds is asked anew."""
        self.opened = False

    def _open(self, keys: Mapping[str, str]) -> None:
        kept = _read(self._about.folder).get(self.name, {})
        earlier, self._stages = None, {}
        if kept.get("identity") == self._identity:
            earlier, self._stages = kept.get("run"), dict(kept.get("stages", {}))
        if self._contradicted(keys):
            earlier, self._stages = None, {}
        self._told, self._sizes = {}, {}
        self._run = self._tracker.open(self._about, earlier)
        self.opened = True
        if self._run != earlier:
            self._stages = {}
        self._stages |= keys
        self._keep()

    def _contradicted(self, keys: Mapping[str, str]) -> bool:
        """Whether a stage is another one than what was told under its name."""
        return any(self._stages.get(name, key) != key for name, key in keys.items())

    def _keep(self) -> None:
        told = {"run": self._run, "identity": self._identity, "stages": self._stages}
        write_json(self._about.folder / RECORD, {**_read(self._about.folder), self.name: told})

    def _send_stage(self, folder: Path) -> None:
        log, name = folder / "metrics.jsonl", folder.name
        size = log.stat().st_size if log.is_file() else 0
        if size == self._sizes.get(name, 0):
            return
        if name not in self._told:
            self._told[name] = self._tracker.told(name)
        records = [record for record in read_metrics(log) if record["step"] > self._told[name]]
        if records:
            self._tracker.log(name, records)
            self._told[name] = records[-1]["step"]
        self._sizes[name] = size


class Following:
    """Context in which a thread tells trackers of a run. Nothing that they do delays, changes or ends a training.

    Args:
        followers: one for each tracker; without any there is no thread.
        say: takes a sentence for the user.
        again: the command that sends what a tracker lacks, for its name.
        outcome: asked when the run has finished.
        seconds: between two looks at the stages.
    """

    def __init__(
        self,
        followers: Sequence[Follower] = (),
        say: Callable[[str], None] = print,
        again: Callable[[str], str] = str,
        outcome: Outcome = lambda: ({}, ()),
        seconds: float = SECONDS,
    ) -> None:
        self._say, self._again, self._outcome, self._seconds = say, again, outcome, seconds
        self._attempts = [_Attempts(follower, say, again) for follower in followers]
        self._stages: dict[Path, None] = {}
        self._closing = threading.Event()
        self._status: Status = "failed"
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)

    def follow(self, stage: Path) -> None:
        """From now on a stage that has begun, or was found finished, is told."""
        self._stages = {**self._stages, stage: None}  # anew, since the thread may be reading it

    def __enter__(self) -> "Following":
        if self._attempts:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._attempts:
            return
        self._status = status_of(kind)
        self._closing.set()
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            names = ", ".join(attempts.follower.name for attempts in self._attempts if attempts.follower.opened)
            self._say(f"{names or 'a tracker'} has not answered for {CLOSING_SECONDS:.0f} s and is left alone")

    def _work(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(self._seconds)
            stages = list(self._stages)
            for attempts in self._attempts:
                if closing:
                    attempts.last(stages, self._status, self._outcome)
                else:
                    attempts.next(stages)


class _Attempts:
    """A follower, whose failures are told once and which is tried again after growing pauses."""

    def __init__(self, follower: Follower, say: Callable[[str], None], again: Callable[[str], str]) -> None:
        self.follower, self._say, self._again = follower, say, again
        self._pause, self._due, self._failed, self._placed = SECONDS, 0.0, False, False

    def next(self, stages: Sequence[Path]) -> None:
        """Tell what is new, unless it has failed a moment ago."""
        if stages and time.monotonic() >= self._due and (error := self._send(stages)):
            self._due, self._pause = time.monotonic() + self._pause, min(2 * self._pause, LONGEST_PAUSE)
            if not self._failed:
                self._say(f"{self.follower.name}: {error}; training goes on, and it is tried again")
            self._failed = True

    def last(self, stages: Sequence[Path], status: Status, outcome: Outcome) -> None:
        """Tell the rest, and how the run has ended."""
        if not stages:
            return
        error = self._send(stages) or self._end(status, outcome)
        if error:
            name = self.follower.name
            self._say(f"{name} lacks a part of the run ({error}): `{self._again(name)}` sends it")

    def _send(self, stages: Sequence[Path]) -> str:
        """What has gone wrong, empty if nothing."""
        try:
            self.follower.send(stages)
        except Exception as error:  # whatever their libraries raise
            self.follower.forget()
            return reason(error)
        if not self._placed:
            self._say(f"{self.follower.name}: {self.follower.place}")
        self._placed = True
        return ""

    def _end(self, status: Status, outcome: Outcome) -> str:
        try:
            summary, files = outcome() if status == "finished" else ({}, ())
            self.follower.end(status, summary, files)
        except Exception as error:
            return reason(error)
        return ""


def status_of(kind: type[BaseException] | None) -> Status:
    """How a run has ended that was left by such an exception, or by none."""
    if kind is None:
        return "finished"
    return "killed" if issubclass(kind, Interrupted | KeyboardInterrupt) else "failed"


def reason(error: BaseException) -> str:
    """The first line of what a library has raised, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _key(folder: Path) -> str:
    """Of a stage; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(parse_json((folder / "key.json").read_bytes())["key"])
    return ""


def _read(folder: Path) -> dict[str, Any]:
    """What the run's folder says of its trackers."""
    with contextlib.suppress(OSError, ValueError):
        found = parse_json((folder / RECORD).read_bytes())
        return found if isinstance(found, dict) else {}
    return {}
