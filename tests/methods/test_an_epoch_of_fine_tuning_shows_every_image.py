"""The last batch of an epoch of fine-tuning counts, however few images it has."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.train import Training


@pytest.mark.parametrize(("batch_size", "steps"), [(8, 5), (13, 3), (19, 2), (20, 2)])
def test_an_epoch_of_fine_tuning_shows_every_image_unless_one_is_left(
    small_data: Path, tmp_path: Path, batch_size: int, steps: int
) -> None:
    base = preset_config("quick", f"folder:{small_data / 'labelled'}")
    config = replace(
        base,
        pretext_dataset=f"folder:{small_data / 'loose'}",
        cache_dir=small_data / "cache",
        output=tmp_path,
        pretrain=replace(base.pretrain, batch_size=16),
        finetune=replace(base.finetune, batch_size=batch_size),
    )
    training = Training(config, Console(quiet=True))
    images = training.context.data.splits.train
    assert len(images) == 39
    assert Downstream(config.finetune).epoch_steps(training.context) == steps
    with training.context.data.loader(
        images, (config.images.finetune_view,), batch_size, "finetune-0", keep_last=True
    ) as loader:
        shown = np.concatenate([loader.load(draw).samples for draw in range(steps)])
    assert len(set(shown)) == len(shown) == 39 - (39 % batch_size == 1)
