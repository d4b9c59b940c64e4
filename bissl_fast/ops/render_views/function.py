"""The compiled op of views, checked; and whether there is one."""

import torch
from torch import Tensor

from bissl_fast.ops.backend import REBUILD, choose_among, wanted

INTEGERS = 11
"""Columns: top, left, height, width of the crop; flip, gray, solarize; the colour operation done first, second, …"""
NUMBERS = 5
"""Columns: factors of brightness, contrast, saturation and hue; sigma of the blur."""
LARGEST_ON_CUDA = 1024
"""Side of a view in pixels, as in csrc/cuda/view_layout.h."""
DTYPES = (torch.float32, torch.bfloat16)


def serves(like: Tensor, size: int, channels: int = 3) -> bool:
    """Whether a compiled kernel makes such views on a tensor's device, and no other backend was asked for.

    That none makes views of other than RGB is no news: plain PyTorch is what they are meant to be made by.
    """
    if channels != 3 and wanted() == "auto":
        return False

    def lacks(name: str, like: Tensor) -> str:
        if channels != 3:
            return f"it renders images of 3 channels, not of {channels}"
        if name == "cuda" and size > LARGEST_ON_CUDA:
            return f"it renders views of up to {LARGEST_ON_CUDA} pixels, not {size}"
        return "" if has_kernel(like) else f"it was built before it had the kernel; {REBUILD}"

    return choose_among(like, ("cpp", "cuda"), lacks, "The rendering of views runs") != "reference"


def has_kernel(like: Tensor) -> bool:
    """Whether the binary holds the kernel of a tensor's device: one that was built from older sources does not."""
    op = getattr(torch.ops.bissl_fast, "render_views", None)
    if op is None or all(argument.name != "box_blur" for argument in op.default._schema.arguments):
        return False
    key = like.device.type.upper()
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
    box_blur: bool = False,
    threshold: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Renders views by a table of parameters: crop, resize, flip, colours, gray, blur, solarise, normalise.

    Most callers want `bissl_fast.TwoViewAugment`, which draws the table, too.

    Args:
        images: ``(M, H, W, 3)`` uint8, contiguous. In pinned host memory they can be rendered by a CUDA device, too: by
            the one that holds samples, integers and numbers.
        samples: ``(N,)`` int64, which image each view is of. On the host, like integers and numbers, or for CUDA all
            three on the device: then they are not checked, and a row that fits no image gives a view of NaN.
        integers: ``(N, INTEGERS)`` int32.
        numbers: ``(N, NUMBERS)`` float32.
        channels: ``(2, 3)`` float32 on the host; a value in 0..1 becomes ``value * channels[0] - channels[1]``.
        size: S, side of the views in pixels.
        cubic: bicubic resize, else bilinear; both antialiased.
        box_blur: blur by three boxes, as Pillow does, else by a sampled Gaussian.
        threshold: what solarise inverts: values above it.
        dtype: float32 or bfloat16.

    Returns:
        ``(N, 3, S, S)`` channels-last, on the images' device, or on that of the samples if it is CUDA.

    Raises:
        ValueError: for another dtype.
        RuntimeError: for shapes, dtypes, samples or crops that do not fit.

    Example:
        >>> render_views(images, samples, *table, channels, size=96, cubic=True, threshold=0.5)  # doctest: +SKIP
    """
    if dtype not in DTYPES:
        raise ValueError(f"Views are rendered to float32 or bfloat16, not {dtype}.")
    bfloat16 = dtype == torch.bfloat16
    arguments = (images, samples, integers, numbers, channels, size, cubic, box_blur, threshold, bfloat16)
    views: Tensor = torch.ops.bissl_fast.render_views(*arguments)
    return views
