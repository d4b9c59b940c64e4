"""Separable filters as matrices, one per sample: antialiased resize of a crop, and blur.

A filter of N images along one axis is an (N, out, in) matrix, so that both axes are two batched matrix products. Only
the taps are computed; they are laid into zeros. The number of taps depends on sizes, never on the samples at hand:
the same sample has the same bits in every batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

_SUPPORT = {"bilinear": 1, "bicubic": 2}  # radius of the kernel in pixels, before the stretch of downscaling
BOXES = 3  # passes of a box that stand for a Gaussian
_BLUR_RADIUS = 4.0  # standard deviations; what lies beyond weighs 6e-5, less than a level of 255


def resize_matrices(
    start: torch.Tensor,
    length: torch.Tensor,
    flip: torch.Tensor,
    source: int,
    size: int,
    interpolation: Literal["bilinear", "bicubic"],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Crop, antialiased resize and flip along one axis, as PIL resizes an image that has been cropped.

    When it shrinks, the kernel is stretched by the scale; taps outside the crop have no weight, and each row sums
    to 1.

    Args:
        start: (N,) first pixel of the crop.
        length: (N,) pixels of the crop.
        flip: (N,) bool, whether the output is mirrored.
        source: pixels of the image along the axis.
        size: pixels of the output.
        interpolation: triangle, or Keys' cubic with a = -0.5 (not torch's -0.75).
        dtype: of the weights.

    Returns:
        (N, size, source); rows may be strided.
    """
    start, length = start[:, None].to(dtype), length[:, None].to(dtype)  # (N, 1)
    scale = length / size
    stretch = scale.clamp_min(1.0)
    radius = stretch * _SUPPORT[interpolation]
    out = torch.arange(size, device=start.device)
    out = torch.where(flip[:, None], size - 1 - out, out)  # (N, size)
    centre = start + (out + 0.5) * scale
    taps = math.ceil(2 * _SUPPORT[interpolation] * max(1.0, source / size)) + 1
    first = torch.floor(centre - radius + 0.5)
    pixel = first[..., None] + torch.arange(taps, device=start.device)  # (N, size, taps)
    distance = (pixel + 0.5 - centre[..., None]).abs_() / stretch[..., None]
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    begin, end = start[..., None], (start + length)[..., None]
    weights.mul_((pixel >= begin) & (pixel < end))
    weights.div_(weights.sum(-1, keepdim=True))
    # Taps may stick out of the image by less than their number: a margin keeps every index valid and unique.
    padded = weights.new_zeros(len(start), size, source + 2 * taps)
    padded.scatter_(2, pixel.long() + taps, weights)
    return padded[:, :, taps : taps + source]


def blur_matrices(sigma: torch.Tensor, size: int, largest: float) -> torch.Tensor:
    """Gaussian blur along one axis with reflected edges, as torchvision's `gaussian_blur`.

    A sample's kernel reaches ceil(4 sigma) pixels to each side, or as far as the image allows: torchvision's
    ``kernel_size = 2 * min(ceil(4 * sigma), size - 1) + 1``.

    Args:
        sigma: (N,) float32 standard deviations in pixels, above 0.
        size: pixels along the axis.
        largest: upper bound of sigma; it sets the number of taps.

    Returns:
        (N, size, size) float32; rows may be strided.
    """
    radius = min(math.ceil(_BLUR_RADIUS * largest), size - 1)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    sigma = sigma[:, None]
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = kernel * (offset.abs() <= torch.ceil(_BLUR_RADIUS * sigma))
    kernel = kernel / kernel.sum(-1, keepdim=True)  # (N, taps)
    # Rows one longer than wanted, each with its kernel at the front: read at the wanted length, they become diagonal.
    padded = size + 2 * radius
    rows = F.pad(kernel, (0, padded + 1 - len(offset)))[:, None].expand(-1, size, -1)
    matrix = rows.reshape(len(sigma), -1)[:, : size * padded].view(-1, size, padded)
    inner = matrix[:, :, radius : radius + size]
    inner[:, :, 1 : radius + 1] += matrix[:, :, :radius].flip(-1)
    inner[:, :, size - 1 - radius : size - 1] += matrix[:, :, radius + size :].flip(-1)
    return inner


def box_blur_matrices(sigma: torch.Tensor, size: int, largest: float) -> torch.Tensor:
    """Pillow's `GaussianBlur` along one axis: three passes of a box, before each of which the edges are repeated.

    Pillow rounds to 8 bits after each pass; here nothing is rounded.

    Args:
        sigma: (N,) float32 standard deviations in pixels, above 0.
        size: pixels along the axis.
        largest: upper bound of sigma; it sets the number of taps.

    Returns:
        (N, size, size) float32.
    """
    weights = box_blur_taps(sigma, size, largest)  # (N, taps)
    radius = weights.shape[1] // 2
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    pixel = torch.arange(size, device=sigma.device)
    padded = F.pad(weights, (size - 1 - radius,) * 2)  # offsets from 1 - size to size - 1
    box = padded[:, pixel - pixel[:, None] + size - 1]  # (N, size, size)
    beyond = (weights[:, None] * (offset <= -pixel[:, None])).sum(-1)  # (N, size), of the first pixel and all before it
    box[:, :, 0], box[:, :, -1] = beyond, beyond.flip(1)
    return box @ box @ box


def box_blur_taps(sigma: torch.Tensor, size: int, largest: float | None = None) -> torch.Tensor:
    """The box of which three passes have the variance of a Gaussian.

    It reaches a whole number of pixels to each side, and a share of the next (P. Gwosdek et al., "Theoretical
    foundations of Gaussian convolution by extended box filtering", SSVM 2011).

    Args:
        sigma: (N,) float32 standard deviations in pixels.
        size: pixels along the axis, which no box exceeds to either side.
        largest: upper bound of sigma, which sets the number of taps; the largest of them if left out.

    Returns:
        (N, taps) float32, an odd number of taps, which sum to 1.
    """
    bound = float(sigma.max()) if largest is None else largest
    radius = min(int((math.sqrt(4 * bound**2 + 1) - 1) / 2) + 1, size - 1)
    variance = sigma * sigma / BOXES
    whole = torch.floor((torch.sqrt(12 * variance + 1) - 1) / 2)
    following = whole + 1
    share = (2 * whole + 1) * (whole * following - 3 * variance) / (6 * (variance - following * following))
    offset = torch.arange(-radius, radius + 1, device=sigma.device).abs()
    weights = torch.where(offset <= whole[:, None], 1.0, share[:, None]) * (offset <= following[:, None])
    return weights / weights.sum(-1, keepdim=True)


def _triangle(distance: torch.Tensor) -> torch.Tensor:
    return (1.0 - distance).clamp_min_(0.0)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    near, far = distance.clamp(max=1.0), distance.clamp(1.0, 2.0)  # each piece is 0 where the other one holds
    near = (1.5 * near - 2.5) * near * near + 1.0
    return near + ((2.5 - 0.5 * far) * far - 4.0) * far + 2.0
