"""Each operation alone, in each pipeline, against PIL, torchvision or the colour space's own formula."""

import colorsys
import dataclasses

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image, ImageFilter

from bissl_fast.data.views.parameters import BRIGHTNESS, CONTRAST, HUE, NEUTRAL_FACTORS, SATURATION
from tests.data.pictures import ADJUST, PLAIN, RENDERERS, boxes, photos, table, with_each_pipeline

LEVEL = 1 / 255
APART = {"torch": 1 / 8, "fused": 1 / 8, "dali": 1 / 2}  # levels, where the other side computes in float32 as well


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, pipeline: str) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=APART[pipeline] * LEVEL)


@with_each_pipeline()
@pytest.mark.parametrize("size", [24, 40, 96], ids=["shrink", "both", "enlarge"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_and_resize_equal_pil_within_a_level(interpolation: str, size: int, pipeline: str) -> None:
    images, box = photos(24) // 2 + 64, boxes(24, 56)  # PIL also clips between its two passes: stay clear of 0 and 255
    settings = dataclasses.replace(PLAIN, size=size, interpolation=interpolation)
    ours = (RENDERERS[pipeline](images, table(24, box=box), settings) * 255).permute(0, 2, 3, 1).numpy()
    resample = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    for image, (top, left, height, width), view in zip(images.numpy(), box, ours, strict=True):
        crop = Image.fromarray(image).crop((left, top, left + width, top + height))
        assert np.abs(np.asarray(crop.resize((size, size), resample), dtype=float) - view).max() <= 1.2
        assert np.abs(np.asarray(crop.resize((size, size), resample), dtype=float) - view.round()).max() <= 1


@with_each_pipeline()
def test_flip_mirrors_only_the_chosen_images(pipeline: str) -> None:
    images, render = photos(6), RENDERERS[pipeline]
    flip = np.array([True, False, True, True, False, False])
    plain = render(images, table(6, box=boxes(6, 56)), PLAIN)
    flipped = render(images, table(6, box=boxes(6, 56), flip=flip), PLAIN)
    for i, mirrored in enumerate(flip):
        torch.testing.assert_close(flipped[i], plain[i].flip(-1) if mirrored else plain[i], rtol=0, atol=1e-6)


FACTORS = {
    BRIGHTNESS: [0.0, 0.6, 0.9, 1.4, 3.0],
    CONTRAST: [0.0, 0.6, 0.9, 1.4, 3.0],
    SATURATION: [0.0, 0.6, 0.9, 1.4, 3.0],
    HUE: [-0.5, -0.1, 0.05, 0.3, 0.5],
}


def adjusted(operation: int, pipeline: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Views with the operation's factors, and the same views without."""
    values, render = FACTORS[operation], RENDERERS[pipeline]
    factors = np.tile(np.float32(NEUTRAL_FACTORS), (len(values), 1))
    factors[:, operation] = values
    images = photos(len(values))
    return render(images, table(len(values), factors=factors), PLAIN), render(images, table(len(values)), PLAIN)


@with_each_pipeline()
@pytest.mark.parametrize("operation", list(ADJUST), ids=["brightness", "contrast", "saturation", "hue"])
def test_colour_operations_equal_torchvision(operation: int, pipeline: str) -> None:
    ours, plain = adjusted(operation, pipeline)
    adjust, values = ADJUST[operation], FACTORS[operation]
    theirs = torch.stack([adjust(image, value) for image, value in zip(plain, values, strict=True)])
    assert_close(ours, theirs, pipeline)


@with_each_pipeline()
def test_hue_turns_the_wheel_of_hsv(pipeline: str) -> None:
    ours, plain = adjusted(HUE, pipeline)
    for view, original, turns in zip(ours, plain, FACTORS[HUE], strict=True):
        pixels = original.flatten(1).T.tolist()
        turned = [colorsys.hsv_to_rgb((h + turns) % 1, s, v) for h, s, v in (colorsys.rgb_to_hsv(*p) for p in pixels)]
        assert_close(view.flatten(1).T.contiguous(), torch.tensor(turned), pipeline)


@with_each_pipeline()
def test_hue_leaves_gray_black_and_white_alone(pipeline: str) -> None:
    images = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None].repeat(1, 56, 56, 3)
    factors = np.tile(np.float32([1, 1, 1, 0.3]), (3, 1))
    ours = RENDERERS[pipeline](images, table(3, factors=factors), PLAIN)
    torch.testing.assert_close(ours, images.permute(0, 3, 1, 2)[..., :40, :40] / 255, rtol=0, atol=1e-6)


@with_each_pipeline()
def test_grayscale_equals_torchvision(pipeline: str) -> None:
    render, gray = RENDERERS[pipeline], np.array([True, False, True])
    ours, plain = render(photos(3), table(3, gray=gray), PLAIN), render(photos(3), table(3), PLAIN)
    theirs = torch.where(torch.from_numpy(gray)[:, None, None, None], F.rgb_to_grayscale(plain, 3), plain)
    assert_close(ours, theirs, pipeline)


@with_each_pipeline()
@pytest.mark.parametrize("size", [5, 40], ids=["kernel wider than the image", "kernel inside the image"])
def test_blur_equals_torchvision(size: int, pipeline: str) -> None:
    render, sigma = RENDERERS[pipeline], np.float32([0.1, 0.0, 0.5, 1.3, 2.0])
    settings = dataclasses.replace(PLAIN, size=size)
    ours, plain = render(photos(5), table(5, sigma=sigma), settings), render(photos(5), table(5), settings)
    for i, s in enumerate(sigma.tolist()):
        kernel = 2 * min(int(np.ceil(4 * s)), size - 1) + 1
        theirs = F.gaussian_blur(plain[i], [kernel, kernel], [s, s]) if s else plain[i]
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=1e-5)


@with_each_pipeline()
@pytest.mark.parametrize("size", [12, 40])
def test_box_blur_is_pillows_but_for_the_rounding_of_its_passes(size: int, pipeline: str) -> None:
    sigma = np.float32([0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 1.0, 1.4142, 1.5, 1.99, 2.0, 3.7, 0.0])
    settings = dataclasses.replace(PLAIN, size=size, blur_filter="box", blur_sigma=(0.1, 4.0))
    images = photos(1, size, size).expand(len(sigma), -1, -1, -1)
    ours = RENDERERS[pipeline](images.contiguous(), table(len(sigma), size, sigma=sigma), settings) * 255
    for view, radius in zip(ours, sigma.tolist(), strict=True):
        pillow = np.array(Image.fromarray(images[0].numpy()).filter(ImageFilter.GaussianBlur(radius)))
        apart = (view - torch.from_numpy(pillow).permute(2, 0, 1)).abs()
        assert apart.max() <= 3  # six passes, each rounded by half a level at most
        assert apart.mean() <= 1


@with_each_pipeline()
@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_box_blur_of_any_width_keeps_even_images_even(size: int, pipeline: str) -> None:
    sigma = np.float32([0.1, 1.0, 2.0, 30.0, 1000.0])
    settings = dataclasses.replace(PLAIN, size=size, blur_filter="box", blur_sigma=(0.1, 1000.0))
    images = torch.full((5, size, size, 3), 200, dtype=torch.uint8)
    ours = RENDERERS[pipeline](images, table(5, size, sigma=sigma), settings)
    torch.testing.assert_close(ours, torch.full_like(ours, 200 / 255), rtol=0, atol=1e-5)


def test_a_sampled_gaussian_is_not_pillows_blur() -> None:
    """Why there are two filters: at a third of a pixel the samples hardly blur, and Pillow does."""
    images, radius = photos(1, 40, 40), np.float32([0.3])
    gaussian = RENDERERS["torch"](images, table(1, 40, sigma=radius), PLAIN)[0] * 255
    pillow = np.array(Image.fromarray(images[0].numpy()).filter(ImageFilter.GaussianBlur(0.3)))
    assert (gaussian - torch.from_numpy(pillow).permute(2, 0, 1)).abs().max() > 10


@with_each_pipeline()
def test_solarize_equals_torchvision_on_every_level(pipeline: str) -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(2, 1, 1, 3)
    settings = dataclasses.replace(PLAIN, size=16, solarize_threshold=100.0)
    ours = RENDERERS[pipeline](levels, table(2, 16, solarize=np.array([True, False])), settings)
    theirs = torch.stack((F.solarize(levels[0], 100.0), levels[1])).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, theirs / 255, rtol=0, atol=1e-6)


@with_each_pipeline()
@pytest.mark.parametrize("pixel_range", [1.0, 255.0])
def test_normalise_equals_torchvision(pixel_range: float, pipeline: str) -> None:
    settings = dataclasses.replace(PLAIN, mean=(0.1, 0.5, 0.9), std=(0.2, 1.0, 3.0), pixel_range=pixel_range)
    render = RENDERERS[pipeline]
    ours, plain = render(photos(3), table(3), settings), render(photos(3), table(3), PLAIN)
    theirs = F.normalize(plain * pixel_range, list(settings.mean), list(settings.std))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
