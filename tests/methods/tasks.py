"""Every pretext task so small that its stages take seconds, as options of the command line."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bissl_fast.cli.train import parse_config
from bissl_fast.methods.config import TrainConfig
from tests.methods.conftest import train_arguments

CROPS = "--pretext.local-views 1 --images.local-size 8"
SMALL_TASKS = {
    "simclr": "--pretext.projector 32 16",
    "moco": "--pretext.projector 32 16 --pretext.queue 40",
    "byol": "--pretext.projector 32 16 --pretext.predictor 32",
    "simsiam": "--pretext.projector 32 32 16 --pretext.predictor 8",
    "barlow": "--pretext.projector 32 16",
    "vicreg": "--pretext.projector 32 16",
    "swav": f"--pretext.projector 32 16 --pretext.prototypes 12 --pretext.freeze-prototypes 2 {CROPS}",
    "dino": f"--pretext.projector 32 16 --pretext.prototypes 24 --pretext.freeze-last-layer 2 {CROPS}",
    "wmse": "--pretext.projector 32 4 --pretext.slice-size 8",
}
"""Options of each; batches are of 16 images, and no multiple of the queue's rows."""


def mostly_slow(names: Iterable[str], *quick: str) -> list[Any]:
    """Parameters of a test, all but the quick ones of the slow suite."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def small_arguments(task: str, data: Path, output: Path, *more: str) -> list[str]:
    """Arguments of ``bissl-fast train`` with a small pretext task on the small data."""
    return train_arguments(data, output, "--pretext", task, *SMALL_TASKS[task].split(), *more)


def small_config(task: str, data: Path, output: Path, *more: str) -> TrainConfig:
    """The config that they stand for."""
    return parse_config(small_arguments(task, data, output, *more)).located()
