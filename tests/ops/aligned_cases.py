"""Aligned embeddings, as trained networks give them, and an oracle whose float64 keeps its digits on them."""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURES = (0.5, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005)  # the last is the lowest that kernels take
DISTANCES = (1e-1, 5e-2, 1e-2, 1e-3, 1e-4)  # of a row from its partner


def aligned_views(pairs: int, dim: int, distance: float, seed: int) -> tuple[Tensor, Tensor]:
    """``(B, D)`` rows of length one, and partners at a distance, in float32."""
    generator = torch.Generator().manual_seed(seed)
    first, turn = F.normalize(torch.randn(2, pairs, dim, generator=generator, dtype=torch.float64), dim=2)
    return first.float(), (first + distance * turn).float()


def crowded_views(pairs: int, dim: int, distance: float, seed: int) -> tuple[Tensor, Tensor]:
    """``(B, D)`` rows at a distance from one direction: all negatives are as close as the partner, in float32."""
    generator = torch.Generator().manual_seed(seed)
    middle = F.normalize(torch.randn(dim, generator=generator, dtype=torch.float64), dim=0)
    turns = F.normalize(torch.randn(2, pairs, dim, generator=generator, dtype=torch.float64), dim=2)
    first, second = (middle + distance * turns).float()
    return first, second


def exact_loss(z1: Tensor, z2: Tensor, temperature: float, cross_view: bool) -> Tensor:
    """The loss as ``log(1 + Σ negatives / positive)``: as a cross-entropy, ``1 − P`` ends at the dtype's rounding."""
    u, pairs = F.normalize(torch.cat([z1, z2]), dim=1), len(z1)
    logits = u @ u.T / temperature
    row, column = torch.arange(2 * pairs)[:, None], torch.arange(2 * pairs)[None, :]
    excluded = (row - column) % pairs == 0  # itself and the partner
    if cross_view:
        excluded = excluded | ((row < pairs) == (column < pairs))
    positives = logits.diagonal(pairs).repeat(2)
    odds = (logits - positives[:, None]).masked_fill(excluded, float("-inf")).logsumexp(dim=1)  # log
    return F.softplus(odds).mean()
