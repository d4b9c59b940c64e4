"""`bissl-fast pretrain`: a collapse is told while it trains, and its config repeats it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bissl_fast.cli import main
from bissl_fast.evaluation.run_folder import RunFolder
from tests.methods.conftest import SMALL
from tests.methods.tasks import SMALL_TASKS

OF_TRAIN = ("--head", "--bissl", "--finetune", "--bilevel")
SMALL_PRETRAIN = [
    part
    for option, value in zip(SMALL[::2], SMALL[1::2], strict=True)
    if not option.startswith(OF_TRAIN)
    for part in (option, value)
]


def pretrain(data: Path, output: Path, task: str, *more: str) -> int:
    sets = [
        "--pretext-dataset",
        f"folder:{data / 'loose'}",
        "--cache-dir",
        str(data / "cache"),
        "--output",
        str(output),
    ]
    named = ["--name", "run", "--pretext", task, *SMALL_TASKS[task].split()]
    return main(["pretrain", *sets, *SMALL_PRETRAIN, *named, *more])


@pytest.mark.parametrize("collapses", [True, False])
def test_a_stage_says_once_that_its_embeddings_have_collapsed_and_a_healthy_one_says_nothing(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], collapses: bool
) -> None:
    """Embeddings of one dimension, scaled to norm 1, can but be two points."""
    projector = ["--pretext.projector", "32", "1"] if collapses else []
    assert pretrain(small_data, tmp_path, "vicreg", "--pretrain.epochs", "3", *projector) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("embeddings have collapsed: they") == collapses
    records = RunFolder(tmp_path / "run").metrics("pretext")
    assert len(records) == 9
    assert all(record["spread"] >= 0 and (record["effective_rank"] < 1.5) == collapses for record in records)


def test_its_config_repeats_it_elsewhere_and_is_refused_by_train(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(small_data, tmp_path / "first", "moco", "--pretrain.epochs", "1") == 0
    config = str(tmp_path / "first" / "run" / "config.yaml")
    assert main(["pretrain", "--config", config, "--output", str(tmp_path / "second")]) == 0
    first, second = (load_file(tmp_path / o / "run" / "pretext" / "weights.safetensors") for o in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    capsys.readouterr()
    assert main(["train", "--config", config]) == 2
    assert "is of `bissl-fast pretrain`, which trains no downstream task" in capsys.readouterr().err


def test_a_folder_without_classes_is_what_pretext_training_asks_for(small_data: Path, tmp_path: Path) -> None:
    kept = ["--cache-dir", str(small_data / "cache"), "--output", str(tmp_path), "--name", "run"]
    assert main(["pretrain", "--dataset", f"folder:{small_data / 'loose'}", *kept, *SMALL_PRETRAIN]) == 0
    assert (tmp_path / "run" / "pretext" / "weights.safetensors").exists()
