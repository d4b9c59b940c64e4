"""BiSSL with every pretext task in its lower level, and what may move in each level watched."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bissl_fast.cli import main
from bissl_fast.methods.bissl.algorithm import BiSSLTask
from bissl_fast.methods.train import Training
from bissl_fast.pretext import TASKS, Learner
from tests.methods.tasks import SMALL_TASKS, mostly_slow, small_arguments, small_config

SHORT = (
    *("--pretrain.epochs", "1", "--head.epochs", "1", "--finetune.epochs", "1", "--bissl.alternations", "1"),
    *("--bissl.warmup-steps", "1", "--bissl.adaptation-every", "1"),
)
LOWER_STEPS = 2  # of the small settings


class Watch:
    """What a run of BiSSL's levels did: modes of its products, and how often the learner's state was moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modes: list[str] = []
        self.advances: list[int] = []
        self._moved = 0
        lower, upper, advance = BiSSLTask._lower_level, BiSSLTask._upper_level, Learner.advance

        def watched_advance(learner: Learner, progress: float) -> None:
            self._moved += 1
            advance(learner, progress)

        def watched_lower(task: BiSSLTask, index: int) -> Any:
            self._moved = 0
            result = lower(task, index)
            self.advances.append(self._moved)
            return result

        def watched_upper(task: BiSSLTask, index: int, stored: Any) -> Any:
            before = {name: value.clone() for name, value in task.learner.state_dict().items()}
            result = upper(task, index, stored)
            after = task.learner.state_dict()
            assert not [name for name in before if not torch.equal(before[name], after[name])]
            assert self._moved == LOWER_STEPS
            assert task.hessian is not None
            self.modes.append(task.bilevel.mode)
            return result

        monkeypatch.setattr(Learner, "advance", watched_advance)
        monkeypatch.setattr(BiSSLTask, "_lower_level", watched_lower)
        monkeypatch.setattr(BiSSLTask, "_upper_level", watched_upper)


def test_the_small_tasks_are_all_there_are() -> None:
    assert set(SMALL_TASKS) == {task.name for task in TASKS}


@pytest.mark.parametrize("mode", mostly_slow(["reverse", "linearized"], "reverse"))
@pytest.mark.parametrize("name", SMALL_TASKS)
def test_the_lower_level_moves_the_tasks_state_and_the_upper_level_none_of_it(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mode: str
) -> None:
    watch = Watch(monkeypatch)
    config = small_config(name, small_data, tmp_path, *SHORT, "--bilevel.mode", mode)
    training = Training(config, Console(quiet=True))
    training.arms["bissl"][0].backbone(training.context)
    assert watch.advances == [LOWER_STEPS]
    assert watch.modes == [json.loads((tmp_path / "run" / "trial.json").read_text())["mode"]]


@pytest.mark.parametrize("name", mostly_slow(SMALL_TASKS, "moco", "dino"))
def test_from_end_to_end(small_data: Path, tmp_path: Path, name: str) -> None:
    assert main(["train", *small_arguments(name, small_data, tmp_path, *SHORT)]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["arms"].keys() == {"bissl", "baseline"}
