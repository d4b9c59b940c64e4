"""Images of one channel or many are rendered as RGB is, but for what only RGB has."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch

from bissl_fast import TwoViewAugment
from bissl_fast.data.pipelines import torch_pipeline
from bissl_fast.data.pipelines.loader import ViewLoader
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.parameters import ViewSettings, draw_views
from bissl_fast.data.views.presets import simclr_views, vicreg_views
from bissl_fast.errors import UserError
from bissl_fast.ops import backend
from bissl_fast.ops.render_views import function as fused
from tests.data.pictures import photos

PLAIN_SCALE = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


@pytest.mark.parametrize("settings", [*vicreg_views(40), simclr_views(40)[0]])
def test_one_channel_is_rendered_as_gray_rgb_is(settings: ViewSettings) -> None:
    settings = dataclasses.replace(settings, jitter=1.0, blur=0.5, solarize=0.5, mean=(0.5,) * 3, std=(0.25,) * 3)
    gray = photos(32)[..., :1]
    rgb = gray.expand(-1, -1, -1, 3).contiguous()  # to whose colours saturation, hue and gray do nothing
    table = draw_views(settings, 0, 0, np.arange(32), 0, (56, 56))
    expected = torch_pipeline.render(rgb, table, settings)[:, :1]
    single = settings.for_channels(1)
    found = render(gray, draw_views(single, 0, 0, np.arange(32), 0, (56, 56)), single)
    assert found.shape == (32, 1, 40, 40)
    assert (found - expected).abs().max() < 1e-4


def test_many_channels_are_rendered_each_as_it_would_be_alone() -> None:
    settings = dataclasses.replace(vicreg_views(40)[1], contrast=0.0, blur=0.5).for_channels(5)
    images = torch.cat((photos(8), photos(16)[8:, ..., :2]), dim=-1)  # (8, H, W, 5)
    table = draw_views(settings, 0, 0, np.arange(8), 0, (56, 56))
    views, single = render(images, table, settings), settings.for_channels(1)
    for channel in range(5):
        alone = render(images[..., channel, None], table, single)
        assert (views[:, channel, None] - alone).abs().max() < 1e-4


def test_contrast_of_many_channels_is_about_the_mean_of_all() -> None:
    whole = ViewSettings(size=56, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), jitter=1.0, contrast=0.5, **PLAIN_SCALE)
    settings, images = whole.for_channels(4), torch.cat((photos(4), photos(4)[..., :1]), dim=-1)
    table = draw_views(settings, 0, 0, np.arange(4), 0, (56, 56))
    pixels = images.permute(0, 3, 1, 2) / 255
    factor = torch.from_numpy(table.factors[:, 1])[:, None, None, None]
    expected = factor * pixels + (1 - factor) * pixels.mean((1, 2, 3), keepdim=True)
    assert (render(images, table, settings) - expected.clamp(0, 1)).abs().max() < 1e-5


def test_views_for_other_channels_have_the_average_of_mean_and_std_and_no_colours() -> None:
    first = vicreg_views(40)[0]
    five = first.for_channels(5)
    assert five.mean == pytest.approx((0.449,) * 5)
    assert five.std == pytest.approx((0.226,) * 5)
    assert (five.saturation, five.hue, five.gray) == (0, 0, 0)
    assert (five.brightness, five.contrast, five.jitter) == (first.brightness, first.contrast, first.jitter)
    assert first.for_channels(3) is first


def test_images_of_other_channels_than_the_settings_are_refused() -> None:
    settings, images = vicreg_views(40)[0], photos(2)
    table = draw_views(settings, 0, 0, np.arange(2), 0, (56, 56))
    with pytest.raises(UserError, match=r"must be \(N, H, W, 3\) uint8, not \(2, 56, 56, 2\).*settings.for_channels"):
        render(images[..., :2], table, settings)
    colourful = dataclasses.replace(settings, jitter=1.0)
    table = draw_views(colourful, 0, 0, np.arange(2), 0, (56, 56))
    with pytest.raises(UserError, match=r"need RGB, and the images have 2 channels: .* settings.for_channels\(2\)"):
        render(images[..., :2], table, colourful.for_channels(2))
    with pytest.raises(UserError, match=r"std is \(0.2,\); it must be one number per channel"):
        ViewSettings(std=(0.2,))


def test_other_channels_are_left_to_plain_pytorch_without_a_warning_unless_kernels_were_asked_for() -> None:
    like = torch.empty(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fused.serves(like, 40, 1)
        assert not fused.serves(like, 40, 7)
    with backend("cpp"), pytest.raises(UserError, match="'cpp' was chosen, but"):
        fused.serves(like, 40, 6)


def test_loaders_and_two_view_augment_take_any_channels() -> None:
    pixels = torch.cat((photos(6), photos(6)), dim=-1)
    views = tuple(view.for_channels(6) for view in vicreg_views(24))
    images = ImageSet("stacks", pixels.numpy(), None, (), "0")
    with ViewLoader(images, views, BatchOrder(6, 6, seed=0), 0, "cpu") as loader:
        batch = loader.load(0)
    assert [view.shape for view in batch.views] == [(6, 6, 24, 24)] * 2
    augment = TwoViewAugment(*views, seed=0)
    expected = augment(pixels, np.arange(6), epoch=0)[1]
    assert torch.equal(augment(pixels.permute(0, 3, 1, 2), np.arange(6), epoch=0)[1], expected)
