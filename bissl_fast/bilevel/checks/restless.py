"""Losses that are another function each time they are called: what they draw or remember beside PyTorch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bissl_fast.bilevel.tracing.written import NOT_TRACEABLE, RANDOM, LossError

GLOBAL = "by the generator of Python's random or of NumPy"
RESTLESS = (
    "the loss has another value when it is called again at the same parameters, {before:.6g} and then {now:.6g}: is "
    "there a list, a counter or a generator in it that each call changes? A product needs one function: draw by "
    "PyTorch's generator, whose numbers are the same in every pass, and keep what changes in buffers or in the batch"
)


def states() -> tuple[Any, ...]:
    """Where the generators of Python and NumPy are."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, np.asarray(keys).tobytes(), *rest)


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Let Python's and NumPy's generators start from a seed inside the block, and be where they were behind it."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def draws_refused() -> Iterator[None]:
    """Raise where the block has drawn by them: a trace would hold the numbers for constants."""
    before = states()
    yield
    if states() != before:
        raise LossError(NOT_TRACEABLE.format(reason=RANDOM.format(name=GLOBAL)))


def refuse_restless(before: torch.Tensor, now: torch.Tensor) -> None:
    """Raise if two values of a loss at one point differ by more than sums in another order do."""
    eps = torch.finfo(now.dtype).eps
    if not torch.isclose(now, before, rtol=eps**0.5, atol=10 * eps, equal_nan=True):
        raise LossError(RESTLESS.format(before=before.item(), now=now.item()))
