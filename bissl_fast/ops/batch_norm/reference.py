"""Batch normalisation by its definition, in plain PyTorch."""

import torch
from torch import Tensor

from bissl_fast.ops.schemas import wide_dtype


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    groups: int = 1,
    relu: bool = False,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """``relu(weight · (x − mean) / sqrt(var + eps) + bias + residual)``, and mean and biased variance ``(G, C)``.

    Computed in float32 or better; differentiable to any order and in any mode, save in the two statistics.
    """
    wide = wide_dtype(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        grouped = x.to(wide).reshape(groups, x.shape[0] // groups, *x.shape[1:])  # (G, N/G, C, *spatial)
        axes = (1, *range(3, grouped.dim()))
        var, mean = torch.var_mean(grouped, dim=axes, correction=0, keepdim=True)
        xhat = ((grouped - mean) * torch.rsqrt(var + eps)).reshape(x.shape)
        per_channel = (-1, *(1,) * (x.dim() - 2))  # (C, 1, ...)
        z = weight.to(wide).view(per_channel) * xhat + bias.to(wide).view(per_channel)
        if residual is not None:
            z = z + residual.to(wide)
        out = (torch.relu(z) if relu else z).to(x.dtype)
    return out, mean.detach().reshape(groups, -1), var.detach().reshape(groups, -1)
