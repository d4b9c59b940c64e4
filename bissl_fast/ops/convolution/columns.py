"""A convolution taken apart into one matrix product: what each pixel of the result sees, times the filters.

Everything lies channels-last, so that filters, gradients and results are read as they are.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def columns(x: Tensor, height: int, width: int, stride: Any, padding: Any) -> Tensor:
    """What each output of a convolution reads of channels-last ``(N, C, H, W)``: ``(N OH OW, k k C)``."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))  # (N, H, W, C)
    n, h, w, c = padded.shape
    down, right = (h - height) // stride[0] + 1, (w - width) // stride[1] + 1
    of_image, of_row, of_pixel, of_channel = padded.stride()
    strides = (of_image, of_row * stride[0], of_pixel * stride[1], of_row, of_pixel, of_channel)
    patches = padded.as_strided((n, down, right, height, width, c), strides)
    return patches.reshape(n * down * right, height * width * c)


def as_rows_transposed(x: Tensor) -> Tensor:
    """Channels-last ``(N, C, H, W)`` as ``(C, N H W)``; copies nothing."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).t()


def as_images(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``(N H W, C)`` as channels-last images ``(N, C, H, W)``, or filters; copies nothing."""
    n, c, h, w = shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def filters_in_columns(weight: Tensor) -> Tensor:
    """Channels-last filters ``(K, C, k, k)`` as ``(k k C, K)``; copies nothing."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1).t()


def filters_reversed(weight: Tensor) -> Tensor:
    """Filters ``(K, C, k, k)`` turned around, ``(k k K, C)``: what carries a gradient back to the image."""
    height, width = weight.shape[2:]
    return torch.cat([weight[:, :, i, j] for i in reversed(range(height)) for j in reversed(range(width))])
