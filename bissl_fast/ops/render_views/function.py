"""The compiled op of views, checked; and whether there is one."""

import torch
from torch import Tensor

from bissl_fast.ops.backend import REBUILD, choose_among

INTEGERS = 11
"""Columns: top, left, height, width of the crop; flip, gray, solarize; the colour operation done first, second, …"""
NUMBERS = 5
"""Columns: factors of brightness, contrast, saturation and hue; sigma of the blur."""
DTYPES = (torch.float32, torch.bfloat16)


def serves(images: Tensor) -> bool:
    """Whether a compiled kernel is there for images like these, and no other backend was asked for."""

    def lacks(name: str, images: Tensor) -> str:
        return "" if has_kernel(images) else f"it was built before it had the kernel; {REBUILD}"

    return choose_among(images, ("cpp", "cuda"), lacks, "The rendering of views runs") != "reference"


def has_kernel(images: Tensor) -> bool:
    """Whether the binary holds the kernel of the images' device: one that was built from older sources does not."""
    if not hasattr(torch.ops.bissl_fast, "render_views"):
        return False
    key = images.device.type.upper()
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("bissl_fast::render_views", key))


def render_views(
    images: Tensor,
    samples: Tensor,
    integers: Tensor,
    numbers: Tensor,
    channels: Tensor,
    *,
    size: int,
    cubic: bool,
    threshold: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Renders views by a table of parameters: crop, resize, flip, colours, gray, blur, solarise, normalise.

    Most callers want `bissl_fast.TwoViewAugment`, which draws the table, too.

    Args:
        images: ``(M, H, W, 3)`` uint8, contiguous.
        samples: ``(N,)`` int64 on the host, which image each view is of.
        integers: ``(N, INTEGERS)`` int32 on the host.
        numbers: ``(N, NUMBERS)`` float32 on the host.
        channels: ``(2, 3)`` float32 on the host; a value in 0..1 becomes ``value * channels[0] - channels[1]``.
        size: S, side of the views in pixels.
        cubic: bicubic resize, else bilinear; both antialiased.
        threshold: what solarise inverts: values above it.
        dtype: float32 or bfloat16.

    Returns:
        ``(N, 3, S, S)`` channels-last, on the images' device.

    Raises:
        ValueError: for another dtype.
        RuntimeError: for shapes, dtypes, samples or crops that do not fit.

    Example:
        >>> render_views(images, samples, *table, channels, size=96, cubic=True, threshold=0.5)  # doctest: +SKIP
    """
    if dtype not in DTYPES:
        raise ValueError(f"Views are rendered to float32 or bfloat16, not {dtype}.")
    bfloat16 = dtype == torch.bfloat16
    arguments = (images, samples, integers, numbers, channels, size, cubic, threshold, bfloat16)
    views: Tensor = torch.ops.bissl_fast.render_views(*arguments)
    return views
