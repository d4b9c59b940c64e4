"""Stages, checkpoints and configs as earlier versions have left them.

``version_0_1_0`` holds two stages of the :class:`Wanderer`, made before checkpoints had a checksum: one that is done,
and the same broken off in its sixth step.
"""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.methods.config import load_config
from bissl_fast.methods.settings import RunSettings
from bissl_fast.training.files import load_weights, save_weights
from bissl_fast.training.loop import run_loop
from bissl_fast.training.stage import FORMAT, run_stage
from tests.training.test_a_broken_loop_goes_on_as_if_it_had_not_been import CPU, EVERY_STEP, Wanderer

KEPT = Path(__file__).with_name("version_0_1_0")
RESULTS = Path(__file__).parents[2] / "docs" / "results"


def stage(folder: Path) -> str:
    """The stage that was kept, made or gone on with by this version; returns what it told."""
    told = io.StringIO()

    def body(inner: Path) -> None:
        task = Wanderer()
        run_loop(task, inner, CPU, 5, EVERY_STEP, Console(file=told))
        save_weights(inner / "weights.safetensors", {"weight": task.weight})

    run_stage(folder, {"rate": 1.0}, {"images": "abc"}, body, console=Console(file=told))
    return told.getvalue()


@pytest.fixture(params=["done", "half"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return shutil.copytree(KEPT / request.param, tmp_path / "run" / request.param)


def test_a_finished_stage_is_found_and_a_broken_one_goes_on_to_the_same_bits(kept: Path) -> None:
    told = stage(kept)
    assert ("done before, skipped" if kept.name == "done" else "goes on after step 5 of 7") in told
    wanted = load_weights(KEPT / "done" / "weights.safetensors")["weight"]
    assert torch.equal(load_weights(kept / "weights.safetensors")["weight"], wanted)


def test_a_stage_that_was_computed_otherwise_is_kept_made_again_and_told(kept: Path) -> None:
    for name in ("key.json", "DONE"):
        if (kept / name).exists():
            content = json.loads((kept / name).read_text())
            (kept / name).write_text(json.dumps({**content, "key": "0" * 64, "format": 1}))
    told = stage(kept)
    assert f"computes it otherwise (stage format {FORMAT}) than the one that made it (1)" in told
    assert (kept.parent / "superseded" / f"{kept.name}-00000000" / "metrics.jsonl").exists()


def test_configs_of_kept_runs_are_read_or_refused_by_their_version() -> None:
    told = []
    for config in sorted(RESULTS.glob("*/config.yaml")):
        try:
            load_config(config, RunSettings)
            told.append("read")
        except UserError as error:
            told.append(str(error))
    assert "read" in told
    refusals = [sentence for sentence in told if sentence != "read"]
    assert all("config version" in sentence or "which have many runs" in sentence for sentence in refusals), refusals
