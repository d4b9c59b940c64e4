"""How many linearisations fit a budget of memory."""

from collections.abc import Sequence

from bissl_fast.bilevel.products.traced import Program

TOO_SMALL = (
    "a memory budget of {budget:.3g} MB is below the {needed:.3g} MB that one product of this loss needs; "
    "raise it, or use smaller batches"
)
BESIDE_TENSORS = 4_000_000
"""Bytes of a budget that are left to PyTorch and its allocator, which take some beside the tensors that are counted."""


def needed_bytes(programs: Sequence[Program]) -> int:
    """What the largest of some batches takes where none is kept.

    Args:
        programs: of the batches.
    """
    return max(program.halves.residual_bytes + program.working_bytes for program in programs) + BESIDE_TENSORS


def kept_within(budget: int, programs: Sequence[Program]) -> int:
    """How many batches, the first ones, can keep their linearisation.

    Args:
        budget: bytes.
        programs: of the batches.

    Raises:
        ValueError: if not even one product fits.
    """
    needed = needed_bytes(programs)
    if needed > budget:
        raise ValueError(TOO_SMALL.format(budget=budget / 1e6, needed=needed / 1e6))
    residuals = [program.halves.residual_bytes for program in programs]
    working = [program.working_bytes for program in programs]
    for kept in range(len(programs), 0, -1):  # a batch without its own residuals makes them for each product
        rest = max((r + w for r, w in zip(residuals[kept:], working[kept:], strict=True)), default=0)
        if sum(residuals[:kept]) + max(*working[:kept], rest) + BESIDE_TENSORS <= budget:
            return kept
    return 0
