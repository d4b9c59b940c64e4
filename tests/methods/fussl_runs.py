"""FUSSL on the small data: arguments, runs and what its stages hold."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from bissl_fast.methods.fussl.method import FUSSL
from bissl_fast.methods.train import Training
from tests.methods.tasks import small_config

SHORT = (
    *("--methods", "fussl", "--fussl.recipe", "pretext"),
    *("--fussl.blocks", "2", "--fussl.first-epochs", "2", "--fussl.second-epochs", "2"),
    *("--loop.checkpoint-seconds", "3600"),
)
EVERY_STEP = ("--loop.checkpoint-seconds", "0")
"""For runs that are broken off: checkpoints take longer than such steps."""


def training(data: Path, output: Path, *more: str, task: str = "simclr", console: Console | None = None) -> Training:
    """A run of FUSSL, prepared: 48 images in batches of 16, two epochs in each phase."""
    return Training(small_config(task, data, output, *SHORT, *more), console or Console(quiet=True))


def method_of(run: Training) -> FUSSL:
    method = run.arms["fussl"][0]
    assert isinstance(method, FUSSL)
    return method


def backbone(run: Training) -> Path:
    """The run's folder after all stages up to the backbone."""
    method_of(run).backbone(run.context)
    return run.context.folder


def weights(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "weights.safetensors")
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def differing(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    """Names whose tensors are not the same to the bit."""
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}
