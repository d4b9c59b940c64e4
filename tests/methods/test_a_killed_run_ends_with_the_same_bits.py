"""The whole pipeline, killed in the middle of each of its stages."""

import json
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.forks import Command
from tests.methods.conftest import EVERY_STEP, train_arguments

LOOPS = ("pretext-warmup", "head-warmup", "bissl", "pretext-baseline", "finetune-bissl-0", "finetune-baseline-0")
STAGES = (*LOOPS, "test")


def finish(arguments: list[str]) -> str:
    process = Command(["train", *arguments])
    output = process.end()
    assert process.status() == 0, output
    return output


def stop_in(stage: Path, arguments: list[str], number: signal.Signals) -> Command:
    """Start, wait until the stage has written a checkpoint (or has begun, where it has none), send the signal."""
    process = Command(["train", *arguments])
    deadline = time.monotonic() + 200
    sign = stage / ("checkpoint.pt" if stage.name in LOOPS else "key.json")
    while not sign.exists():
        assert process.status() is None, process.told()
        assert time.monotonic() < deadline, f"{stage.name} wrote no {sign.name}"
        time.sleep(0.002)
    process.send_signal(number)
    return process


def outcome(run: Path) -> dict[str, str]:
    """Hashes of everything that a stage hands on, and the results."""
    stages = {path.parent.name: json.dumps(json.loads(path.read_text())["outputs"]) for path in run.glob("*/DONE")}
    return stages | {"results": (run / "results.json").read_text()}


@pytest.fixture(scope="module")
def unbroken(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken")
    finish(train_arguments(small_data, output))
    return output / "run"


def test_killed_in_the_middle_of_every_stage_it_ends_with_the_same_bits(
    small_data: Path, unbroken: Path, tmp_path: Path
) -> None:
    arguments = train_arguments(small_data, tmp_path, *EVERY_STEP)
    for name in STAGES:
        stage = tmp_path / "run" / name
        process = stop_in(stage, arguments, signal.SIGKILL)
        process.end()
        assert process.status() == -signal.SIGKILL
        assert not (stage / "DONE").exists(), f"{name} was over before it could be killed"
    output = finish(arguments)
    assert output.count("done before, skipped") == len(LOOPS)
    assert outcome(tmp_path / "run") == outcome(unbroken)
    assert len(outcome(unbroken)) == len(STAGES) + 1


@pytest.mark.parametrize("name", ["bissl", pytest.param("test", marks=pytest.mark.slow)])
def test_sigterm_ends_with_the_command_that_resumes_and_that_command_resumes(
    small_data: Path, unbroken: Path, tmp_path: Path, name: str
) -> None:
    arguments = train_arguments(small_data, tmp_path, *EVERY_STEP)
    process = stop_in(tmp_path / "run" / name, arguments, signal.SIGTERM)
    output = process.end()
    assert process.status() == 130
    told = shlex.split(output.rpartition("Go on with: ")[2])
    assert told == ["bissl-fast", "train", *map(str, arguments)]
    finish(told[2:])
    assert outcome(tmp_path / "run") == outcome(unbroken)


def test_a_finished_run_is_skipped_and_its_config_repeats_it_elsewhere(
    small_data: Path, unbroken: Path, tmp_path: Path
) -> None:
    output = finish(train_arguments(small_data, unbroken.parent))
    assert output.count("done before, skipped") == len(STAGES)
    finish(["--config", str(unbroken / "config.yaml"), "--output", str(tmp_path)])
    assert outcome(tmp_path / "run") == outcome(unbroken)


def test_what_the_test_keeps_beside_its_scores_is_what_they_are_scores_of(unbroken: Path) -> None:
    scores = json.loads((unbroken / "results.json").read_text())["arms"]
    kept = {name: dict(np.load(unbroken / "test" / f"{name}.npz")) for name in ("predictions", "tuned", "confused")}
    found, images = kept["predictions"], kept["confused"]
    for arm in ("bissl", "baseline"):
        right = 100 * (found[arm] == found["labels"]).mean(axis=1)
        np.testing.assert_allclose(right, scores[arm]["scores"]["top1"], rtol=1e-6)
        head = load_file(unbroken / f"finetune-{arm}-0" / "weights.safetensors")
        outputs = kept["tuned"][arm] @ head["head.weight"].T + head["head.bias"]
        assert (outputs.argmax(axis=1) == found[arm][0]).all()
    assert found["classes"].tolist() == ["class0", "class1", "class2"]
    assert images["images"].shape == (*images["indices"].shape, 20, 20, 3)
    assert (images["pairs"][:, 0] != images["pairs"][:, 1]).all()


def test_every_alternation_logs_the_curvature_that_its_products_have_shown(unbroken: Path) -> None:
    records = [json.loads(line) for line in (unbroken / "bissl" / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 8
    assert all(np.isfinite(record["curvature"]) for record in records)
