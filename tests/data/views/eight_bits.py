"""Recipes on PIL images by Pillow and torchvision, with a bound of what 8 bits have done to every value.

A source that works on PIL images rounds after each operation. Here every operation is also done in float64, to the same
8-bit image: what lies between is its own rounding, which may not exceed what follows from how it computes. The next
operation passes it on by its largest gain. The sum bounds how far a view in real numbers can be from the source's,
if it means the same: a wrong filter, order or place is not excused by it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torchvision.transforms.functional as F
import torchvision.transforms.v2.functional as tensors
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode

from bissl_fast.data.views.parameters import BRIGHTNESS, CONTRAST, SATURATION
from tests.data.pictures import box_blurred

Levels = npt.NDArray[np.float64]  # (H, W, 3), in levels of 0..255
Change = Callable[[torch.Tensor], torch.Tensor]  # of a (3, H, W) float64 image in 0..1

ROUNDED, CUT = 0.5, 1.0  # largest error of a whole number that was rounded, or cut off as by Pillow's `blend`
BOX_PASSES = 6  # three along each axis
LUMA = np.array([0.299, 0.587, 0.114])
HUE_GAIN = 3.0  # a channel of a turned hue is a r + b g + c b with |a| + |b| + |c| <= 3, without jumps
FLOAT = 0.05  # levels: torchvision's luma has 0.2989


@dataclass(frozen=True)
class Rounded:
    """A PIL image, and how far at most its values are from those of the same operations in real numbers."""

    image: Image.Image
    bound: Levels

    @property
    def levels(self) -> Levels:
        return np.asarray(self.image, dtype=np.float64)

    def after(self, image: Image.Image, exact: Change, passed: Levels, own: Levels | float) -> "Rounded":
        """The next image.

        Args:
            image: what the source makes of this one.
            exact: the same in real numbers.
            passed: what the operation makes of the bound.
            own: the largest error that the operation itself can make.
        """
        expected = exact(torch.from_numpy(self.levels / 255).permute(2, 0, 1)) * 255
        apart = np.abs(np.asarray(image, dtype=np.float64) - expected.permute(1, 2, 0).numpy())
        assert (apart <= own + FLOAT).all(), f"{(apart - own).max()} levels more than 8 bits explain"
        return Rounded(image, passed + apart)


def resized(image: Image.Image, size: int, mode: InterpolationMode) -> Rounded:
    """Pillow resizes along one axis and then along the other, and rounds and clips after both."""

    def resize(x: torch.Tensor) -> torch.Tensor:
        return tensors.resize(x, [size, size], mode, antialias=True).clamp(0, 1)

    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).double()
    rows_first, columns_first = _error_of_resize(x, size, mode), _error_of_resize(x.mT, size, mode).mT
    own = torch.maximum(rows_first, columns_first).permute(1, 2, 0).numpy()  # which is first depends on the shape
    start = Rounded(image, np.zeros(()))
    return start.after(F.resize(image, [size, size], mode, antialias=True), resize, np.zeros_like(own), own)


def _error_of_resize(x: torch.Tensor, size: int, mode: InterpolationMode) -> torch.Tensor:
    """What rounding after both passes, and clipping after the first, can make of a (3, H, W) image of levels."""
    height = x.shape[1]
    rows = tensors.resize(x, [height, size], mode, antialias=True)  # (3, H, S)
    columns = tensors.resize(torch.eye(height, dtype=x.dtype)[None], [size, height], mode, antialias=True)[0]  # (S, H)
    clipped = (rows - rows.clamp(0, 255)).abs()
    return columns.abs() @ (ROUNDED + clipped) + ROUNDED


def flipped(x: Rounded) -> Rounded:
    return Rounded(F.hflip(x.image), x.bound[:, ::-1])


def adjusted(x: Rounded, operation: int, factor: float) -> Rounded:
    """One of the four colour operations. All but hue blend with another image, and cut the result off."""
    rest = abs(1 - factor)
    if operation == BRIGHTNESS:
        change, passed, own = F.adjust_brightness, factor * x.bound, CUT
    elif operation == CONTRAST:  # the gray image is rounded, and its mean
        passed = factor * x.bound + rest * (x.bound @ LUMA).mean()
        change, own = F.adjust_contrast, rest * 2 * ROUNDED + CUT
    elif operation == SATURATION:
        gains = np.abs(factor * np.eye(3) + (1 - factor) * LUMA)
        change, passed, own = F.adjust_saturation, x.bound @ gains.T, rest * ROUNDED + CUT
    else:
        change, passed, own = F.adjust_hue, x.bound.max(-1, keepdims=True) * HUE_GAIN, _own_error_of_hue(x, factor)
    return x.after(change(x.image, factor), lambda exact: change(exact, factor), passed, own)


def _own_error_of_hue(x: Rounded, turns: float) -> Levels:
    """Hue and saturation are cut off to 8 bits, of 255 steps to the turn; the shift is cut off, and wraps at 256."""
    high, chroma = x.levels.max(-1, keepdims=True), np.ptp(x.levels, axis=-1, keepdims=True)
    steps = 2 + abs(turns * 255 - int(turns * 255))
    return 6 * chroma * steps / 255 + high / 255 + ROUNDED  # a channel moves by six times the chroma in a turn


def gray(x: Rounded) -> Rounded:
    passed = (x.bound @ LUMA)[..., None]
    return x.after(F.rgb_to_grayscale(x.image, 3), lambda exact: F.rgb_to_grayscale(exact, 3), passed, ROUNDED)


def blurred_by_pillow(x: Rounded, sigma: float) -> Rounded:
    image = x.image.filter(ImageFilter.GaussianBlur(sigma))
    passed = _of_planes(lambda planes: box_blurred(planes, sigma), x.bound)
    return x.after(image, lambda exact: box_blurred(exact, sigma), passed, BOX_PASSES * ROUNDED)


def blurred_by_torchvision(x: Rounded, sigma: float, kernel: int) -> Rounded:
    def blur(image: torch.Tensor) -> torch.Tensor:
        return F.gaussian_blur(image, [kernel] * 2, [sigma] * 2)

    return x.after(blur(x.image), blur, _of_planes(blur, x.bound), ROUNDED)  # type: ignore[arg-type]


def solarized(x: Rounded) -> Rounded:
    """Inverting from the threshold on has no jump, and whole numbers stay whole."""
    return x.after(ImageOps.solarize(x.image), lambda exact: F.solarize(exact, 127.5 / 255), x.bound, 0.0)


def _of_planes(change: Change, bound: Levels) -> Levels:
    return change(torch.from_numpy(np.ascontiguousarray(bound)).permute(2, 0, 1)).permute(1, 2, 0).numpy()
