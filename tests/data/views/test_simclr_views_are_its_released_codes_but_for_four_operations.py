"""SimCLR's preset beside its released code, by TensorFlow's own operations, image by image, with the same parameters.

What the preset does otherwise is named in its docstring, and `benchmarks/departures.py` measures it.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.departures import ALONE, DEPARTING, apart, by_tensorflow, only
from bissl_fast.data.pipelines import colour, torch_pipeline
from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.views.parameters import CONTRAST, HUE, SATURATION, ViewSettings, draw_views
from bissl_fast.data.views.presets import simclr_views
from tests.data.pictures import photographs, photos
from tests.data.views.test_presets_are_the_recipes_of_their_sources import (
    Compared,
    contrast_about_each_channels_mean,
    saturation_of_hsv,
)

pytestmark = pytest.mark.peer

N = 16
REAL = 0.1  # levels that float32 is from real numbers, as docs/data.md says
SAME = {"jitter": 0.8, "brightness": 0.8, "hue": 0.2, "gray": 0.2, "blur": 0.5}  # at their odds


@pytest.fixture(scope="module", params=["drawn", "photographs"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """(N, S, S, 3) uint8."""
    pytest.importorskip("tensorflow", reason="the extra `peer` is not installed")
    if request.param == "drawn":
        return photos(N, 70, 70)
    folder: Path = request.getfixturevalue("real_data")
    return photographs(folder / "dtd_10classes_s128.tar.gz", N, 112, tmp_path_factory.mktemp("photographs"))


def compared(images: torch.Tensor, settings: ViewSettings, released: frozenset[str]) -> Compared:
    drawn = draw_views(settings, 3, 1, np.arange(N), 0, (images.shape[1], images.shape[2]))
    theirs = torch.from_numpy(by_tensorflow(images, drawn, settings.size, released))
    return Compared(images, drawn, settings, theirs, torch.zeros(()))


@pytest.mark.parametrize("size", [48, 96])
def test_crop_resize_flip_brightness_hue_gray_and_blur_are_tensorflows(images: torch.Tensor, size: int) -> None:
    assert apart(images, only(size, **SAME), frozenset()).max() <= REAL


@pytest.mark.parametrize("name", ALONE)
def test_four_operations_of_the_released_code_are_others(images: torch.Tensor, name: str) -> None:
    levels = apart(images, only(96, **ALONE[name]), frozenset((name,)) & DEPARTING)
    assert levels.max() > 10 if name in DEPARTING else levels.max() <= REAL


def resize_from_corners(
    start: torch.Tensor, length: torch.Tensor, flip: torch.Tensor, source: int, size: int, _: str, dtype: torch.dtype
) -> torch.Tensor:
    """A cubic with a = -0.75 over the four pixels around ``out * scale``; beyond the crop stands its edge."""
    out = torch.arange(size, dtype=dtype).expand(len(start), -1)
    out = torch.where(flip[:, None], size - 1 - out, out)
    place = out * (length.float() / size)[:, None]  # (N, S)
    matrices = torch.zeros(len(start), size, source, dtype=dtype)
    for tap in range(-1, 3):
        pixel = place.floor() + tap
        distance = (pixel - place).abs()
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        inside = pixel.clamp_min(0).minimum(length[:, None] - 1) + start[:, None]
        matrices.scatter_add_(2, inside.long()[..., None], torch.where(distance <= 1, near, far)[..., None])
    return matrices


def blur_of_a_tenth_with_black_around(sigma: torch.Tensor, size: int, _: float) -> torch.Tensor:
    offset = torch.arange(size) - torch.arange(size)[:, None]
    kernel = torch.exp(-0.5 * (offset / sigma[:, None, None]) ** 2) * (offset.abs() <= size // 10 // 2)
    return kernel / kernel[:, size // 2].sum(-1)[:, None, None]  # far from the edges nothing is missing


def test_what_the_four_operations_are(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition with these in their places is the whole recipe of the released code."""
    settings = dataclasses.replace(simclr_views(96)[0], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    monkeypatch.setattr(torch_pipeline, "resize_matrices", resize_from_corners)
    monkeypatch.setattr(torch_pipeline, "blur_matrices", blur_of_a_tenth_with_black_around)
    monkeypatch.setitem(colour.ADJUSTMENTS, CONTRAST, contrast_about_each_channels_mean)
    monkeypatch.setitem(colour.ADJUSTMENTS, SATURATION, saturation_of_hsv)
    images = images // 2 + 64  # where the cubic leaves 0..255, the released code clips after the first colour only
    it = compared(images, settings, DEPARTING)
    assert it.excess(torch_pipeline.render(images, it.drawn, settings)) <= REAL


@pytest.mark.parametrize("mistake", ["wider blur", "other resize", "other order", "other hue"])
def test_a_mistake_would_be_seen(images: torch.Tensor, mistake: str) -> None:
    settings = only(48, **SAME)
    it = compared(images, settings, frozenset())
    drawn, wider = it.drawn, dataclasses.replace(settings, blur_sigma=(0.1, 3.0))
    turned = drawn.factors.copy()
    turned[:, HUE] *= -1
    wrong = {
        "wider blur": (drawn.changed(sigma=1.2 * drawn.sigma), wider),
        "other resize": (drawn, dataclasses.replace(settings, interpolation="bilinear")),
        "other order": (drawn.changed(order=drawn.order[:, ::-1]), settings),
        "other hue": (drawn.changed(factors=turned), settings),
    }[mistake]
    assert it.excess(render(images, *wrong)) > 1
