"""Empty outputs of the batch-norm kernels, laid out like their inputs."""

import torch
from torch import Tensor

from bissl_fast.ops.schemas import wide_dtype


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout that results shaped like ``x`` have."""
    if x.is_contiguous():
        return torch.contiguous_format
    for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == dims and x.is_contiguous(memory_format=layout):
            return layout
    return torch.contiguous_format


def empty_like(x: Tensor) -> Tensor:
    """An output shaped like ``x``."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def empty_statistics(x: Tensor, groups: int) -> Tensor:
    """A ``(G, C)`` output."""
    return x.new_empty((groups, x.shape[1]), dtype=wide_dtype(x.dtype))


def empty_planes(x: Tensor, count: int, groups: int) -> Tensor:
    """Several of them in one, ``(count, G, C)``."""
    return x.new_empty((count, groups, x.shape[1]), dtype=wide_dtype(x.dtype))


def empty_residual(x: Tensor, with_residual: bool) -> Tensor:
    """The gradient of a residual that there may be."""
    return empty_like(x) if with_residual else x.new_empty(0)
