"""Small tasks without a momentum copy, a network for them, and their losses written out from their papers."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn

from bissl_fast.models import Network
from bissl_fast.pretext import WMSE, BarlowTwins, PretextTask, SwAV, VICReg
from bissl_fast.pretext.learner import Views

Outputs = Sequence[Any]

TASKS: dict[str, PretextTask] = {
    "barlow": BarlowTwins(projector=(6, 5)),
    "barlow, wide": BarlowTwins(projector=(6, 24)),
    "vicreg": VICReg(projector=(6, 5)),
    "vicreg, wide": VICReg(projector=(6, 24)),
    "swav": SwAV(projector=(6, 5), prototypes=7, freeze_prototypes=2, epsilon=0.25),
    "wmse": WMSE(projector=(6, 3), slice_size=6),
    "wmse, Euclid": WMSE(projector=(6, 2), slice_size=4, unit_norm=False, shrinkage=0.1, positives=3),
}
BATCH = 12
SIZES = {"swav": (7, 7, 5, 5)}
"""Sides of the views in pixels, where they are not two or more of 7."""


def network(task: PretextTask) -> Network:
    """Two convolutions with batch norms, 102 parameters and 4 features, and the task's head, in float64."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Tanh()]
    layers += [nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Network(nn.Sequential(*layers), task.head(4, seed=1)).double()


def batches(task: PretextTask, count: int) -> list[Views]:
    """Views of noise; those of one image are alike."""
    generator = torch.Generator().manual_seed(2)
    sizes = SIZES.get(task.name, (7,) * len(task.needs.online))
    images = torch.randn(count, BATCH, 1, 7, 7, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(sizes), *images.shape, generator=generator, dtype=torch.float64)
    return [
        tuple((images[k] + 0.3 * noise[v, k])[..., :size, :size] for v, size in enumerate(sizes)) for k in range(count)
    ]


def barlow(task: BarlowTwins, outputs: Outputs) -> torch.Tensor:
    """Eq. 1 and 2, with the released code's ε and biased variance."""
    first, second = ((z - z.mean(0)) / torch.sqrt(z.var(0, correction=0) + 1e-5) for z in outputs)
    c = torch.einsum("bi,bj->ij", first, second) / len(first)
    same = torch.eye(len(c), dtype=c.dtype)
    return (same * (1 - c) ** 2).sum() + task.redundancy * ((1 - same) * c**2).sum()


def vicreg(task: VICReg, outputs: Outputs) -> torch.Tensor:
    """Eq. 1 to 6 as the text writes them, with the weights that the released code's come to there."""
    first, second = outputs
    rows, columns = first.shape
    same = torch.eye(columns, dtype=first.dtype)
    invariance = ((first - second) ** 2).sum() / rows  # Eq. 5
    variance = covariance = torch.zeros((), dtype=first.dtype)
    for z in outputs:
        deviation = torch.sqrt(z.var(0) + 1e-4)  # Eq. 2
        variance = variance + torch.clamp(1 - deviation, min=0).sum() / columns  # Eq. 1
        covariance = covariance + ((1 - same) * torch.cov(z.T) ** 2).sum() / columns  # Eq. 3 and 4
    return task.invariance / columns * invariance + task.variance / 2 * variance + task.covariance * covariance


def sinkhorn(scores: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """Codes (B, K) of scores (B, K), in NumPy, which no derivative passes."""
    q = np.exp(scores.detach().numpy() / epsilon).T
    prototypes, images = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdims=True) / prototypes
        q = q / q.sum(0, keepdims=True) / images
    return torch.from_numpy((q * images).T)


def swav(task: SwAV, outputs: Outputs) -> torch.Tensor:
    """Mean over both assigned views of the mean over all others of the cross-entropy (Eq. 2)."""
    total = torch.zeros((), dtype=outputs[0][1].dtype)
    for k in (0, 1):
        codes = sinkhorn(outputs[k][1], task.epsilon, task.sinkhorn_iterations)
        others = [scores for v, (_, scores) in enumerate(outputs) if v != k]
        for scores in others:
            p = torch.exp(scores / task.temperature)
            p = p / p.sum(1, keepdim=True)
            total = total - (codes * torch.log(p)).sum(1).mean() / len(others) / 2
    return total


def wmse(task: WMSE, outputs: Outputs) -> torch.Tensor:
    """Slice by slice and image by image, by the inverse of the factor."""
    width = outputs[0].shape[1]
    whitened = []
    for z in outputs:
        rows = []
        for part in z.split(task.slice_size):
            covariance = (1 - task.shrinkage) * torch.cov(part.T) + task.shrinkage * torch.eye(width, dtype=z.dtype)
            inverse = torch.linalg.inv(torch.linalg.cholesky(covariance))
            rows += [inverse @ (row - part.mean(0)) for row in part]
        whitened.append(torch.stack(rows))
    distances = []
    for a, b in combinations(whitened, 2):
        if task.unit_norm:
            cosines = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
            distances.append((2 - 2 * cosines).mean())
        else:
            distances.append(((a - b) ** 2).sum() / a.numel())
    return sum(distances) / len(distances)


WRITTEN: dict[str, Callable[[Any, Outputs], torch.Tensor]] = {
    "barlow": barlow,
    "vicreg": vicreg,
    "swav": swav,
    "wmse": wmse,
}
