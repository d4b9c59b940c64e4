"""Normalisation of rows in plain PyTorch, finite to every order."""

from collections.abc import Callable

import torch

from bissl_fast.ops.schemas import NORM_EPS, wide_dtype


def widened(
    loss: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor],
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """A reference loss as the kernels compute it: in float32 or better, whatever the embeddings and autocast say."""
    wide = wide_dtype(z1.dtype)
    with torch.autocast(z1.device.type, enabled=False):
        return loss(z1.to(wide), z2.to(wide), temperature)


def unit_rows(z: torch.Tensor) -> torch.Tensor:
    """``torch.nn.functional.normalize(z, dim=1)``, whose second derivative at a zero row is finite, too.

    A row shorter than ε is divided by the constant ε and its own norm is never formed, since the second
    derivative of a norm at zero is not a number.
    """
    eps = max(NORM_EPS, torch.finfo(z.dtype).tiny)
    clamped = z.detach().norm(dim=1, keepdim=True) < eps  # (N, 1)
    nonzero = torch.where(clamped, torch.ones_like(z), z).to(wide_dtype(z.dtype))
    norms = nonzero.square().sum(dim=1, keepdim=True).sqrt().to(z.dtype)
    return z / torch.where(clamped, torch.full_like(norms, eps), norms)
