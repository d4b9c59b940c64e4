"""Batch norm, residual and ReLU by their definition, in plain PyTorch.

PyTorch's own batch norm would be faster, but its reverse over forward mode is silently wrong (seen in 2.15): there
its statistics are constants.
"""

import torch
from torch import Tensor

from bissl_fast.ops.collectives import Ranks, all_mean
from bissl_fast.ops.schemas import wide_dtype


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    groups: int = 1,
    relu: bool = False,
    eps: float = 1e-5,
    ranks: Ranks | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``relu(weight · (x − mean) / sqrt(var + eps) + bias + residual)``, and mean and rstd ``(G, C)``.

    Computed in float32 or better; differentiable to any order and in any mode, save in the statistics. With ``ranks``
    statistics are those of all their values, of which each has as many.
    """
    wide = wide_dtype(x.dtype)
    per_channel = (-1, *(1,) * (x.dim() - 2))  # (C, 1, ...)
    grouped = x.to(wide).reshape(groups, x.shape[0] // groups, *x.shape[1:])  # (G, N/G, C, *spatial)
    axes = (1, *range(3, grouped.dim()))
    mean = all_mean(grouped.mean(axes, keepdim=True), ranks)
    centred = grouped - mean
    rstd = torch.rsqrt(all_mean(centred.square().mean(axes, keepdim=True), ranks) + eps)
    scale = weight.to(wide).view(per_channel) * rstd
    z = torch.addcmul(bias.to(wide).view(per_channel), centred, scale).reshape(x.shape)
    if residual is not None:
        z = z + residual.to(wide)
    out = (torch.relu(z) if relu else z).to(x.dtype)
    return out, mean.detach().reshape(groups, -1), rstd.detach().reshape(groups, -1)
