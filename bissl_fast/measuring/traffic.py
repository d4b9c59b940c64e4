"""What a call sends to other ranks, read off the collectives that it makes; ranks that are not there can stand in."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from bissl_fast.measuring.scaling import Kind, Message, Sent
from bissl_fast.ops import Ranks

NAMES: dict[str, Kind] = {
    "all_reduce": "sum",
    "all_reduce_": "sum",
    "all_gather_into_tensor": "gather",
    "reduce_scatter_tensor": "scatter",
    "all_to_all_single": "shift",
}
"""Of PyTorch's functional collectives, which eager calls, backward passes and traced programs all end in."""


SEVERAL = 6
"""Ranks of a record that tells, beside one of two, what each further rank adds."""
IMAGES = (2, 4)
"""Of a rank, in the records that a line is drawn through."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the collectives of a block in their order, and counts the calls of operators.

    A collective is waited for if nothing is called between it and its wait. `NAMES` has all that are known; others
    raise, so that nothing is left out.

    Raises:
        KeyError: for a collective that has no name here.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.messages: list[Message] = []
        self.calls = 0
        self._last = -1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if func.namespace == "_c10d_functional":
            self._keep(func._schema.name.split("::")[1], *args)
        return func(*args, **(kwargs or {}))

    def _keep(self, name: str, given: torch.Tensor, *how: Any) -> None:
        if name == "wait_tensor":
            if self.messages and self._last != self.calls - 1:
                self.messages[-1] = replace(self.messages[-1], waited=False)
            return
        kind, size = NAMES[name], given.numel() * given.element_size()
        self.messages.append(Message(kind, size // how[1] if kind == "scatter" else size))  # by the size of the group
        self._last = self.calls


def recorded(call: Callable[[], object]) -> Sent:
    """What a call sends, collective by collective, and how many operators it calls. The call is made.

    Example:
        >>> recorded(lambda: torch.ones(2) + 1).messages
        ()
    """
    with Recorder() as found:
        call()
    return Sent(tuple(found.messages), found.calls)


@contextmanager
def rehearsal(size: int) -> Iterator[Ranks | None]:
    """Rank 0 of ``size``, whose others are not there: each collective returns at once, with numbers that mean nothing.

    What a rank computes and what it would send are those of a real one. For one rank: ``None``.

    Raises:
        RuntimeError: where this process is in a group already.
    """
    if size == 1:
        yield None
        return
    import torch.testing._internal.distributed.fake_pg  # noqa: F401  # which registers PyTorch's backend "fake"

    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("fake", rank=0, world_size=size, store=store)
    try:
        yield Ranks.present()
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Line:
    """Messages of one place in the code: ``fixed + per_image · b`` bytes, ``count + per_rank · (R − 2)`` of them."""

    kind: Kind
    waited: bool
    fixed: float
    per_image: float
    count: float
    per_rank: float


@dataclass(frozen=True)
class Traffic:
    """What one rank sends for a unit of work, for any number of ranks and images.

    Attributes:
        lines: of messages, for two ranks or more.
        calls: of operators by a process alone, by one of two ranks, and more for each rank beyond two.
    """

    lines: tuple[Line, ...]
    calls: tuple[float, float, float]

    def sent(self, ranks: int, images: float) -> Sent:
        """By one of R ranks with b images each."""
        if ranks == 1:
            return Sent((), self.calls[0])
        messages = tuple(
            Message(
                line.kind, line.fixed + line.per_image * images, line.count + line.per_rank * (ranks - 2), line.waited
            )
            for line in self.lines
        )
        return Sent(messages, self.calls[1] + self.calls[2] * (ranks - 2))


def traffic_of(record: Callable[[int, int], Sent]) -> Traffic:
    """Traffic from four records: one process, two ranks with 2 and with 4 images, `SEVERAL` with 2.

    Collectives are exact for any number of ranks. Calls of a traced product are within a few in a hundred, since a
    trace leaves out what it can.

    Args:
        record: ``record(ranks, images)`` of a rank, real or rehearsed.

    Raises:
        ValueError: for work that sends other collectives for other images, or fewer for more ranks.
    """
    few, many = IMAGES
    alone, two, wide, several = record(1, few), record(2, few), record(2, many), record(SEVERAL, few)
    if [m.kind for m in two.messages] != [m.kind for m in wide.messages]:
        raise ValueError(f"{few} and {many} images of a rank send other collectives, which no line through both tells")
    slopes: dict[tuple[Kind, float, bool], float] = {}
    for one, other in zip(two.messages, wide.messages, strict=True):
        slope = (other.bytes - one.bytes) / (many - few)
        if slopes.setdefault(_key(one), slope) != slope:
            raise ValueError(f"with {few} images, messages that grow are as large as others that do not: take others")
    counts, more = (Counter(map(_key, sent.messages)) for sent in (two, several))
    if set(more) != set(counts) or any(more[key] < counts[key] for key in counts):
        raise ValueError(f"{SEVERAL} ranks send collectives of other sizes than two, which no line through both tells")
    lines = (
        Line(
            kind, waited, size - slopes[key] * few, slopes[key], counts[key], (more[key] - counts[key]) / (SEVERAL - 2)
        )
        for key in counts
        for kind, size, waited in [key]
    )
    return Traffic(tuple(lines), (alone.calls, two.calls, (several.calls - two.calls) / (SEVERAL - 2)))


def _key(message: Message) -> tuple[Kind, float, bool]:
    return message.kind, message.bytes, message.waited
