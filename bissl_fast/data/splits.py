"""Stratified hold-outs: which images become validation images where a set has no validation split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bissl_fast.data.dataset import Labels
from bissl_fast.data.splitmix import splitmix64

VALIDATION_FRACTION = 0.2  # BiSSL, Appendix B.1
VALIDATION_SEED = 20240217  # part of the meaning of every number that was ever reported: never change it
TEST_SEED = 20240218  # for folders that bring no test split either

Indices = npt.NDArray[np.int64]


def stratified_holdout(
    labels: Labels, fraction: float = VALIDATION_FRACTION, seed: int = VALIDATION_SEED
) -> tuple[Indices, Indices]:
    """Split positions into a kept and a held-out part, class by class.

    Each class of n images gives `floor(fraction * n)` of them, but at least one if n >= 2; a class of one image stays
    whole in the kept part. With a fifth of the images this reproduces the authors' published sizes. Which images are
    held out follows from a hash of (seed, position): the same on every machine and with every version of NumPy.

    Args:
        labels: `(N,)` int64.
        fraction: Share of every class to hold out, in (0, 1).
        seed: Key of the hash.

    Returns:
        Kept and held-out positions, both sorted, `(K,)` and `(N - K,)` int64.

    Raises:
        ValueError: `fraction` is not inside (0, 1).

    Example:
        >>> kept, held = stratified_holdout(np.repeat([0, 1], 10))
        >>> len(kept), len(held)
        (16, 4)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction to hold out must lie between 0 and 1, not {fraction}")
    ranks = splitmix64(seed, np.arange(len(labels), dtype=np.uint64))
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # The tolerance keeps 0.2 * 35 = 7.000000000000001 and 0.29 * 100 = 28.999999999999996 at 7 and 29.
        count = int(np.floor(fraction * len(members) + 1e-9))
        if len(members) >= 2:
            count = max(count, 1)
        held[members[np.argsort(ranks[members], kind="stable")[:count]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
