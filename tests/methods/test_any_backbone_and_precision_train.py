"""Other backbones than ResNets, and other precisions than float32."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bissl_fast.methods.bissl import BiSSLSettings
from bissl_fast.methods.finetune import FineTuneSettings, HeadSettings
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.pretrain import PretrainSettings
from bissl_fast.methods.train import Training


@pytest.mark.parametrize(
    ("backbone", "precision"), [("test_efficientnet", "fp32"), ("test_resnet", "bf16"), ("test_resnet", "tf32")]
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
        images=replace(base.images, size=48),
        pretrain=PretrainSettings(epochs=1, batch_size=16, warmup_epochs=0),
        head=HeadSettings(epochs=1),
        bissl=BiSSLSettings(alternations=1, lower_steps=1, upper_steps=1, solver_iterations=1, stored_batches=1),
        finetune=FineTuneSettings(epochs=1, batch_size=8, seeds=1),
    )
    training = Training(config, Console(quiet=True))
    warmup = training.pretext("pretext-warmup", 2)
    bissl = training.bissl(warmup, training.head_warmup(warmup))
    finetuned = training.finetune("finetune-bissl-0", bissl, config.finetune_bissl, 0)
    assert (finetuned.folder / "weights.safetensors").stat().st_size > 10_000
