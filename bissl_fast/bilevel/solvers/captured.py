"""One CUDA graph for all solves of a phase: its second right-hand side is captured, every later one replays it."""

from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import Protocol

import torch

from bissl_fast.bilevel.solvers import Solution

Solve = Callable[[torch.Tensor], Solution]
NOT_CAPTURED = (
    "the solve cannot be captured as one CUDA graph ({reason}): it must do the same work for every right-hand side and "
    "wait for nothing; solve without a CapturedSolver (in training: without --bilevel.capture)"
)


class Graph(Protocol):
    """Work that is written down once and done as often as wanted, on the memory it was written down with."""

    def capture(self, work: Callable[[], Solution], device: torch.device) -> Solution: ...

    def replay(self) -> None: ...


class CudaGraph:
    """The work of one call on a CUDA device. Its memory is its own until it is gone."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], Solution], device: torch.device) -> Solution:
        """What ``work`` returns: tensors that hold nothing before the first :meth:`replay`. Waits for the device.

        Threads that load the next batches may go on meanwhile. A stream of another device would capture nothing.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.cuda.device(device))
            # A capture that fails can leave its own stream current, on which nothing would ever run again.
            stack.enter_context(torch.cuda.stream(torch.cuda.current_stream(device)))
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stack.enter_context(torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"))
            return work()

    def replay(self) -> None:
        self._graph.replay()


class CapturedSolver:
    """A solver that does the same work for every right-hand side, captured as one CUDA graph.

    Launching thousands of kernels takes the host longer than small ones take the device; a graph is one launch. The
    first right-hand side after each :meth:`HessianOperator.update` is solved as ever (which compiles and warms up what
    the solve needs), the second is captured, and that graph serves the rest: the same kernels in the same order, so the
    same bits. The work must not depend on values or on earlier right-hand sides: no recycling, no sketch.

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
        self._solve, self._point, self._new_graph = solve, point, graph
        self._at: Hashable = None
        self._graph: Graph | None = None
        self._b: torch.Tensor | None = None  # what the graph reads
        self._found: Solution | None = None  # and writes

    def __call__(self, b: torch.Tensor) -> Solution:
        """The solution for ``b`` ``(L,)``; later calls leave it alone."""
        at = self._point()
        if self._b is None or at != self._at:
            self._graph = self._found = None  # frees the memory of the last graph before a new one takes its own
            solution = self._solve(b)
            self._at, self._b = at, b.detach().clone()
            return solution
        if (b.shape, b.dtype, b.device) != (self._b.shape, self._b.dtype, self._b.device):
            raise ValueError(
                f"every right-hand side of a captured solve must be like the first, {_described(self._b)}, "
                f"found {_described(b)}"
            )
        self._b.copy_(b.detach())
        if self._graph is None or self._found is None:
            self._graph, self._found = self._captured(self._b)
        self._graph.replay()
        return _copied(self._found)

    def _captured(self, b: torch.Tensor) -> tuple[Graph, Solution]:
        graph = self._new_graph()
        try:
            return graph, graph.capture(lambda: self._solve(b), b.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first, *_ = (str(error.__context__ or error).strip() or type(error).__name__).splitlines()
            raise RuntimeError(NOT_CAPTURED.format(reason=first)) from error


def _copied(found: Solution) -> Solution:
    """The solution in memory that no replay writes to."""
    norms, b_norm, events = found.residual_norms.clone(), found.b_norm.clone(), found.events.clone()
    return Solution(found.x.clone(), norms, b_norm, found.products, events)


def _described(b: torch.Tensor) -> str:
    return f"{tuple(b.shape)} in {b.dtype} on {b.device}"
