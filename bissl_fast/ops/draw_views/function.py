"""The compiled op that draws view parameters, and whether there is one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from bissl_fast.ops import native
from bissl_fast.ops.backend import wanted
from bissl_fast.ops.render_views.function import INTEGERS, NUMBERS


class Recipe(NamedTuple):
    """What all rows share, in the order of csrc/draw.h; a range is its low end and its length.

    Args:
        scale: of the crop's area, as a fraction of the image's.
        log_ratio: of the logarithm of width / height.
        ratio: the least and the largest width / height, for the central crop where no attempt fits.
        centred: whether the crop lies in the middle, and its area is a fraction of the largest square's.
        chances: of flip, jitter, gray, blur and solarize.
        sigma: of the blur.
        factor_low: of brightness, contrast, saturation and hue.
        factor_range: likewise.
    """

    scale: Sequence[float]
    log_ratio: Sequence[float]
    ratio: Sequence[float]
    centred: bool
    chances: Sequence[float]
    sigma: Sequence[float]
    factor_low: Sequence[float]
    factor_range: Sequence[float]

    def tensor(self) -> Tensor:
        """(22,) float64."""
        numbers = chain(*self[:3], (self.centred,), *self[4:])
        return torch.tensor(list(numbers), dtype=torch.float64)


def serves() -> bool:
    """Whether compiled code draws, and the reference was not asked for."""
    return hasattr(torch.ops.bissl_fast, "draw_views") and wanted() != "reference"


def draw_views(
    samples: Tensor, sizes: Tensor, recipe: Recipe, *, seed: int, epoch: int, view: int
) -> tuple[Tensor, Tensor]:
    """Draws one view of each sample, over PyTorch's threads: the same bits with any number of them.

    Args:
        samples: ``(N,)`` int64 indices into the data set, below 2**32.
        sizes: ``(1, 2)`` or ``(N, 2)`` int64 height and width of the images in pixels.
        recipe: The distributions.
        seed: Any integer; taken modulo 2**64.
        epoch: How often the set has been shuffled before, below 2**32.
        view: Which of a sample's views, below 2**16.

    Returns:
        The table that :func:`bissl_fast.ops.render_views` takes: ``(N, INTEGERS)`` int32 and ``(N, NUMBERS)`` float32.

    Raises:
        RuntimeError: for shapes, dtypes or numbers that do not fit.

    Example:
        >>> draw_views(samples, sizes, recipe, seed=0, epoch=0, view=0)  # doctest: +SKIP
    """
    signed = (int(seed) + 2**63) % 2**64 - 2**63
    table: tuple[Tensor, Tensor] = torch.ops.bissl_fast.draw_views(
        samples, sizes, recipe.tensor(), signed, int(epoch), view
    )
    return table


def fake_draw_views(
    samples: Tensor, sizes: Tensor, recipe: Tensor, seed: int, epoch: int, view: int
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of the result."""
    n = samples.shape[0]
    return samples.new_empty((n, INTEGERS), dtype=torch.int32), samples.new_empty((n, NUMBERS), dtype=torch.float32)


_LIBRARY = native.register_compiled({"draw_views": fake_draw_views}, "View parameters are data, without derivatives.")
