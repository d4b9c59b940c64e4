"""Colour operations on planar images in 0..1, in place, one factor per image; torchvision's definitions.

They use no fused multiply-add: vector and scalar loops would round it differently, and the bits of a sample would
depend on its place in the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bissl_fast.data.views.parameters import BRIGHTNESS, CONTRAST, HUE, SATURATION

# A channel's share of the chroma by hue h in sixths of a turn: slope * |h - centre| + offset within 0..1, per channel.
_TRAPEZOIDS = ((3.0, 2.0, 4.0), (1.0, -1.0, -1.0), (-1.0, 2.0, 2.0))
_GRAY = (0.299, 0.587, 0.114)  # ITU-R 601 luma


def adjust_brightness_(x: torch.Tensor, factor: torch.Tensor) -> None:
    """Blends (N, C, H, W) images with black; 1 changes nothing."""
    x.mul_(_per_image(factor)).clamp_(0.0, 1.0)


def adjust_contrast_(x: torch.Tensor, factor: torch.Tensor) -> None:
    """Blends (N, C, H, W) images with the mean of their grayscale image, or of all channels; 1 changes nothing."""
    channels = x.mean((2, 3))
    mean = _luma(*channels.unbind(1)) if x.shape[1] == 3 else channels.mean(1)
    x.mul_(_per_image(factor)).add_(_per_image((1.0 - factor) * mean)).clamp_(0.0, 1.0)


def adjust_saturation_(x: torch.Tensor, factor: torch.Tensor) -> None:
    """Blends (N, 3, H, W) images with their grayscale image; 1 changes nothing."""
    gray = _luma(*x.unbind(1))[:, None].mul_(_per_image(1.0 - factor))
    x.mul_(_per_image(factor)).add_(gray).clamp_(0.0, 1.0)


def adjust_hue_(x: torch.Tensor, shift: torch.Tensor) -> None:
    """Shifts the hue of (N, 3, H, W) images by a part of a turn, in HSV space; 0 changes nothing.

    Value and chroma stay, so each channel is the smallest one plus chroma times a trapezoid of the hue, and no sector
    has to be looked up.
    """
    red, green, blue = x.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # Sixths of a turn from red, towards green where green exceeds blue and towards blue elsewhere. Without a branch:
    # a masked choice between the usual three sectors costs more than all the rest.
    hue = (green + blue).sub_(red).sub_(low).div_(chroma.clamp_min(1e-12)).add_(1.0)
    hue = torch.copysign(hue, green - blue).add_((6.0 * shift)[:, None, None])
    hue.sub_((hue / 6.0).floor_().mul_(6.0))
    centre, slope, offset = x.new_tensor(_TRAPEZOIDS)[:, None, :, None, None]  # (1, 3, 1, 1) each
    torch.sub(hue[:, None], centre, out=x)
    x.abs_().mul_(slope).add_(offset).clamp_(0.0, 1.0).mul_(chroma[:, None]).add_(low[:, None])


def to_gray_(x: torch.Tensor) -> None:
    """Replaces the channels of (N, 3, H, W) images by their luma."""
    x.copy_(_luma(*x.unbind(1))[:, None].expand_as(x))


def solarize_(x: torch.Tensor, threshold: float) -> None:
    """Inverts the values of (N, C, H, W) images above the threshold."""
    mirrored = F.threshold(x, threshold, 0.5).mul_(-2.0).add_(1.0)  # 1 - 2x above, 0 below: no branch per pixel
    x.add_(mirrored)


ADJUSTMENTS: dict[int, Callable[[torch.Tensor, torch.Tensor], None]] = {
    BRIGHTNESS: adjust_brightness_,
    CONTRAST: adjust_contrast_,
    SATURATION: adjust_saturation_,
    HUE: adjust_hue_,
}


def _per_image(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def _luma(red: torch.Tensor, green: torch.Tensor, blue: torch.Tensor) -> torch.Tensor:
    return (red * _GRAY[0]).add_(green * _GRAY[1]).add_(blue * _GRAY[2])
