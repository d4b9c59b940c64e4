"""CONTRIBUTING's way of one setting, from the command line to the kernel, can be walked."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bissl_fast
from bissl_fast.cli.train import parse_config
from bissl_fast.methods.baseline import Baseline
from bissl_fast.methods.train import methods_of
from bissl_fast.models import Network
from bissl_fast.ops import contrastive
from bissl_fast.pretext import Learner
from tests.ops.contrastive_cases import needs_native

PACKAGE = Path(bissl_fast.__file__).parent
ROOT = PACKAGE.parent


def steps() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"^\d\. (.*)", text.split("## The way of one setting")[1], re.MULTILINE)


def test_every_step_names_files_that_exist_and_what_stands_in_them() -> None:
    sources = ""
    assert len(steps()) == 5
    for step in steps():
        quoted = re.findall(r"`([^`]+)`", step)
        paths = [PACKAGE / name if (PACKAGE / name).exists() else ROOT / name for name in quoted if "/" in name]
        assert paths, step
        assert all(path.exists() for path in paths), step
        sources += "".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())
        for name in (name for name in quoted if "/" not in name):
            identifier = name.split("(")[0].split(".")[-1]
            assert re.search(rf"\b{identifier}\b", sources), f"{name}, in {step}"


@needs_native
@pytest.mark.parametrize("way", ["loss", "product"])
def test_the_temperature_of_the_command_line_is_that_of_the_kernel(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    real = contrastive.raw

    def watched(backend: str, name: str, *arguments: Any) -> object:
        if name == "fwd":
            _, _, temperature, _ = arguments
            given.append(temperature)
        return real(backend, name, *arguments)

    monkeypatch.setattr(contrastive, "raw", watched)
    config = parse_config(["--pretext.temperature", "0.2"])
    baseline, _ = methods_of(config)["baseline"]
    assert isinstance(baseline, Baseline)
    task = baseline.pretext.task
    learner = Learner(task, Network(nn.Flatten(), nn.Linear(12, 4)))
    views = tuple(torch.randn(2, 5, 3, 2, 2))
    if way == "loss":
        learner.loss(views)
    else:
        learner.product_loss(learner.network, learner.given([views]))
    assert given == [0.2]
