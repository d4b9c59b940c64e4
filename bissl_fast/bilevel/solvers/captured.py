"""One CUDA graph for all solves of a phase: its second right-hand side is captured, every later one replays it."""

from collections.abc import Callable, Hashable

import torch

from bissl_fast.bilevel.solvers import Solution
from bissl_fast.ops.captured import Captured, CudaGraph, Graph

Solve = Callable[[torch.Tensor], Solution]
NOT_CAPTURED = (
    "the solve cannot be captured as one CUDA graph ({reason}): it must do the same work for every right-hand side and "
    "wait for nothing; solve without a CapturedSolver (in training: without --bilevel.capture)"
)


class CapturedSolver:
    """A solver that does the same work for every right-hand side, captured as one CUDA graph.

    The first right-hand side after each :meth:`HessianOperator.update` is solved as ever, the second is captured, and
    that graph serves the rest, with the same bits: see :class:`bissl_fast.ops.captured.Captured`. The work must not
    depend on values or on earlier right-hand sides: no recycling, no sketch.

    Args:
        solve: ``v -> Solution``; it never waits for the device, as no solver of this package does.
        point: called before each solve. It raises where the operator cannot be used any more, and returns something
            else whenever the operator has become another one: :meth:`HessianOperator.point`.
        graph: what captures and replays.

    Raises:
        ValueError: for a right-hand side unlike the others since the last update in shape, dtype or device.
        RuntimeError: where the operator is out of date, or the solve cannot be captured.

    Example:
        >>> solve = CapturedSolver(lambda v: conjugate_gradient(shifted, v), hessian.point)  # doctest: +SKIP
        >>> solutions = [solve(v) for v in right_hand_sides]  # doctest: +SKIP
    """

    def __init__(self, solve: Solve, point: Callable[[], Hashable], graph: Callable[[], Graph] = CudaGraph) -> None:
        self._solve: Captured[Solution] = Captured(solve, point, refusal, graph)

    def __call__(self, b: torch.Tensor) -> Solution:
        """The solution for ``b`` ``(L,)``; later calls leave it alone."""
        found = self._solve(b)
        norms, b_norm, events = found.residual_norms.clone(), found.b_norm.clone(), found.events.clone()
        return Solution(found.x.clone(), norms, b_norm, found.products, events)


def refusal(reason: str) -> RuntimeError:
    """The error of a solve that cannot be captured."""
    return RuntimeError(NOT_CAPTURED.format(reason=reason))
