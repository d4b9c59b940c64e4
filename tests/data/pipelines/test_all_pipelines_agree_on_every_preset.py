"""The same table rendered by every pipeline and by torchvision, on drawn pictures and on photographs."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from bissl_fast.data.views.parameters import draw_views
from tests.data.pictures import (
    PRESETS,
    RENDERERS,
    by_torchvision,
    in_levels,
    photographs,
    photos,
    with_each_pair_of_pipelines,
    with_each_pipeline,
)

N = 12
ARCHIVES = {"DTD": ("dtd_10classes_s128.tar.gz", 112), "Tiny-ImageNet": ("tiny_imagenet_train100_val.tar.gz", 64)}
FROM_DEFINITION = {"torch": 0.0, "fused": 0.01, "dali": 0.5}  # levels; the definition is the torch pipeline
FROM_TORCHVISION = {"torch": 0.1, "fused": 0.1, "dali": 0.5}


@pytest.fixture(scope="module", params=["drawn", *ARCHIVES])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """(N, S, S, 3) uint8."""
    if request.param == "drawn":
        return photos(N, 70, 70)
    archive, size = ARCHIVES[request.param]
    folder: Path = request.getfixturevalue("real_data")
    return photographs(folder / archive, N, size, tmp_path_factory.mktemp("photographs"))


@cache
def views(images: torch.Tensor, preset: str, pipeline: str) -> list[torch.Tensor]:
    """All views of a preset by a pipeline, or by torchvision."""
    render = RENDERERS.get(pipeline, by_torchvision)
    samples, size = np.arange(N), (images.shape[1], images.shape[2])
    return [
        render(images, draw_views(settings, 3, 1, samples, number, size), settings)
        for number, settings in enumerate(PRESETS[preset])
    ]


@with_each_pair_of_pipelines()
@pytest.mark.parametrize("preset", PRESETS)
def test_pipelines_are_within_half_a_level_of_each_other(
    images: torch.Tensor, preset: str, pair: tuple[str, str]
) -> None:
    for first, second, settings in zip(
        views(images, preset, pair[0]), views(images, preset, pair[1]), PRESETS[preset], strict=True
    ):
        assert first.shape == (N, 3, settings.size, settings.size)
        apart = in_levels(first - second, settings)
        assert apart.max() <= max(FROM_DEFINITION[name] for name in pair)
        assert apart.mean() <= 0.02


@with_each_pipeline()
@pytest.mark.parametrize("preset", PRESETS)
def test_a_whole_view_is_what_torchvision_makes_of_the_same_parameters(
    images: torch.Tensor, preset: str, pipeline: str
) -> None:
    for found, expected, settings in zip(
        views(images, preset, pipeline), views(images, preset, "torchvision"), PRESETS[preset], strict=True
    ):
        apart = in_levels(found - expected, settings)
        assert apart.max() <= FROM_TORCHVISION[pipeline]
        assert apart.mean() <= 0.02
