"""Broken off between its optimiser's step and its end, a stage goes on as if nothing had been: copy, queue and all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from bissl_fast.methods.bissl.algorithm import BiSSLTask
from bissl_fast.methods.config import TrainConfig
from bissl_fast.methods.train import Training, pretrain
from bissl_fast.pretext import TASKS, Learner
from tests.methods.conftest import EVERY_STEP
from tests.methods.tasks import SMALL_TASKS, small_config


def broken_at(call: int, owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ``call``-th call of a method, from 0, end as a kill would, once."""
    method: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(call + 1))

    def breaking(*arguments: Any) -> Any:
        if next(calls, None) == call:
            raise KeyboardInterrupt
        return method(*arguments)

    monkeypatch.setattr(owner, name, breaking)


def assert_same_weights(first: Path, second: Path) -> set[str]:
    """Bit by bit; returns the parts that the files hold."""
    one, other = load_file(first / "weights.safetensors"), load_file(second / "weights.safetensors")
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]
    return {name.split(".")[0] for name in one}


IN_CHUNKS = ("--pretrain.chunk", "6")


ALIKE = ("simsiam", "barlow", "vicreg")
"""What they keep between steps is what SimCLR keeps: a network and its optimiser."""


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *(pytest.param(name, (), marks=[pytest.mark.slow] * (name in ALIKE)) for name in SMALL_TASKS),
        ("dino", IN_CHUNKS),
    ],
)
def test_a_pretext_stage(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, more: tuple[str, ...]
) -> None:
    def config(output: str) -> TrainConfig:
        return small_config(name, small_data, tmp_path / output, "--pretrain.epochs", "2", *EVERY_STEP, *more)

    quiet, told = Console(quiet=True), Console(record=True, width=500)
    whole = pretrain(config("whole"), told)
    sentence = "pretext: the 16 images of a batch pass in chunks, and batch norms take their statistics over the 6"
    assert told.export_text().count(sentence) == len(more) // 2
    broken_at(3, Learner, "advance", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config("broken"), quiet)
    monkeypatch.undo()
    assert (tmp_path / "broken" / "run" / "pretext" / "checkpoint.pt").exists()
    parts = assert_same_weights(pretrain(config("broken"), quiet), whole)
    needs = next(task for task in TASKS if task.name == name)().needs
    assert ("momentum" in parts) == bool(needs.target)
    assert ("store" in parts) == bool(needs.queue[0] or needs.centre)


@pytest.mark.parametrize(("name", "more"), [("byol", ()), ("moco", IN_CHUNKS)])
def test_bissls_stage_between_its_levels(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, more: tuple[str, ...]
) -> None:
    def backbone(output: str) -> Path:
        short = ("--pretrain.epochs", "1", "--head.epochs", "1", "--bissl.alternations", "3", *EVERY_STEP, *more)
        config = small_config(name, small_data, tmp_path / output, "--methods", "bissl", *short)
        training = Training(config, Console(quiet=True))
        return training.arms["bissl"][0].backbone(training.context).folder

    whole = backbone("whole")
    broken_at(1, BiSSLTask, "_upper_level", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        backbone("broken")
    monkeypatch.undo()
    assert (tmp_path / "broken" / "run" / "bissl" / "checkpoint.pt").exists()
    assert "momentum" in assert_same_weights(backbone("broken"), whole)
