"""Pictures, tables of view parameters, presets and pipelines, for the tests of views."""

import importlib.util
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from torchvision.transforms import InterpolationMode

from bissl_fast.data.pipelines import torch_pipeline
from bissl_fast.data.pipelines.dali_pipeline import DaliPipeline
from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.sets.readers.decode import decode_file
from bissl_fast.data.views.parameters import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    NEUTRAL_FACTORS,
    SATURATION,
    ViewParameters,
    ViewSettings,
    draw_views,
)
from bissl_fast.data.views.presets import (
    eval_view,
    finetune_view,
    multi_crop_views,
    official_views,
    paper_views,
    simclr_views,
    vicreg_views,
)
from bissl_fast.ops.native import has_compiled_kernels

Render = Callable[[torch.Tensor, ViewParameters, ViewSettings], torch.Tensor]

PLAIN = ViewSettings(size=40, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # renders to 0..1

PRESETS: dict[str, tuple[ViewSettings, ...]] = {
    "paper": paper_views(48),
    "official": official_views(48),
    "vicreg": vicreg_views(48),
    "simclr": simclr_views(48),
    "multi-crop": multi_crop_views(48, local_size=24, local_views=2),
    "finetune": (finetune_view(48),),
    "eval": (eval_view(48),),
}

ADJUST: dict[int, Callable[[torch.Tensor, float], torch.Tensor]] = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
    HUE: F.adjust_hue,
}


def photos(n: int, height: int = 56, width: int = 56) -> torch.Tensor:
    """Coloured shapes with sharp edges, smooth shading, saturated and grey areas, and noise: (n, H, W, 3) uint8."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(-60, 320, (n, 3, 6, 6))).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").permute(0, 2, 3, 1).numpy()
    edges = random.integers(0, 2, (n, 8, 8, 1)).repeat(height // 8 + 1, 1).repeat(width // 8 + 1, 2)
    image = np.where(edges[:, :height, :width] > 0, smooth, smooth.mean(-1, keepdims=True))
    image += random.normal(0, 8, image.shape)
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))


def photographs(archive: Path, n: int, size: int, folder: Path) -> torch.Tensor:
    """The first n JPEGs of an archive, as the cache would hold them: (n, size, size, 3) uint8."""
    images = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.lower().endswith((".jpg", ".jpeg")):
                path = folder / f"{len(images)}.jpg"
                path.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
                images.append(decode_file(path, size))
            if len(images) == n:
                break
    return torch.from_numpy(np.stack(images))


def table(n: int, size: int = 56, **columns: object) -> ViewParameters:
    """Parameters that change nothing but what is named."""
    neutral = ViewParameters.of_columns(
        box=np.tile([0, 0, size, size], (n, 1)),
        flip=np.zeros(n, bool),
        order=np.tile(np.arange(4), (n, 1)),
        factors=np.tile(np.float32(NEUTRAL_FACTORS), (n, 1)),
        gray=np.zeros(n, bool),
        sigma=np.zeros(n, np.float32),
        solarize=np.zeros(n, bool),
    )
    return neutral.changed(**columns)  # type: ignore[arg-type]


def boxes(n: int, size: int) -> np.ndarray:
    drawn = draw_views(ViewSettings(), 0, 0, np.arange(n), 0, (size, size)).box
    drawn[0], drawn[1] = (0, 0, size, size), (size - 1, 0, 1, 3)  # the whole image, and a crop at its very edge
    return drawn


def by_dali(images: torch.Tensor, parameters: ViewParameters, settings: ViewSettings) -> torch.Tensor:
    with DaliPipeline([settings], len(images)) as pipeline:
        return pipeline.render(images, [parameters])[0]


def by_torchvision(images: torch.Tensor, parameters: ViewParameters, settings: ViewSettings) -> torch.Tensor:
    """Image by image through torchvision's functions in float32, in VICReg's order."""
    rows = range(len(images))
    return torch.stack([_literal_chain(images[i], parameters[i : i + 1], settings) for i in rows])


def _literal_chain(image: torch.Tensor, row: ViewParameters, settings: ViewSettings) -> torch.Tensor:
    x = F.to_dtype(image.permute(2, 0, 1), torch.float32, scale=True)
    mode = InterpolationMode(settings.interpolation)
    size = [settings.size, settings.size]
    x = F.resized_crop(x, *row.box[0].tolist(), size=size, interpolation=mode, antialias=True).clamp(0, 1)
    x = F.horizontal_flip(x) if row.flip[0] else x
    for operation in row.order[0]:
        x = ADJUST[operation](x, float(row.factors[0, operation]))
    x = F.rgb_to_grayscale(x, 3) if row.gray[0] else x
    sigma = float(row.sigma[0])
    if sigma and settings.blur_filter == "box":
        x = box_blurred(x, sigma)
    elif sigma:
        kernel = 2 * min(int(np.ceil(4 * sigma)), settings.size - 1) + 1
        x = F.gaussian_blur(x, [kernel, kernel], [sigma, sigma])
    x = F.solarize(x, (settings.solarize_threshold - 0.5) / 255) if row.solarize[0] else x
    return F.normalize(x * settings.pixel_range, list(settings.mean), list(settings.std))


def box_blurred(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Pillow's blur without its rounding: three passes along each axis, each over an image whose edges are repeated."""
    variance = sigma**2 / 3
    whole = int((np.sqrt(12 * variance + 1) - 1) // 2)
    share = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    kernel = torch.tensor([share, *[1.0] * (2 * whole + 1), share], dtype=x.dtype)
    kernel /= kernel.sum()
    for axis in (1, 2):
        lines = x.movedim(axis, -1)  # (3, S, S)
        for _ in range(3):
            padded = torch.nn.functional.pad(lines, (whole + 1, whole + 1), mode="replicate")
            lines = torch.nn.functional.conv1d(padded.flatten(0, 1)[:, None], kernel[None, None]).view_as(lines)
        x = lines.movedim(-1, axis)
    return x


RENDERERS: dict[str, Render] = {"torch": torch_pipeline.render, "fused": render, "dali": by_dali}

_MARKS = {
    "fused": [pytest.mark.skipif(not has_compiled_kernels("cpu"), reason="the native kernels are not built")],
    "dali": [pytest.mark.skipif(importlib.util.find_spec("nvidia.dali") is None, reason="DALI is not installed")],
}


def with_each_pipeline(*names: str) -> pytest.MarkDecorator:
    """Parametrises a test by `pipeline`, skipping what is not installed."""
    return pytest.mark.parametrize("pipeline", [_parameter((name,)) for name in names or RENDERERS])


def with_each_pair_of_pipelines() -> pytest.MarkDecorator:
    """Likewise by `pair`."""
    pairs = [("torch", "fused"), ("torch", "dali"), ("fused", "dali")]
    return pytest.mark.parametrize("pair", [pytest.param(pair, **_options(pair)) for pair in pairs])


def _parameter(names: tuple[str]) -> object:
    return pytest.param(names[0], **_options(names))


def _options(names: tuple[str, ...]) -> dict[str, object]:
    return {"marks": [mark for name in names for mark in _MARKS.get(name, [])], "id": "-".join(names)}


def in_levels(difference: torch.Tensor, settings: ViewSettings) -> torch.Tensor:
    """How many levels of 0..255 two normalised views (N, 3, S, S) are apart."""
    std = torch.tensor(settings.std)[:, None, None]
    return difference.cpu().abs() * std * 255 / settings.pixel_range
