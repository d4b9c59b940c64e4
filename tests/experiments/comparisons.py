"""Comparisons so small that they take seconds, and counts of the work that they make."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bissl_fast.cli.compare import parse_comparison
from bissl_fast.evaluation.finetuning import FineTuneTask
from bissl_fast.methods.bissl.algorithm import BiSSLTask
from bissl_fast.methods.config import ComparisonConfig
from bissl_fast.methods.train import Training
from bissl_fast.pretext import Learner
from tests.methods.conftest import train_arguments

SMALLER = """
--pretrain.epochs 2 --pretrain.warmup-epochs 0.5 --head.epochs 1 --finetune.epochs 1 --bissl.alternations 4
--bissl.upper-steps 1 --bissl.solver-iterations 1 --statistics.batches 1 --loop.checkpoint-seconds 3600
""".split()  # noqa: SIM905


def comparison(data: Path, output: Path, *more: str) -> ComparisonConfig:
    """The config of a small comparison, in a folder ``run``."""
    return parse_comparison([*train_arguments(data, output), *SMALLER, *more], "bissl-fast compare", "", "compare")


class Work:
    """Images in passes of each arm's backbone, and steps of fine-tuning, as they are really made.

    It can be told to break the process off at a pass, as a kill does: after that nothing is written.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: Counter[tuple[int, str]] = Counter()
        self.passes, self.tuned, self.last = 0, 0, -1
        self.at = (0, "")
        backbone = Training._backbone

        def of_arm(training: Training, name: str) -> Any:
            self.at = (training.config.seed, name)
            return backbone(training, name)

        monkeypatch.setattr(Training, "_backbone", of_arm)
        self._count(monkeypatch, Learner, "loss", lambda _, views: len(views[0]))
        self._count(monkeypatch, BiSSLTask, "_downstream_loss", lambda _, __, batch: len(batch.views[0]))
        step = FineTuneTask.step

        def tuned(task: FineTuneTask, index: int) -> Any:
            self.tuned += 1
            return step(task, index)

        monkeypatch.setattr(FineTuneTask, "step", tuned)

    def _count(self, monkeypatch: pytest.MonkeyPatch, kind: type, name: str, images: Any) -> None:
        call = getattr(kind, name)

        def wrapper(this: Any, *given: Any) -> Any:
            if self.passes == self.last:
                raise Killed
            self.passes += 1
            self.images[self.at] += images(this, *given)
            return call(this, *given)

        monkeypatch.setattr(kind, name, wrapper)


class Killed(BaseException):
    """The process is no more."""
