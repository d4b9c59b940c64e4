"""Fuzzy labels from the votes of an ensemble, and the loss that they are learned by (FUSSL, sections 3.2 and 4.1.3)."""

from typing import Literal

import torch

Kind = Literal["fuzzy", "hard", "soft"]
Ties = Literal["tied", "all", "hard"]
Memberships = Literal["confidence", "uniform"]


def fuzzy_labels(
    votes: torch.Tensor,
    confidences: torch.Tensor,
    kind: Kind = "fuzzy",
    ties: Ties = "tied",
    memberships: Memberships = "confidence",
) -> torch.Tensor:
    """How far each image belongs to the class that each block votes for: at least one and at most m numbers above 0.

    A class that several blocks vote for has its number at the first of them. Where one class has most votes, the label
    is hard: that class alone. What the paper leaves open is a setting:

    Args:
        votes: (N, m) int64, the pseudo-class that each of m blocks gives each image.
        confidences: (N, m) floating, positive: the blocks' probabilities of them.
        kind: `fuzzy`: hard labels, and soft ones where no class has most votes; `hard` (Cases 1 and 4): of the classes
            with most votes the one with the highest summed confidence; `soft` (Cases 2 and 5): every class that has
            votes.
        ties: where several classes share most votes: soft over these (`tied`), over all that have votes (`all`), or a
            hard label as above unless each block votes for another class (`hard`, section 4.1.3 read to the letter).
        memberships: of soft labels: shares of the votes weighted by their `confidence`, or every vote weighs the same.

    Returns:
        (N, m) in the dtype of ``confidences``; rows sum to 1, and a hard label is exactly 1.

    Example:
        >>> votes, confidences = torch.tensor([[7, 7, 2], [7, 5, 2]]), torch.tensor([[0.5, 0.5, 0.9], [0.2, 0.2, 0.4]])
        >>> fuzzy_labels(votes, confidences)
        tensor([[1.0000, 0.0000, 0.0000],
                [0.2500, 0.2500, 0.5000]])
    """
    same = votes[:, :, None] == votes[:, None, :]  # (N, m, m)
    first = ~same.tril(-1).any(2)  # no block before votes for it
    counts = same.sum(2)
    summed = (same * confidences[:, None, :]).sort(2).values.sum(2)  # one order, so that equal sums are equal
    most = counts.amax(1, keepdim=True)
    leading = first & (counts == most)
    single = highest(leading, summed, votes)
    if kind == "soft":
        kept = first
    elif kind == "hard":
        kept = single
    else:
        tied = first if ties == "all" else leading
        if ties == "hard":
            tied = torch.where(most > 1, single, leading)
        kept = torch.where(leading.sum(1, keepdim=True) == 1, leading, tied)
    weights = (summed if memberships == "confidence" else counts.to(confidences.dtype)) * kept
    return weights / weights.sum(1, keepdim=True)


def highest(candidates: torch.Tensor, values: torch.Tensor, votes: torch.Tensor) -> torch.Tensor:
    """Of candidates (N, m) that of the highest value, of equal ones the lowest class, in whatever order blocks come."""
    best = values.masked_fill(~candidates, -torch.inf)
    best_candidates = candidates & (best == best.amax(1, keepdim=True))
    lowest = votes.masked_fill(~best_candidates, torch.iinfo(votes.dtype).max)
    return best_candidates & (lowest == lowest.amin(1, keepdim=True))


def soft_cross_entropy(scores: torch.Tensor, votes: torch.Tensor, memberships: torch.Tensor) -> torch.Tensor:
    """−Σ_c y_c log softmax(s)_c of each image, whose gradient by the scores is softmax(s) − y.

    Args:
        scores: (N, D), any floating dtype; sums are taken in float32 or better.
        votes: (N, m) int64, the classes of ``memberships``.
        memberships: (N, m), as :func:`fuzzy_labels` gives them; zeros may stand at any class.

    Returns:
        (N,).

    Example:
        >>> soft_cross_entropy(torch.zeros(1, 4), torch.tensor([[1, 3]]), torch.tensor([[0.5, 0.5]]))  # ln 4
        tensor([1.3863])
    """
    wide = scores.dtype if scores.dtype == torch.float64 else torch.float32
    logs = scores.to(wide).log_softmax(1).gather(1, votes)
    return -(memberships.to(wide) * logs).sum(1)


def effective_classes(votes: torch.Tensor, memberships: torch.Tensor, classes: int) -> tuple[int, float]:
    """How many pseudo-classes have members, and exp of the entropy of their sizes: as many equal ones tell as much.

    Args:
        votes: (N, m).
        memberships: (N, m).
        classes: D.

    Example:
        >>> effective_classes(torch.tensor([[0], [2]]), torch.ones(2, 1), 5)
        (2, 2.0)
    """
    sizes = torch.zeros(classes, dtype=torch.float64)
    sizes.scatter_add_(0, votes.flatten(), memberships.double().flatten())
    shares = sizes / sizes.sum()
    return int((sizes > 0).sum()), float((-torch.special.xlogy(shares, shares).sum()).exp())
