"""Philox4x32-10: the counter-based random numbers behind views and batch order.

A number is a pure function of a 64-bit key and a 128-bit counter, so nothing has to be drawn in order and nothing has
to be saved: any sample of any epoch can be drawn anywhere, on any device, with the same bits.
Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

Layout used throughout the package, word 0 first (every implementation, native ones included, must follow it):

==========  ============================================================
key 0, 1    low and high 32 bits of the seed (modulo 2**64)
counter 0   block: which group of four words of the same item
counter 1   item: the sample's index, or 0 where there is none
counter 2   ``stream << 16 | view``: what the numbers are for (`Stream`), and the view
counter 3   epoch
==========  ============================================================
"""

from __future__ import annotations

import operator
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from bissl_fast.errors import UserError

Words = npt.NDArray[np.uint32]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1: the key's increments per round
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Stream(IntEnum):
    """What a sequence of random numbers is for; separate streams never share a counter."""

    VIEW = 0
    ORDER = 1


def philox4x32(counter: tuple[npt.ArrayLike, ...], key: tuple[int, int]) -> Words:
    """Philox4x32-10 on a broadcast batch of counters.

    Args:
        counter: four words, each an integer or an integer array below 2**32; they broadcast to one shape (...).
        key: two words below 2**32.

    Returns:
        (..., 4) uint32 words.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0, product_1 = (
            _MULTIPLIERS[0] * c0,
            _MULTIPLIERS[1] * c2,
        )  # 32 x 32 -> 64 bits: cannot overflow
        c0, c1, c2, c3 = (
            (product_1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product_1 & _LOW,
            (product_0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product_0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


def random_words(
    seed: int, stream: Stream, epoch: int, items: npt.ArrayLike, blocks: int, view: int = 0, first: int = 0
) -> Words:
    """Words of the package's layout: `blocks` groups of four for every item.

    Args:
        seed: any integer; taken modulo 2**64.
        stream: what the numbers are for.
        epoch: 0 to 2**32 - 1.
        items: (N,) integers in 0 ... 2**32 - 1.
        blocks: groups of four words per item.
        view: 0 to 2**16 - 1.
        first: groups before them that are left out.

    Returns:
        (N, blocks, 4) uint32.

    Raises:
        UserError: for an epoch or items outside of their range, or items that are not integers.

    Example:
        >>> random_words(0, Stream.VIEW, epoch=0, items=[0], blocks=1)
        array([[[1713891541, 3781805453, 3159862348, 2600524760]]], dtype=uint32)
    """
    items = np.asarray(items)
    check_counter(epoch, items)
    item = items.astype(np.uint64)[:, None]  # (N, 1)
    counter = (np.arange(first, first + blocks, dtype=np.uint64), item, int(stream) << 16 | view, epoch)
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))


def check_counter(epoch: int, items: npt.NDArray[Any]) -> None:
    """Raise a UserError unless epoch and items are words of a counter."""
    if items.size and (items.dtype.kind not in "iu" or items.min() < 0 or items.max() >= 2**32):
        raise UserError(f"samples must be integers from 0 to 2**32 - 1, found {items.dtype} such as {items.min()}.")
    if not 0 <= operator.index(epoch) < 2**32:
        raise UserError(f"an epoch must be an integer from 0 to 2**32 - 1, found {epoch}.")


def uniforms(words: Words) -> npt.NDArray[np.float64]:
    """Float64 in [0, 1), one per word: all 32 bits, ``word / 2**32``, without rounding."""
    return words.astype(np.float64) * 2.0**-32


def permutation(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A random permutation of 0 ... n-1 that depends on nothing but its arguments.

    Item i has the 64-bit key of words 2i and 2i+1 (low half first) of the stream `ORDER`; the permutation is the
    stable argsort of the keys, which is unique, so no version of a library's shuffle can change it.

    Returns:
        (n,) int64.
    """
    words = random_words(seed, Stream.ORDER, epoch, items=[0], blocks=(n + 1) // 2).reshape(-1, 2)[:n]
    keys = words[:, 0].astype(np.uint64) | words[:, 1].astype(np.uint64) << _HALF
    return np.argsort(keys, kind="stable")
