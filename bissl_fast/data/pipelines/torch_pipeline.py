"""The `torch` pipeline: renders a table of view parameters, the whole batch at once, on any device.

It is the definition of a view, in plain PyTorch, which the compiled kernels are compared with; `rendering` chooses.

Values are float32 in 0..1 and are clamped where torchvision clamps; nothing is rounded to 8 bits on the way. Crop,
antialiased resize and flip are two matrix products per image, and so is the blur. Each step touches only the samples
that it changes, and no result depends on which other samples are in the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from bissl_fast.data.pipelines.colour import ADJUSTMENTS, solarize_, to_gray_
from bissl_fast.data.pipelines.filters import blur_matrices, box_blur_matrices, resize_matrices
from bissl_fast.data.views.parameters import NEUTRAL_FACTORS, SATURATION, ViewParameters, ViewSettings
from bissl_fast.errors import UserError

_CPU_CHUNK_VALUES = 900_000  # of the views: few enough for the intermediate values to stay in a core's cache


@torch.no_grad()
def render(
    images: torch.Tensor, parameters: ViewParameters, settings: ViewSettings, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Renders one view of each image.

    Args:
        images: (N, H, W, C) uint8, on any device.
        parameters: the table of the N views, drawn for images of this size.
        settings: what the table was drawn from; its mean has C numbers, 3 of RGB.
        dtype: of all arithmetic: float32, or float64 to measure the error of others.

    Returns:
        (N, C, S, S) of that dtype in channels_last memory, normalised by the settings' mean and std.

    Raises:
        UserError: if the images are not uint8 of the settings' channels, or the table does not fit them.

    Example:
        >>> from bissl_fast.data.views.presets import vicreg_views
        >>> from bissl_fast.data.views.parameters import draw_views
        >>> images, (settings, _) = torch.zeros(8, 112, 112, 3, dtype=torch.uint8), vicreg_views(96)
        >>> table = draw_views(settings, seed=0, epoch=0, samples=np.arange(8), view=0, image_size=(112, 112))
        >>> render(images, table, settings).shape
        torch.Size([8, 3, 96, 96])
    """
    check(images, parameters, settings, np.arange(len(images)))
    n, channels, size = len(images), images.shape[-1], settings.size
    views = torch.empty((n, channels, size, size), dtype=dtype, device=images.device, memory_format=torch.channels_last)
    step = max(1, _CPU_CHUNK_VALUES // (channels * size**2) if images.device.type == "cpu" else n)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        views[rows] = _render_planar(images[rows], parameters[rows], settings, dtype)
    return views


def require_tensor(images: object) -> None:
    """Raise unless a batch of images is a tensor: an array of the same shape and dtype reads alike in a message."""
    if not isinstance(images, torch.Tensor):
        way = "torch.from_numpy(images) makes it one" if isinstance(images, np.ndarray) else "stack them into one"
        raise UserError(f"Images must be a uint8 tensor (N, H, W, 3), found {type(images).__name__}: {way}.")


def check(
    images: torch.Tensor, parameters: ViewParameters, settings: ViewSettings, samples: npt.NDArray[np.int64]
) -> None:
    """Raise unless the images are uint8 of the settings' channels, and the samples and their table fit them."""
    require_tensor(images)
    channels = len(settings.mean)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != channels:
        fitting = images.dtype == torch.uint8 and images.ndim == 4
        way = ": draw and render with settings.for_channels(C)" if fitting else ""
        raise UserError(f"Images must be (N, H, W, {channels}) uint8, not {tuple(images.shape)} {images.dtype}{way}.")
    if channels != 3 and (
        parameters.gray.any() or (parameters.factors[:, SATURATION:] != NEUTRAL_FACTORS[SATURATION:]).any()
    ):
        raise UserError(
            f"Saturation, hue and gray need RGB, and the images have {channels} channels: draw the views with "
            f"settings.for_channels({channels})."
        )
    if len(parameters) != len(samples):
        raise UserError(f"{len(samples)} images came with view parameters for {len(parameters)}.")
    if len(samples) and not (samples.min() >= 0 and samples.max() < len(images)):
        raise UserError(f"Samples {samples.min()} to {samples.max()} were asked for of {len(images)} images.")
    height, width = images.shape[1:3]
    top, left, rows, columns = parameters.box.T
    if ((top + rows > height) | (left + columns > width)).any():
        raise UserError(
            f"A crop leaves the images of {height} x {width} pixels: "
            f"draw the views with image_size=({height}, {width})."
        )


def _render_planar(
    images: torch.Tensor, parameters: ViewParameters, settings: ViewSettings, dtype: torch.dtype
) -> torch.Tensor:
    """(n, H, W, C) uint8 to (n, C, S, S), contiguous: each channel a plane."""
    x = _crop_resize_flip(images, parameters, settings, dtype)
    for place in range(4):
        for operation, adjust_ in ADJUSTMENTS.items():
            factors = parameters.factors[:, operation]
            chosen = (parameters.order[:, place] == operation) & (factors != NEUTRAL_FACTORS[operation])
            _change(x, chosen, adjust_, factors)
    _change(x, parameters.gray, to_gray_)
    _change(x, parameters.sigma > 0, lambda part, sigma: _blur_(part, sigma, settings), parameters.sigma)
    _change(x, parameters.solarize, lambda part: solarize_(part, inverted_above(settings)))
    mean, std = (x.new_tensor(channel)[:, None, None] for channel in (settings.mean, settings.std))
    return x.mul_(settings.pixel_range / std).sub_(mean / std)


def inverted_above(settings: ViewSettings) -> float:
    """Solarise's threshold in 0..1, half a level lower: where 8-bit pixels would have been rounded up to it."""
    return (settings.solarize_threshold - 0.5) / 255


def _change(
    x: torch.Tensor,
    chosen: npt.NDArray[np.bool_],
    operation_: Callable[..., None],
    *columns: npt.NDArray[np.float32],
) -> None:
    """Applies an in-place operation to the chosen images, with their rows of the columns."""
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return
    arguments = [torch.from_numpy(column[rows]).to(x) for column in columns]
    if len(rows) == len(x):
        operation_(x, *arguments)
        return
    where = torch.from_numpy(rows).to(x.device)
    part = x.index_select(0, where)
    operation_(part, *arguments)
    if x.device.type == "cpu":
        x.numpy()[rows] = part.numpy()  # copies whole images; index_copy_ would go value by value
    else:
        x.index_copy_(0, where, part)


def _crop_resize_flip(
    images: torch.Tensor, parameters: ViewParameters, settings: ViewSettings, dtype: torch.dtype
) -> torch.Tensor:
    n, height, width, channels = images.shape
    size = settings.size
    top, left, rows, columns = torch.from_numpy(parameters.box).to(images.device).unbind(1)
    flip = torch.from_numpy(parameters.flip).to(images.device)
    vertical = resize_matrices(top, rows, torch.zeros_like(flip), height, size, settings.interpolation, dtype)
    horizontal = resize_matrices(left, columns, flip, width, size, settings.interpolation, dtype)
    x = torch.bmm(vertical, images.reshape(n, height, width * channels).to(dtype))  # (n, S, W * C)
    x = x.view(n, size, width, channels).permute(0, 3, 1, 2).reshape(n, channels * size, width)
    x = torch.bmm(x, horizontal.mT).view(n, channels, size, size)
    return x.mul_(1 / 255).clamp_(0.0, 1.0)  # the cubic overshoots; PIL clips it after each of the two products


def _blur_(x: torch.Tensor, sigma: torch.Tensor, settings: ViewSettings) -> None:
    n, channels, size, _ = x.shape
    make = box_blur_matrices if settings.blur_filter == "box" else blur_matrices
    matrices = make(sigma, size, settings.blur_sigma[1])
    rows_blurred = torch.bmm(x.view(n, channels * size, size), matrices.mT).view_as(x)
    torch.matmul(matrices[:, None], rows_blurred, out=x)
