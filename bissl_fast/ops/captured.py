"""Work that is the same in every call but for the tensors that it is given: one CUDA graph, replayed."""

from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import Any, Generic, Protocol, TypeVar

import torch

Found = TypeVar("Found")


class Graph(Protocol):
    """Work that is written down once and done as often as wanted, on the memory it was written down with."""

    def capture(self, work: Callable[[], Any], device: torch.device) -> Any: ...

    def replay(self) -> None: ...


class CudaGraph:
    """The work of one call on a CUDA device. Its memory is its own until it is gone."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], Found], device: torch.device) -> Found:
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


class Captured(Generic[Found]):
    """Work on tensors, of which the second call is captured as one CUDA graph that serves the rest.

    Launching thousands of kernels takes the host longer than small ones take the device; a graph is one launch. The
    first call works as ever, which compiles and warms up what is needed. Then the kernels are the same in the same
    order, so the bits are. Numbers that the host reads, draws or decides by stay what they were in the second call;
    those that layers draw on the device do not. The work must wait for nothing.

    Args:
        work: what is done with the tensors that a call is given.
        point: called before each call. What it returns stands for all else that the work takes from the host, the
            memory that it reads and writes included: where it changes, the next two calls are a first and a second.
        refuse: makes the error of work that cannot be captured from the reason.
        graph: what captures and replays.

    Raises:
        ValueError: for tensors unlike those of the first call in shape, dtype or device.

    Example:
        >>> work = Captured(lambda x: x.square().sum(), lambda: None, RuntimeError)
        >>> work(torch.ones(3))
        tensor(3.)
    """

    def __init__(
        self,
        work: Callable[..., Found],
        point: Callable[[], Hashable],
        refuse: Callable[[str], Exception],
        graph: Callable[[], Graph] = CudaGraph,
    ) -> None:
        self._work, self._point, self._refuse, self._new_graph = work, point, refuse, graph
        self._at: Hashable = None
        self._given: tuple[torch.Tensor, ...] = ()  # what the graph reads
        self._graph: Graph | None = None
        self._found: Found | None = None  # and writes

    def __call__(self, *given: torch.Tensor) -> Found:
        """What the work returns; from the second call on in memory that the next one writes over."""
        at = self._point()
        if not self._given or at != self._at:
            self._given = ()
            self._graph = self._found = None  # frees a graph's memory before another takes its own
            found = self._work(*given)
            self._at, self._given = at, tuple(tensor.detach().clone() for tensor in given)
            return found
        if (wanted := described(self._given)) != (other := described(given)):
            raise ValueError(
                f"every call of captured work takes tensors like those of the first, {wanted}, found {other}"
            )
        for kept, tensor in zip(self._given, given, strict=True):
            kept.copy_(tensor.detach())
        if self._graph is None:
            self._graph, self._found = self._captured()
        self._graph.replay()
        return self._found  # type: ignore[return-value]  # what was captured

    def _captured(self) -> tuple[Graph, Found]:
        graph = self._new_graph()
        try:
            return graph, graph.capture(lambda: self._work(*self._given), self._given[0].device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first, *_ = (str(error.__context__ or error).strip() or type(error).__name__).splitlines()
            raise self._refuse(first) from error


def described(tensors: tuple[torch.Tensor, ...]) -> str:
    """Shapes, dtypes and devices in words."""
    return " and ".join(f"{tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}" for tensor in tensors)
