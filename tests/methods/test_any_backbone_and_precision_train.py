"""Other backbones than ResNets, and other precisions than float32."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.stages.downstream import Downstream, FineTuneSettings
from bissl_fast.methods.stages.finetune import finetune
from bissl_fast.methods.stages.head import HeadSettings
from bissl_fast.methods.stages.pretrain import PretrainSettings
from bissl_fast.methods.train import Training


@pytest.mark.parametrize(
    ("backbone", "precision"),
    [
        ("test_efficientnet", "fp32"),
        ("test_resnet", "bf16"),
        pytest.param("test_resnet", "tf32", marks=pytest.mark.slow),  # on a CPU as fp32
    ],
)
def test_bissl_and_fine_tuning_run_on(small_data: Path, tmp_path: Path, backbone: str, precision: Any) -> None:
    base = preset_config("quick", f"folder:{small_data / 'labelled'}")
    config = replace(
        base,
        pretext_dataset=f"folder:{small_data / 'loose'}",
        cache_dir=small_data / "cache",
        output=tmp_path,
        backbone=backbone,
        precision=precision,
        images=replace(base.images, size=32),
        pretrain=PretrainSettings(epochs=1, batch_size=16, warmup_epochs=0),
        head=HeadSettings(epochs=1),
        bissl=BiSSLSettings(alternations=1, lower_steps=1, upper_steps=1, solver_iterations=1, stored_batches=1),
        finetune=FineTuneSettings(epochs=1, batch_size=8, seeds=1),
    )
    training = Training(config, Console(quiet=True))
    bissl = training.arms["bissl"][0].backbone(training.context)
    downstream = Downstream(config.finetune)
    finetuned = finetune(training.context, "finetune-bissl-0", downstream, bissl, config.finetune_bissl, 0)
    assert (finetuned.folder / "weights.safetensors").stat().st_size > 10_000
