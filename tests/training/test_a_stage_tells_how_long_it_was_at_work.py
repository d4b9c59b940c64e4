"""The time and the memory of a stage are those of all processes that worked at it, and of no other."""

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bissl_fast.training import clock
from bissl_fast.training.clock import Clock, active_seconds, peak_memory
from bissl_fast.training.loop import LoopSettings, run_loop
from bissl_fast.training.stage import run_stage

QUIET = Console(quiet=True)


class Killed(BaseException):
    """The process is no more: nothing after it is written."""


class Counting:
    """Steps of ten seconds each, which the process may not survive."""

    steps, images_per_step, log_every = 5, 1, 1

    def __init__(self, time: "Time", last: int = 99) -> None:
        self.time, self.last = time, last

    def step(self, index: int) -> dict[str, float]:
        self.time.now += 10
        if index == self.last:
            raise Killed
        return {"loss": 1.0}

    def state(self) -> dict[str, Any]:
        return {"weight": torch.ones(1)}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class Time:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    found = Time()
    monkeypatch.setattr(clock.time, "monotonic", found.monotonic)
    return found


def stage(folder: Path, task: Counting, before: float = 0, after: float = 0) -> None:
    def body(inner: Path) -> None:
        task.time.now += before
        run_loop(task, inner, torch.device("cpu"), 0, LoopSettings(0), QUIET)
        task.time.now += after
        (inner / "weights.safetensors").write_bytes(b"")

    run_stage(folder, {}, {}, body, console=QUIET)


def test_it_is_the_whole_stage_and_not_its_steps_alone(tmp_path: Path, time: Time) -> None:
    stage(tmp_path / "run" / "a", Counting(time), before=3, after=4)
    assert active_seconds(tmp_path / "run" / "a") == 57
    time.now += 1000
    stage(tmp_path / "run" / "a", Counting(time))  # done before
    assert active_seconds(tmp_path / "run" / "a") == 57


def test_a_stage_that_goes_on_adds_up_and_the_time_between_does_not_count(tmp_path: Path, time: Time) -> None:
    with pytest.raises(Killed):
        stage(tmp_path / "run" / "a", Counting(time, last=2), before=3)
    assert (
        active_seconds(tmp_path / "run" / "a") == 33
    )  # an exception, as Ctrl-C is: the step broken off has been work, too
    time.now += 1000
    stage(tmp_path / "run" / "a", Counting(time), before=3)
    assert active_seconds(tmp_path / "run" / "a") == 33 + 3 + 30


def test_what_a_killed_process_does_after_its_last_checkpoint_is_not_counted(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Clock.keep
    task = Counting(time, last=2)

    def kept(watch: Clock) -> None:
        if task.time.now < 130:  # SIGKILL leaves no time for a last word
            keep(watch)

    monkeypatch.setattr(Clock, "keep", kept)
    with pytest.raises(Killed):
        stage(tmp_path / "run" / "a", task)
    assert active_seconds(tmp_path / "run" / "a") == 20
    monkeypatch.setattr(Clock, "keep", keep)
    stage(tmp_path / "run" / "a", Counting(time))
    assert active_seconds(tmp_path / "run" / "a") == 50


@pytest.mark.parametrize("content", [
    "", "{}", "[]", '{"seconds": "long"}', '{"seconds": NaN, "peak_memory": Infinity}', None,
    f'{{"seconds": {10**400}, "peak_memory": {10**400}}}', "[" * 100_000, '{"seconds": -1, "peak_memory": "-1"}',
])  # fmt: skip
def test_a_stage_without_a_clock_has_no_time(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "seconds.json").write_text(content)
    assert active_seconds(tmp_path) is None
    assert peak_memory(tmp_path) is None


def test_the_peak_is_the_most_that_any_of_its_processes_held_and_not_what_was_held_before(tmp_path: Path) -> None:
    def peak(name: str, megabytes: int) -> int:
        watch = Clock(tmp_path / name)
        with mmap.mmap(-1, megabytes * 10**6) as held:  # goes back to the machine, whatever the allocator keeps
            for page in range(0, len(held), mmap.PAGESIZE):
                held[page] = 1
        watch.keep()
        found = peak_memory(tmp_path / name)
        assert found is not None
        return found

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    small = peak("a", 1)
    large = peak("a", 400)
    assert 350e6 < large - small < 500e6
    assert peak("a", 1) == large  # goes on from the checkpoint of a process that held more
    assert peak("b", 1) < large - 300e6
