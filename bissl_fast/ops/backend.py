"""Which kernels serve a loss: the best available for the device, unless the user says otherwise."""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Kernels(NamedTuple):
    """The three raw kernels of a backend; see :mod:`bissl_fast.ops.schemas`."""

    fwd: Callable[..., tuple[torch.Tensor, ...]]
    bwd: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    bwd_bwd: Callable[..., torch.Tensor]


def kernels(backend: str) -> Kernels:
    """The raw kernels of a native backend: ``cpp`` and ``cuda`` share an op, PyTorch tells them apart by device."""
    ops = torch.ops.bissl_fast
    if backend == "triton":
        return Kernels(ops.triton_contrastive_fwd, ops.triton_contrastive_bwd, ops.triton_contrastive_bwd_bwd)
    return Kernels(ops.contrastive_fwd, ops.contrastive_bwd, ops.contrastive_bwd_bwd)
