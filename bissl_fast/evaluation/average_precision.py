"""Mean average precision as PASCAL VOC 2007 defines it: 11 points of recall (Everingham et al., 2010, section 4.2)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bissl_fast.data.sets.dataset import Targets, count_by_class
from bissl_fast.errors import UserError

Difficult = Literal["ignored", "present"]
"""What images that show a class only as difficult objects are to it."""


def average_precision(scores: NDArray[np.float32], targets: Targets) -> float:
    """The mean, over t = 0, 0.1, …, 1, of the highest precision at a recall of t or more.

    Images that show the class only as difficult objects are left out. Images of equal score are found together, so
    that their order does not matter. Recall is compared with t in whole numbers, without rounding.

    Args:
        scores: (N,), higher where the class is the more likely.
        targets: (N,) with 1 present, 0 difficult, -1 absent; one at least is 1.

    Returns:
        Between 0 and 1.

    Example:
        >>> average_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, -1, 1, 0]))  # (6 · 1 + 5 · 2/3) / 11
        0.8484848484848484
    """
    counted = targets != 0
    order = np.argsort(-scores[counted], kind="stable")
    ranked, present = scores[counted][order], (targets[counted] == 1)[order]
    ends = np.append(ranked[1:] != ranked[:-1], True)  # where a threshold can lie: after the last of equal scores
    found = np.cumsum(present)[ends]
    precision = found / (np.flatnonzero(ends) + 1)
    return float(np.mean([precision[10 * found >= tenths * present.sum()].max() for tenths in range(11)]))


def mean_average_precision(scores: NDArray[np.float32], targets: Targets) -> float:
    """The mean of :func:`average_precision` over the classes that some image shows.

    Args:
        scores: (N, classes).
        targets: (N, classes) with 1 present, 0 difficult, -1 absent.

    Returns:
        Between 0 and 1.

    Raises:
        UserError: if no image shows any class.
    """
    shown = np.flatnonzero(count_by_class(targets, targets.shape[1]))
    if not len(shown):
        raise UserError(
            "Average precision needs an image that shows a class, and the split has none: use a larger one."
        )
    return float(np.mean([average_precision(scores[:, c], targets[:, c]) for c in shown]))


class MeanAveragePrecision:
    """:func:`mean_average_precision` of all batches, collected where they are and ranked on the host at the end.

    Args:
        difficult: `ignored`, as VOC2007 defines it, or `present`, as BiSSL's released code counts.
    """

    def __init__(self, difficult: Difficult = "ignored") -> None:
        self._difficult = difficult
        self._scores: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []

    def update(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        """Add (B, classes) scores and targets."""
        self._scores.append(scores)
        self._targets.append(targets)

    def compute(self) -> float:
        """Between 0 and 1."""
        targets = torch.cat(self._targets).cpu().numpy()
        if self._difficult == "present":
            targets = np.where(targets == 0, 1, targets)
        return mean_average_precision(torch.cat(self._scores).cpu().numpy(), targets)
