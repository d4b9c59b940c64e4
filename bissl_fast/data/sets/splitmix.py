"""SplitMix64: a stateless hash of integers whose values no library release can change.

Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, Figure 17 (`mix64variant13`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def splitmix64(key: int, counters: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hash counters under a key.

    Args:
        key: Stream, `0 <= key < 2**64`.
        counters: Any shape, uint64.

    Returns:
        64 well-mixed bits per counter, of the same shape.
    """
    z: npt.NDArray[np.uint64] = np.uint64(key) + (counters + np.uint64(1)) * GOLDEN_GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    z = z ^ (z >> np.uint64(31))
    return z


def derive_key(*parts: int) -> int:
    """Chain non-negative integers, e.g. (seed, split, index), into one key."""
    key = 0
    for part in parts:
        key = int(splitmix64(key, np.array([part], dtype=np.uint64))[0])
    return key
