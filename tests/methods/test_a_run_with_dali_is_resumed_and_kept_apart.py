"""`--images.pipeline dali` in a run: killed and resumed, and never mixed with views of the other renderer."""

import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.stages.downstream import FineTuneSettings
from bissl_fast.methods.stages.pretrain import PretrainSettings
from bissl_fast.methods.train import Training
from bissl_fast.training.loop import LoopSettings
from bissl_fast.training.stage import StageOutput
from tests.forks import forked
from tests.methods.conftest import pretext_stage

pytest.importorskip("nvidia.dali")


def pretext(data: Path, output: Path, pipeline: Any = "dali", steps: int = 2, between: float = 3600) -> StageOutput:
    """The stage `pretext-warmup` of a small run, on one thread, with seconds between its checkpoints."""
    base = preset_config("quick", f"folder:{data / 'labelled'}")
    config = replace(
        base,
        pretext_dataset=f"folder:{data / 'loose'}",
        cache_dir=data / "cache",
        output=output.parent,
        name=output.name,
        device="cpu",
        threads=1,
        backbone="test_resnet",
        methods=("baseline",),  # no products are tried
        images=replace(base.images, size=16, pipeline=pipeline),
        pretrain=PretrainSettings(epochs=1, batch_size=16, warmup_epochs=0),
        finetune=FineTuneSettings(batch_size=8),
        loop=LoopSettings(checkpoint_seconds=between),
    )
    return pretext_stage(Training(config, Console()), "pretext-warmup", steps)


def test_killed_in_the_middle_it_ends_with_the_same_bits(small_data: Path, tmp_path: Path) -> None:
    steps = 40
    process = forked(pretext, small_data, tmp_path / "broken", "dali", steps, 0.0)
    process.start()
    stage, deadline = tmp_path / "broken" / "pretext-warmup", time.monotonic() + 100
    while not (stage / "checkpoint.pt").exists():
        assert process.is_alive(), "the run ended by itself"
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (stage / "DONE").exists(), "it was over before it could be killed"
    resumed = pretext(small_data, tmp_path / "broken", steps=steps)
    (tmp_path / "elsewhere").mkdir()  # from where no finished stage is copied
    assert resumed.hash == pretext(small_data, tmp_path / "elsewhere" / "unbroken", steps=steps).hash


def test_a_stage_of_one_renderer_is_never_taken_for_the_others(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_torch = pretext(small_data, tmp_path / "a", "torch").hash
    assert pretext(small_data, tmp_path / "a", "auto").hash == by_torch
    assert "pretext-warmup: done before, skipped" in capsys.readouterr().out
    by_dali = pretext(small_data, tmp_path / "a").hash
    assert "pretext-warmup: settings or inputs changed; the earlier result is kept" in capsys.readouterr().out
    assert by_dali != by_torch
    assert pretext(small_data, tmp_path / "b").hash == by_dali
    assert "pretext-warmup: copied from" in capsys.readouterr().out
