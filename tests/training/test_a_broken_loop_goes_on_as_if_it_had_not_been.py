"""Checkpoint, interruption, non-finite numbers and full disks in the loop that every stage shares."""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.training.checkpoint import Checkpoints, read_checkpoint
from bissl_fast.training.interruption import Interrupted, interruptible
from bissl_fast.training.loop import LoopSettings, run_loop

CPU = torch.device("cpu")
EVERY_STEP = LoopSettings(checkpoint_seconds=0)


class Wanderer:
    """A weight that moves by noise from torch's global generator."""

    steps = 7
    images_per_step = 1
    log_every = 3

    def __init__(self, size: int = 4) -> None:
        self.weight = torch.zeros(size)
        self.at: dict[int, Any] = {}

    def step(self, index: int) -> dict[str, Any]:
        self.weight = self.weight + torch.randn(len(self.weight))
        values: dict[str, Any] = {"loss": self.weight.sum(), "residuals": self.weight[:2].abs()}
        if action := self.at.pop(index, None):
            values |= action() or {}
        return values

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def restore(self, state: dict[str, Any]) -> None:
        if state["weight"].shape != self.weight.shape:
            raise RuntimeError("size mismatch for weight")
        self.weight = state["weight"]


def loop(task: Wanderer, folder: Path, settings: LoopSettings = EVERY_STEP) -> Wanderer:
    folder.mkdir(exist_ok=True)
    run_loop(task, folder, CPU, 5, settings, Console(quiet=True))
    return task


@pytest.mark.parametrize(("name", "kept"), [("cuda:1", [torch.device("cuda:1")]), ("cpu", [])])
def test_the_generator_that_is_kept_is_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kept: list[torch.device]
) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device=None: asked.append(device))
    task = Wanderer()
    task.steps = 2
    run_loop(task, tmp_path, torch.device(name), 5, EVERY_STEP, Console(quiet=True))
    assert asked == kept


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def stop_at(step: int, number: int) -> Wanderer:
    task = Wanderer()
    task.at[step] = lambda: os.kill(os.getpid(), number)
    return task


@pytest.mark.parametrize("step", range(7))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_at_any_step_it_ends_with_the_same_bits_and_log(
    tmp_path: Path, step: int, number: signal.Signals
) -> None:
    whole = loop(Wanderer(), tmp_path / "whole")
    long = LoopSettings(checkpoint_seconds=1000)  # so that the signal alone writes the checkpoint
    with pytest.raises(Interrupted, match=f"after step {step + 1} of 7"):
        loop(stop_at(step, number), tmp_path / "broken", long)
    torch.randn(100)  # another program state
    resumed = loop(Wanderer(), tmp_path / "broken", long)
    assert torch.equal(resumed.weight, whole.weight)
    assert logged(tmp_path / "broken") == logged(tmp_path / "whole")
    assert [line["step"] for line in logged(tmp_path / "whole")] == [3, 6, 7]


def test_lines_written_after_the_last_checkpoint_are_not_repeated(tmp_path: Path) -> None:
    loop(Wanderer(), tmp_path / "whole")
    task = Wanderer()
    task.at[4] = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # as a second Ctrl-C, or a crash
    with pytest.raises(KeyboardInterrupt):
        loop(task, tmp_path / "broken")
    with open(tmp_path / "broken" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "half a li')
    loop(Wanderer(), tmp_path / "broken")
    assert logged(tmp_path / "broken") == logged(tmp_path / "whole")


@pytest.mark.parametrize("checkpoint", [True, False])
def test_tensorboard_keeps_no_step_of_an_attempt_that_died(tmp_path: Path, checkpoint: bool) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    task = Wanderer()
    task.at[6] = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        loop(task, tmp_path / "run", EVERY_STEP if checkpoint else LoopSettings(checkpoint_seconds=1000))
    again = Wanderer()
    again.weight += 100  # so that the attempts differ
    again.log_every = 7
    if checkpoint:
        saved = read_checkpoint(tmp_path / "run" / "checkpoint.pt", CPU)
        Checkpoints(tmp_path / "run").save(saved | {"done": 2, "window": []})
    loop(again, tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [7]


def test_a_checkpoint_of_another_model_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        loop(stop_at(2, signal.SIGTERM), tmp_path / "run")
    with pytest.raises(UserError, match=r"one of another model \(size mismatch for weight\); move it away"):
        loop(Wanderer(size=9), tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        {"done": "2"},
        {"done": -1},
        {"done": 10**6},
        {"window": 3},
        {"rng": 3},
        {"offset": None},
        {"task": [1]},
        {"task": 3},
    ],
    ids=str,
)
def test_a_checkpoint_with_strange_values_is_refused_with_a_way_out(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(Interrupted):
        loop(stop_at(2, signal.SIGTERM), tmp_path / "run")
    kept = Checkpoints(tmp_path / "run", kept=1)
    saved = read_checkpoint(tmp_path / "run" / "checkpoint.pt", CPU)
    for state in (saved | change, {k: v for k, v in saved.items() if k not in change}, [saved], torch.zeros(2)):
        kept.save(state)
        with pytest.raises(UserError, match=r"is one of another model \(.+\); move it away"):
            loop(Wanderer(), tmp_path / "run")


def test_a_request_to_stop_is_no_failure_of_what_is_being_tried() -> None:
    def try_something() -> None:
        with interruptible(), contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="between two steps"):
        try_something()
