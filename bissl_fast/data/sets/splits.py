"""Which images or classes serve for what, where a set does not say so itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bissl_fast.data.sets.dataset import Labels
from bissl_fast.data.sets.splitmix import splitmix64

VALIDATION_FRACTION = 0.2  # BiSSL, Appendix B.1
VALIDATION_SEED = 20240217  # part of the meaning of every number that was ever reported: never change it
TEST_SEED = 20240218  # for sets and folders that bring no test split either
TRAIN_SEED = 20240219  # for sets of which a number per class trains
CROSS_SEED = 20240220  # for the classes of a cross-class split

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

    def count(members: int) -> int:
        # The tolerance keeps 0.2 * 35 = 7.000000000000001 and 0.29 * 100 = 28.999999999999996 at 7 and 29.
        share = int(np.floor(fraction * members + 1e-9))
        return max(share, 1) if members >= 2 else share

    held = _drawn_by_class(labels, count, seed)
    return np.flatnonzero(~held), np.flatnonzero(held)


def fixed_per_class(labels: Labels, count: int) -> tuple[Indices, Indices]:
    """Choose the same number of positions from every class, as Caltech-101's 30 per class (BiSSL, Appendix B.1).

    A class of n <= count images gives n - 1 of them, so that one is left, and a class of one image gives that one.

    Args:
        labels: `(N,)` int64.
        count: Positions to choose per class.

    Returns:
        Chosen positions and the others, both sorted, int64.

    Example:
        >>> chosen, rest = fixed_per_class(np.repeat([0, 1], [31, 800]), 30)
        >>> len(chosen), len(rest)
        (60, 771)
    """
    chosen = _drawn_by_class(labels, lambda members: min(count, max(members - 1, 1)), TRAIN_SEED)
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def labelled_share(labels: Labels, share: float, seed: int) -> Indices:
    """Choose a share of every class, as semi-supervised protocols do: at least one image of each.

    Args:
        labels: `(N,)` int64.
        share: Of the images, in (0, 1].
        seed: Key of the hash that chooses; with the same seed a smaller share is part of a larger one.

    Returns:
        Chosen positions, sorted, int64.

    Example:
        >>> np.bincount(np.repeat([0, 1], [500, 30])[labelled_share(np.repeat([0, 1], [500, 30]), 0.01, 0)]).tolist()
        [5, 1]
    """
    return np.flatnonzero(_drawn_by_class(labels, lambda members: max(1, round(share * members)), seed))


def cross_classes(superclass: Labels) -> npt.NDArray[np.bool_]:
    """Halve the classes of every superclass (FUSSL, "Cross-class/cluster learning").

    Args:
        superclass: `(classes,)` int64, of every class.

    Returns:
        `(classes,)` bool, the half that is pre-trained on. Of an odd number of classes a random half of the
        superclasses gives the larger part: of 20 superclasses of 5 classes ten give 3 and ten 2, 50 in all.

    Example:
        >>> chosen = cross_classes(np.repeat(np.arange(20), 5))
        >>> np.bincount(chosen.reshape(20, 5).sum(axis=1)).tolist()
        [0, 0, 10, 10]
    """
    groups = int(superclass.max()) + 1
    order = np.argsort(splitmix64(CROSS_SEED + 1, np.arange(groups, dtype=np.uint64)))
    generous = set(order[: groups // 2].tolist())
    ranks = splitmix64(CROSS_SEED, np.arange(len(superclass), dtype=np.uint64))
    chosen = np.zeros(len(superclass), dtype=bool)
    for group in range(groups):
        members = np.flatnonzero(superclass == group)
        half = (len(members) + (group in generous)) // 2
        chosen[members[np.argsort(ranks[members], kind="stable")[:half]]] = True
    return chosen


def _drawn_by_class(labels: Labels, count: Callable[[int], int], seed: int) -> npt.NDArray[np.bool_]:
    """Mark in every class of n members the `count(n)` of lowest hash."""
    ranks = splitmix64(seed, np.arange(len(labels), dtype=np.uint64))
    drawn = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn[members[np.argsort(ranks[members], kind="stable")[: count(len(members))]]] = True
    return drawn
