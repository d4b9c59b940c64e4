"""Mean average precision as PASCAL VOC 2007 defines it: 11 points of recall (Everingham et al., 2010, section 4.2)."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bissl_fast.data.sets.dataset import Targets, count_by_class

Difficult = Literal["ignored", "present"]
"""What images that show a class only as difficult objects are to it."""

CONVENTIONS: tuple[Difficult, ...] = get_args(Difficult)


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


def average_precisions(
    scores: NDArray[np.float32], targets: Targets, difficult: Difficult = "ignored"
) -> NDArray[np.float64]:
    """:func:`average_precision` of every class.

    Args:
        scores: (N, classes).
        targets: (N, classes) with 1 present, 0 difficult, -1 absent.
        difficult: `ignored`, as VOC2007 defines it, or `present`, as BiSSL's released code counts.

    Returns:
        (classes,) between 0 and 1; NaN where no image shows a class.
    """
    if difficult == "present":
        targets = np.where(targets == 0, 1, targets).astype(targets.dtype)
    found = np.full(targets.shape[1], np.nan)
    for shown in np.flatnonzero(count_by_class(targets, targets.shape[1])):
        found[shown] = average_precision(scores[:, shown], targets[:, shown])
    return found
