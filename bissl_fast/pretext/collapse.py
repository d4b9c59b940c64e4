"""Whether embeddings still tell images apart."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

ROWS = 512
"""Embeddings that are looked at: enough to tell a rank of some hundreds, in a millisecond."""

LEAST_SPREAD = 0.01
LEAST_RANK = 1.5


@torch.no_grad()
def spread(embeddings: torch.Tensor) -> torch.Tensor:
    """How far embeddings of norm 1 lie apart: standard deviation per dimension times √D, from 0 (all alike) to 1.

    Args:
        embeddings: (N, D), of any norm.

    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, section 4.1.

    Example:
        >>> round(spread(torch.eye(3)[torch.arange(300) % 3]).item(), 2)
        0.82
    """
    rows = F.normalize(embeddings[:ROWS].double(), dim=1)
    found: torch.Tensor = rows.std(0, correction=0).mean() * rows.shape[1] ** 0.5
    return found


@torch.no_grad()
def effective_rank(embeddings: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of the singular values: how many directions embeddings of norm 1 use about their mean.

    Args:
        embeddings: (N, D), of any norm.

    Returns:
        Between 1 and min(N − 1, D); 0 where all are the same, NaN where a number is not finite.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007; of pretext embeddings: Garrido et al., "RankMe", 2023,
    who do not take the mean away.

    Example:
        >>> round(effective_rank(torch.tensor([[1.0, 0], [0, 1.0], [-1.0, 0], [0, -1.0]])).item(), 3)
        2.0
    """
    rows = F.normalize(embeddings[:ROWS].double(), dim=1)
    rows = rows - rows.mean(0)
    finite = rows.isfinite().all()  # of others LAPACK raises, before the loss can be named
    values = torch.linalg.svdvals(torch.where(finite, rows, 0.0))
    total = values.sum()
    shares = values / total.clamp(min=1e-300)
    entropy = -torch.special.xlogy(shares, shares).sum()
    rank = torch.where(total > len(rows) * 1e-12, entropy.exp(), 0.0)
    return torch.where(finite, rank, torch.nan)


def diagnose(embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a stage logs of its embeddings."""
    embeddings = embeddings.detach()
    return {"spread": spread(embeddings), "effective_rank": effective_rank(embeddings)}


def alarm(values: Mapping[str, Any]) -> str:
    """A sentence where what :func:`diagnose` found says that embeddings have collapsed; else empty."""
    if "spread" not in values:
        return ""
    found = f"spread {values['spread']:.2g} of 1, effective rank {values['effective_rank']:.2g}"
    if values["spread"] < LEAST_SPREAD:
        return f"embeddings have collapsed: they are the same for all images ({found})"
    if values["effective_rank"] < LEAST_RANK:
        return f"embeddings have collapsed: they lie on a line ({found})"
    return ""
