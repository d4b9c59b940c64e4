"""The last batch of an epoch of fine-tuning counts, however few images it has."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bissl_fast.cli.train import parse_config
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.train import Training
from tests.methods.conftest import train_arguments


@pytest.fixture(scope="module")
def training(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    arguments = train_arguments(small_data, tmp_path_factory.mktemp("epochs"))
    return Training(parse_config(arguments).located(), Console(quiet=True))


@pytest.mark.parametrize(("batch_size", "steps"), [(8, 5), (13, 3), (19, 2), (20, 2)])
def test_an_epoch_of_fine_tuning_shows_every_image_unless_one_is_left(
    training: Training, batch_size: int, steps: int
) -> None:
    config, data = training.config, training.context.data
    images, view = data.splits.train, config.images.finetune_view
    assert len(images) == 39
    assert Downstream(replace(config.finetune, batch_size=batch_size)).epoch_steps(training.context) == steps
    with data.loader(images, (view,), batch_size, "finetune-0", keep_last=True) as loader:
        shown = np.concatenate([loader.load(draw).samples for draw in range(steps)])
    assert len(set(shown)) == len(shown) == 39 - (39 % batch_size == 1)
