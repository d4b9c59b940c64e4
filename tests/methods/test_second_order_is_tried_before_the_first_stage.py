"""A backbone that cannot serve BiSSL is found out in seconds, not after the pretext stage."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.bilevel.products.budget import BESIDE_TENSORS
from bissl_fast.cli.train import parse_config
from bissl_fast.data.views.presets import simclr_views
from bissl_fast.errors import UserError
from bissl_fast.methods import run, trial
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.train import Training
from bissl_fast.methods.trial import bytes_needed, kept_or_tried, noise, usable
from bissl_fast.models import Network, build_projector
from bissl_fast.pretext import Learner, SimCLR
from tests.methods.conftest import train_arguments


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0]


class SquareOnce(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


VIEWS = simclr_views(16)


class Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


def network(*layers: nn.Module) -> Network:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(backbone, build_projector(4, (8, 8), 0))


def test_settings_that_serve_stay_as_they_are() -> None:
    for mode in ("linearized", "reverse", "gauss_newton", "finite_difference"):
        settings = BilevelSettings(mode=mode, batches_at_once=2)  # type: ignore[arg-type]
        assert usable(settings, Learner(SimCLR(), network(nn.ReLU())), VIEWS) == (settings, "")


def test_where_only_reverse_can_serve_it_is_taken_and_said() -> None:
    settings, note = usable(BilevelSettings(recycle=True), Learner(SimCLR(), network(nn.Dropout(0.1))), VIEWS)
    assert settings == BilevelSettings(mode="reverse", recycle=True)
    assert note.startswith("--bilevel.mode reverse serves in place of linearized, more slowly: ")
    assert "draws random numbers" in note


REFUSED = {
    "no exact mode": ("linearized", SquareOnce, "once_differentiable.*--bilevel.mode finite_difference estimates"),
    "reverse alone": ("reverse", SquareOnce, "--bilevel.mode reverse: .*--bilevel.mode finite_difference estimates"),
    "gauss_newton": ("gauss_newton", nn.Dropout, "random numbers.*--bilevel.mode reverse takes the Hessian itself"),
    "a product without a value": ("reverse", Infinite, "is not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_serve_is_refused_and_told_what_does(name: str) -> None:
    mode, layer, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence):
        usable(BilevelSettings(mode=mode), Learner(SimCLR(), network(layer())), VIEWS)  # type: ignore[arg-type]


def test_a_capture_is_never_given_up_in_silence() -> None:
    with pytest.raises(UserError, match="random numbers"):
        usable(BilevelSettings(capture=True), Learner(SimCLR(), network(nn.Dropout(0.1))), VIEWS)


def test_the_trial_leaves_no_trace() -> None:
    module = network(nn.ReLU()).eval()
    before, drawn = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    usable(BilevelSettings(mode="reverse"), Learner(SimCLR(), module), VIEWS)
    assert not module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_run_takes_what_serves_or_ends_before_it_has_written_anything(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(train_arguments(small_data, tmp_path))
    linearized = replace(config, bilevel=replace(config.bilevel, mode="linearized"))
    monkeypatch.setattr(run, "probe_features", lambda *_: 4)
    monkeypatch.setattr(run, "build_backbone", lambda *_: network(nn.Dropout(0.1)).backbone)
    console = Console(width=300, record=True)
    assert Training(linearized, console).arms["bissl"][0].bilevel.mode == "reverse"
    assert "--bilevel.mode reverse serves in place of linearized" in console.export_text()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["trial.json"]
    shutil.rmtree(tmp_path / "run")
    monkeypatch.setattr(run, "build_backbone", lambda *_: network(SquareOnce()).backbone)
    with pytest.raises(UserError, match="choose another --backbone"):
        Training(config, Console(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # three traces
def test_memory_of_large_batches_is_known_from_small_ones() -> None:
    learner = Learner(SimCLR(), network(nn.ReLU()), chunk=4)
    given = [tuple(learner.given([noise(VIEWS, 32, torch.zeros(()))]))]
    taken = HessianOperator(learner.product_loss, ParameterVector(learner.network, "backbone."), given, "linearized")
    found, expected = bytes_needed(BilevelSettings(), learner, VIEWS, 32), taken.needed_bytes
    assert found - BESIDE_TENSORS == pytest.approx(expected - BESIDE_TENSORS, rel=0.05)


def test_chunks_whose_whole_batches_no_product_can_take_are_refused_before_the_first_stage(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(trial, "bytes_needed", lambda *given: asked.append(given[-1]) or 10**12)
    arguments = train_arguments(small_data, tmp_path, "--bilevel.memory-budget", "2", "--methods", "bissl")
    Training(parse_config(arguments), Console(quiet=True))
    for _ in range(2):  # the second time by what is kept
        with pytest.raises(UserError, match=r"all 16 images of a stored batch at once.* about 1,000.0 GB.* is 2.0 GB"):
            Training(parse_config([*arguments, "--pretrain.chunk", "4"]), Console(quiet=True))
    assert asked == [16]


def test_a_run_keeps_the_answer_and_asks_again_where_anything_else_is_asked(tmp_path: Path) -> None:
    built, told = [], []

    def learner(task: SimCLR) -> Learner:
        built.append(task)
        return Learner(task, network(nn.Dropout(0.1)))

    def asked(version: str = "1", **settings: Any) -> BilevelSettings:
        environment = {"bissl-fast": version, "packages": {}, "device": "cpu"}
        run = SimpleNamespace(
            folder=tmp_path / "run",
            device=torch.device("cpu"),
            environment=environment,
            settings=SimpleNamespace(backbone="own"),
            ranks=None,
            views=VIEWS,
            learner=learner,
            say=told.append,
        )
        return kept_or_tried(run, BilevelSettings(**settings), SimCLR())  # type: ignore[arg-type]

    first = asked()
    assert first.mode == "reverse"
    assert "serves in place of linearized" in told[0]
    assert asked() == first
    assert told[1] == told[0]
    assert len(built) == 1
    assert asked(recycle=True) == BilevelSettings(mode="reverse", recycle=True)
    asked(version="2", recycle=True)
    assert len(built) == 3
    (tmp_path / "run" / "trial.json").write_text("{", encoding="utf-8")  # cut off
    assert asked() == first
    assert len(built) == 4
