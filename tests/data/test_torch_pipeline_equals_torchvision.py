"""`render` against PIL and torchvision, image by image, on the same parameters."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode

from bissl_fast.data.presets import eval_view, finetune_view, vicreg_views
from bissl_fast.data.torch_pipeline import render
from bissl_fast.data.two_view import TwoViewAugment
from bissl_fast.data.views import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    NEUTRAL_FACTORS,
    SATURATION,
    ViewParameters,
    ViewSettings,
    draw_views,
)
from bissl_fast.errors import UserError

LEVEL = 1 / 255
PLAIN = ViewSettings(size=40, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # renders to 0..1


def photos(n: int, height: int = 56, width: int = 56) -> torch.Tensor:
    """Coloured shapes with sharp edges, smooth shading, saturated and grey areas, and noise: (n, H, W, 3) uint8."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(-60, 320, (n, 3, 6, 6))).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").permute(0, 2, 3, 1).numpy()
    edges = random.integers(0, 2, (n, 8, 8, 1)).repeat(height // 8 + 1, 1).repeat(width // 8 + 1, 2)
    image = np.where(edges[:, :height, :width] > 0, smooth, smooth.mean(-1, keepdims=True))
    image += random.normal(0, 8, image.shape)
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))


def table(n: int, size: int = 56, **columns: object) -> ViewParameters:
    """Parameters that change nothing but what is named."""
    neutral = ViewParameters(
        box=np.tile([0, 0, size, size], (n, 1)),
        flip=np.zeros(n, bool),
        order=np.tile(np.arange(4), (n, 1)),
        factors=np.tile(np.float32(NEUTRAL_FACTORS), (n, 1)),
        gray=np.zeros(n, bool),
        sigma=np.zeros(n, np.float32),
        solarize=np.zeros(n, bool),
    )
    return dataclasses.replace(neutral, **columns)  # type: ignore[arg-type]


def boxes(n: int, size: int) -> np.ndarray:
    drawn = draw_views(ViewSettings(), 0, 0, np.arange(n), 0, (size, size)).box
    drawn[0], drawn[1] = (0, 0, size, size), (size - 1, 0, 1, 3)  # the whole image, and a crop at its very edge
    return drawn


@pytest.mark.parametrize("size", [24, 40, 96], ids=["shrink", "both", "enlarge"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_and_resize_equal_pil_within_a_level(interpolation: str, size: int) -> None:
    images, box = photos(24) // 2 + 64, boxes(24, 56)  # PIL also clips between its two passes: stay clear of 0 and 255
    settings = dataclasses.replace(PLAIN, size=size, interpolation=interpolation)
    ours = (render(images, table(24, box=box), settings) * 255).round().permute(0, 2, 3, 1).numpy()
    resample = Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR
    for image, (top, left, height, width), view in zip(images.numpy(), box, ours, strict=True):
        crop = Image.fromarray(image).crop((left, top, left + width, top + height))
        assert np.abs(np.asarray(crop.resize((size, size), resample), dtype=float) - view).max() <= 1


def test_flip_mirrors_only_the_chosen_images() -> None:
    images = photos(6)
    flip = np.array([True, False, True, True, False, False])
    plain = render(images, table(6, box=boxes(6, 56)), PLAIN)
    flipped = render(images, table(6, box=boxes(6, 56), flip=flip), PLAIN)
    for i, mirrored in enumerate(flip):
        torch.testing.assert_close(flipped[i], plain[i].flip(-1) if mirrored else plain[i], rtol=0, atol=1e-6)


ADJUST: dict[int, tuple[Callable[[torch.Tensor, float], torch.Tensor], list[float]]] = {
    BRIGHTNESS: (F.adjust_brightness, [0.0, 0.6, 0.9, 1.4, 3.0]),
    CONTRAST: (F.adjust_contrast, [0.0, 0.6, 0.9, 1.4, 3.0]),
    SATURATION: (F.adjust_saturation, [0.0, 0.6, 0.9, 1.4, 3.0]),
    HUE: (F.adjust_hue, [-0.5, -0.1, 0.05, 0.3, 0.5]),
}


@pytest.mark.parametrize("operation", list(ADJUST), ids=["brightness", "contrast", "saturation", "hue"])
def test_colour_operations_equal_torchvision(operation: int) -> None:
    adjust, values = ADJUST[operation]
    n = len(values)
    factors = np.tile(np.float32(NEUTRAL_FACTORS), (n, 1))
    factors[:, operation] = values
    ours = render(photos(n), table(n, factors=factors), PLAIN)
    plain = render(photos(n), table(n), PLAIN)
    theirs = torch.stack([adjust(image, value) for image, value in zip(plain, values, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=LEVEL / 8)


def test_hue_leaves_gray_black_and_white_alone() -> None:
    images = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 56, 56, 3)
    factors = np.tile(np.float32([1, 1, 1, 0.3]), (3, 1))
    ours = render(images, table(3, factors=factors), PLAIN)
    torch.testing.assert_close(ours, images.permute(0, 3, 1, 2)[..., :40, :40] / 255, rtol=0, atol=1e-6)


def test_grayscale_equals_torchvision() -> None:
    gray = np.array([True, False, True])
    ours = render(photos(3), table(3, gray=gray), PLAIN)
    plain = render(photos(3), table(3), PLAIN)
    theirs = torch.where(torch.from_numpy(gray)[:, None, None, None], F.rgb_to_grayscale(plain, 3), plain)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=LEVEL / 8)


@pytest.mark.parametrize("size", [5, 40], ids=["kernel wider than the image", "kernel inside the image"])
def test_blur_equals_torchvision(size: int) -> None:
    sigma = np.float32([0.1, 0.0, 0.5, 1.3, 2.0])
    settings = dataclasses.replace(PLAIN, size=size)
    ours = render(photos(5), table(5, sigma=sigma), settings)
    plain = render(photos(5), table(5), settings)
    for i, s in enumerate(sigma.tolist()):
        kernel = 2 * min(int(np.ceil(4 * s)), size - 1) + 1
        theirs = F.gaussian_blur(plain[i], [kernel, kernel], [s, s]) if s else plain[i]
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=1e-5)


def test_solarize_equals_torchvision_on_every_level() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, 16, 16, 3)
    settings = dataclasses.replace(PLAIN, size=16, solarize_threshold=100.0)
    ours = render(levels, table(2, 16, solarize=np.array([True, False])), settings)
    theirs = torch.stack((F.solarize(levels[0], 100.0), levels[1])).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, theirs / 255, rtol=0, atol=1e-6)


def literal_chain(image: torch.Tensor, row: ViewParameters, settings: ViewSettings) -> torch.Tensor:
    """One (H, W, 3) image through torchvision's functions, in VICReg's order."""
    x = F.to_dtype(image.permute(2, 0, 1), torch.float32, scale=True)
    mode = InterpolationMode(settings.interpolation)
    size = [settings.size, settings.size]
    x = F.resized_crop(x, *row.box[0].tolist(), size=size, interpolation=mode, antialias=True).clamp(0, 1)
    x = F.horizontal_flip(x) if row.flip[0] else x
    for operation in row.order[0]:
        x = ADJUST[operation][0](x, float(row.factors[0, operation]))
    x = F.rgb_to_grayscale(x, 3) if row.gray[0] else x
    sigma = float(row.sigma[0])
    if sigma:
        kernel = 2 * int(np.ceil(4 * sigma)) + 1
        x = F.gaussian_blur(x, [kernel, kernel], [sigma, sigma])
    x = F.solarize(x, (settings.solarize_threshold - 0.5) / 255) if row.solarize[0] else x
    return F.normalize(x * settings.pixel_range, list(settings.mean), list(settings.std))


@pytest.mark.parametrize(
    "settings",
    [
        *vicreg_views(40),
        dataclasses.replace(vicreg_views(40)[0], crop_ratio=(0.5, 1.0), pixel_range=255.0),
        finetune_view(40),
        eval_view(40),
    ],
    ids=["vicreg-1", "vicreg-2", "official-1", "finetune", "eval"],
)
def test_whole_chain_equals_torchvision_image_by_image(settings: ViewSettings) -> None:
    images = photos(60)
    parameters = draw_views(settings, 1, 0, np.arange(60), 0, (56, 56))
    ours = render(images, parameters, settings)
    theirs = torch.stack([literal_chain(image, parameters[i : i + 1], settings) for i, image in enumerate(images)])
    in_levels = (ours - theirs) * torch.tensor(settings.std)[:, None, None] / settings.pixel_range
    assert in_levels.abs().max() <= LEVEL
    assert in_levels.abs().mean() <= LEVEL / 50


@pytest.mark.parametrize("size", [33, 96], ids=["odd size", "several chunks"])
def test_a_view_has_the_same_bits_whatever_its_batch(size: int) -> None:
    settings = dataclasses.replace(vicreg_views(size)[1], blur=0.5)
    images = photos(70)
    parameters = draw_views(settings, 0, 0, np.arange(70), 0, (56, 56))
    together = render(images, parameters, settings)
    for rows in (np.array([3]), np.array([69]), np.array([41, 8, 12, 69, 0])):
        assert torch.equal(render(images[rows], parameters[rows], settings), together[rows])


def test_output_is_float32_channels_last_and_an_empty_batch_is_fine() -> None:
    view = render(photos(2), table(2), PLAIN)
    assert view.dtype == torch.float32
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert render(photos(2)[:0], table(0), PLAIN).shape == (0, 3, 40, 40)


def test_images_that_the_table_does_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"must be \(N, H, W, 3\) uint8"):
        render(photos(2).float(), table(2), PLAIN)
    with pytest.raises(UserError, match="2 images came with view parameters for 3"):
        render(photos(2), table(3), PLAIN)
    with pytest.raises(UserError, match=r"image_size=\(56, 56\)"):
        render(photos(2), table(2, size=57), PLAIN)


def test_two_view_augment_takes_both_layouts_and_repeats_itself() -> None:
    augment = TwoViewAugment(*vicreg_views(40), seed=5)
    images, samples = photos(4), torch.tensor([9, 2, 7, 1])
    first, second = augment(images, samples, epoch=0)
    again, _ = augment(images.permute(0, 3, 1, 2), samples.numpy(), epoch=0)
    later, _ = augment(images, samples, epoch=1)
    assert first.shape == second.shape == (4, 3, 40, 40)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    parameters = draw_views(augment.settings[1], 5, 0, samples.numpy(), 1, (56, 56))
    definition = render(images, parameters, augment.settings[1])
    torch.testing.assert_close(
        second, definition, rtol=0, atol=1e-3
    )  # the augmentation may have taken the fused kernel
    with pytest.raises(UserError, match="4 images need as many sample indices"):
        augment(images, samples[:2], epoch=0)
