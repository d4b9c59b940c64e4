"""Losses of MoCo, BYOL, SimSiam and DINO as their papers write them: nothing is shifted or treated specially."""

from collections.abc import Sequence

import torch

Tensor = torch.Tensor


def unit(z: Tensor) -> Tensor:
    return z / (z * z).sum(1, keepdim=True).sqrt()


def moco(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """He et al., 2020, Eq. 1: −log of the positive's share in the K + 1 exponentials, mean over the batch."""
    q, k = unit(q), unit(k)
    positive = ((q * k).sum(1) / temperature).exp()
    negatives = (q @ queue.T / temperature).exp().sum(1)
    return -(positive / (positive + negatives)).log().mean()


def moco_v3(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Chen et al., 2021, Algorithm 1, `ctr`: keys of the batch, and 2τ before it; one of two that are added."""
    similarities = (unit(q) @ unit(k).T / temperature).exp()
    return -2 * temperature * (similarities.diagonal() / similarities.sum(1)).log().mean()


def two_sided(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Radford et al., 2021, Figure 3: the mean of the cross-entropies along both axes."""
    similarities = (unit(q) @ unit(k).T / temperature).exp()
    positives = similarities.diagonal()
    return -((positives / similarities.sum(1)).log().mean() + (positives / similarities.sum(0)).log().mean()) / 2


def byol(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Grill et al., 2020, Eq. 2 and the symmetrised sum behind it."""
    (p, p_), (t, t_) = predictions, targets
    return (2 - 2 * (unit(p) * unit(t_)).sum(1)).mean() + (2 - 2 * (unit(p_) * unit(t)).sum(1)).mean()


def simsiam(predictions: Sequence[Tensor], projections: Sequence[Tensor]) -> Tensor:
    """Chen and He, 2021, Eq. 4; the projections are held by the caller."""
    (p1, p2), (z1, z2) = predictions, projections
    return -(unit(p1) * unit(z2)).sum(1).mean() / 2 - (unit(p2) * unit(z1)).sum(1).mean() / 2


def dino(scores: Sequence[Tensor], targets: Sequence[Tensor], centre: Tensor, student: float, teacher: float) -> Tensor:
    """Caron et al., 2021, Eq. 3 and Algorithm 1; the mean over pairs of views, where Eq. 3 adds."""
    total, pairs = torch.zeros((), dtype=centre.dtype), 0
    for k, target in enumerate(targets):
        shares = ((target - centre) / teacher).exp()
        shares = shares / shares.sum(1, keepdim=True)
        for view, given in enumerate(scores):
            if view != k:
                own = (given / student).exp()
                total = total - (shares * (own / own.sum(1, keepdim=True)).log()).sum(1).mean()
                pairs += 1
    return total / pairs
