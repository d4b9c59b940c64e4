"""`--weights`: pretext training, BiSSL and the baseline start from them, and they are part of a stage's key."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from bissl_fast.cli.train import parse_config
from bissl_fast.evaluation.report.run import write_report
from bissl_fast.methods.train import Training, train
from bissl_fast.models import build_backbone
from tests.methods.conftest import pretext_stage, train_arguments


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    save_file({f"module.{n}": v for n, v in build_backbone("test_resnet", 77).state_dict().items()}, path)
    return path


def test_without_pretext_epochs_both_arms_start_from_them(weights: Path, small_data: Path, tmp_path: Path) -> None:
    none = ["--weights", str(weights), "--pretrain.epochs", "0", "--pretrain.baseline-epochs", "0"]
    run = train(parse_config(train_arguments(small_data, tmp_path, *none)).located(), Console(quiet=True))
    own = {n.replace("module.", "backbone."): v for n, v in load_file(weights).items()}
    for stage in ("pretext-warmup", "pretext-baseline"):
        found = load_file(run / stage / "weights.safetensors")
        assert all(torch.equal(found[name], value) for name, value in own.items())
    moved = load_file(run / "bissl" / "weights.safetensors")
    assert any(not torch.equal(moved[name], value) for name, value in own.items())
    assert list(json.loads((run / "results.json").read_text())["arms"]) == ["bissl", "baseline"]
    assert "Pretext loss" in write_report(run).read_text()


def test_other_weights_are_another_stage(weights: Path, small_data: Path, tmp_path: Path) -> None:
    def key(*more: str) -> str:
        training = Training(parse_config(train_arguments(small_data, tmp_path, *more)), Console(quiet=True))
        folder = pretext_stage(training, "pretext-warmup", 1).folder
        return str(json.loads((folder / "key.json").read_text())["key"])

    random, own = key(), key("--weights", str(weights))
    copied = weights.with_name("copied.safetensors")
    copied.write_bytes(weights.read_bytes())
    assert key("--weights", str(copied)) == own != random


def test_a_relative_path_of_weights_means_the_same_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_config(["--weights", "own.pt"]).located().weights == str(tmp_path / "own.pt")
    assert parse_config(["--weights", "timm:resnet18.a1_in1k"]).located().weights == "timm:resnet18.a1_in1k"
