"""`torchrun … -m bissl_fast.cli train` by every method: what each stage leaves is what one process leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from bissl_fast.cli.train import parse_config
from bissl_fast.errors import UserError
from bissl_fast.methods.config import MethodName
from bissl_fast.methods.train import Training, train
from bissl_fast.ops import Ranks
from tests.methods.conftest import train_arguments
from tests.methods.tasks import mostly_slow

METHODS = {
    "bissl": "--bissl.alternations 2 --bissl.warmup-steps 1",
    "baseline": "--pretrain.baseline-epochs 1",
    "gessl": "--gessl.tasks 4 --gessl.batch-size 6 --gessl.steps 2 --gessl.target-steps 2",
    "fussl": "--fussl.blocks 2 --fussl.recipe pretext --fussl.first-epochs 1 --fussl.second-epochs 1",
    "abrl": "--abrl.batch-size 6 --abrl.steps 3",
}
"""Few steps: in float32 each multiplies what rounding has made of the one before."""

SHORT = "--loop.checkpoint-seconds 3600 --pretrain.epochs 1 --head.epochs 1 --finetune.epochs 1"
ROUNDING = 2e-4
"""Of all weights of a stage together; 2e-5 at most was seen."""


def arguments(data: Path, output: Path, method: str) -> list[str]:
    return train_arguments(data, output, *SHORT.split(), "--methods", method, *METHODS[method].split())


def on_two_ranks(given: list[str], name: str = "train") -> str:
    """What a command prints."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    command = [*launcher, "-m", "bissl_fast.cli", name, *given]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    return done.stdout


def distance(first: Path, second: Path) -> float:
    """‖w − w′‖ / ‖w‖ of all weights of a stage."""
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    one, other = (torch.cat([found[name].double().flatten() for name in ours]) for found in (ours, theirs))
    return float((one - other).norm() / one.norm())


def files(stage: Path) -> list[str]:
    """All that a stage has left; of TensorBoard's, whose names hold a time, how many."""
    return sorted(str(p.relative_to(stage)).split("tfevents")[0] for p in stage.rglob("*") if p.is_file())


@pytest.mark.parametrize("method", mostly_slow(METHODS, "gessl"))
def test_each_stage_is_kept_by_the_same_key_and_left_once_with_the_same_weights(
    method: str, small_data: Path, tmp_path: Path
) -> None:
    printed = on_two_ranks(arguments(small_data, tmp_path / "two", method))
    assert printed.count("Report: ") == 1, printed
    two = tmp_path / "two" / "run"
    one = train(parse_config(arguments(small_data, tmp_path / "one", method)).located(), Console(quiet=True))
    stages = [folder for folder in sorted(one.iterdir()) if (folder / "DONE").exists()]
    assert {folder.name for folder in stages} >= {method if method != "baseline" else "pretext-baseline", "test"}
    for stage in stages:
        ours, theirs = (json.loads((run / stage.name / "key.json").read_text()) for run in (one, two))
        assert ours["settings"] == theirs["settings"], stage.name
        assert files(stage) == files(two / stage.name)
        if (stage / "metrics.jsonl").exists():
            lines = [(run / stage.name / "metrics.jsonl").read_text().splitlines() for run in (one, two)]
            assert [json.loads(line).keys() for line in lines[0]] == [json.loads(line).keys() for line in lines[1]]
        if (stage / "weights.safetensors").exists():
            assert distance(stage, two / stage.name) < ROUNDING, stage.name


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--methods baseline", "--pretrain.batch-size 16 has no equal parts for 3 ranks"),
        ("--methods bissl", "--pretrain.batch-size 16 has no equal parts for 3 ranks"),
        ("--methods fussl --pretrain.batch-size 18 --pretrain.chunk 10", "--pretrain.chunk 10 has"),
        ("--methods gessl --gessl.tasks 4 --gessl.batch-size 6", "--gessl.tasks 4 has no equal parts for 3 ranks"),
        ("--methods abrl --abrl.batch-size 5 --pretrain.batch-size 18", "--abrl.batch-size 5 has"),
    ],
)
def test_what_ranks_cannot_share_is_refused_before_the_first_stage(
    options: str, sentence: str, small_data: Path, tmp_path: Path
) -> None:
    usual = train_arguments(small_data, tmp_path, *SHORT.split(), "--pretrain.baseline-epochs", "1")
    training = Training(parse_config([*usual, *options.split()]).located(), Console(quiet=True))
    run, ((method, _),) = training.context, training.arms.values()
    run.ranks = Ranks(0, 3, "not asked")
    with pytest.raises(UserError, match=sentence):
        method.prepare(run)
    with pytest.raises(UserError, match=r"--finetune\.batch-size 8 has"):
        training.judge.require(run, [])


def test_no_method_is_left_out() -> None:
    assert set(METHODS) == set(get_args(MethodName))


@pytest.mark.slow
def test_a_comparison_on_two_ranks_makes_each_run_once_and_tells_it_once(small_data: Path, tmp_path: Path) -> None:
    given = train_arguments(small_data, tmp_path, *SHORT.split(), "--bissl.alternations", "2", "--seeds", "2")
    printed = on_two_ranks([*given, "--methods", "baseline", "bissl"], "compare")
    assert printed.count("Report: ") == 1, printed
    told = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert set(told["arms"]) == {"baseline", "bissl"}
    assert all((tmp_path / "run" / f"seed-{seed}" / "results.json").exists() for seed in (0, 1))
