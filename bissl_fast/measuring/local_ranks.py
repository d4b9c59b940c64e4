"""Processes of this machine as ranks over gloo, one thread each: collectives, units of work, and both together."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bissl_fast.measuring.rank_work import UNITS, RankWork, Unit
from bissl_fast.measuring.scaling import GRADIENT, KINDS, Kind, Link, Sent, fitted
from bissl_fast.measuring.traffic import recorded, rehearsal
from bissl_fast.ops import Ranks
from bissl_fast.ops.collectives import gathered, scattered, shifted, summed

SIZES: Mapping[Kind, Sequence[int]] = {
    "sum": (4, 1 << 10, 1 << 14, 1 << 18, 1 << 22, 48_000_000),
    "gather": (8, 1 << 10, 1 << 14, 1 << 18, 1 << 20),
    "scatter": (8, 1 << 10, 1 << 14, 1 << 18, 1 << 20),
    "shift": (8, 1 << 10, 1 << 14, 1 << 18, 1 << 20),
}
"""Bytes per rank, about those of a step and a product: a gradient is a sum of 45 MB, statistics are of kilobytes."""

Seconds = Mapping[Unit, float]


@dataclass(frozen=True)
class Share:
    """A rank's part of the work.

    Attributes:
        ranks: R.
        images: pretext images of a rank.
        labelled: downstream images of a rank.
    """

    ranks: int
    images: int
    labelled: int


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        backbone: any timm CNN.
        size: side of the views in pixels.
        rounds: calls of each unit; their median counts.
    """

    backbone: str
    size: int
    rounds: int

    def work(self, share: Share, ranks: Ranks | None) -> RankWork:
        return RankWork(self.backbone, self.size, share.images, share.labelled, ranks)


def records(case: Case, shares: Sequence[Share]) -> list[dict[Unit, Sent]]:
    """What rank 0 of each share sends and calls, rehearsed."""
    found: list[dict[Unit, Sent]] = in_processes(1, _record, case, shares)[0]
    return found


def computing(case: Case, shares: Sequence[Share], processes: int = 1) -> list[Seconds]:
    """Seconds that rank 0 of each share computes, rehearsed, so that nothing is sent.

    Args:
        case: what is trained.
        shares: of the work.
        processes: that do so at the same time, beside each other; the slowest counts.
    """
    return _slowest(in_processes(processes, _compute, case, shares))


def together(case: Case, ranks: int, shares: Sequence[Share]) -> list[Seconds]:
    """Seconds of the units on real ranks; the slowest counts.

    Args:
        case: what is trained.
        ranks: R.
        shares: of the work, each for as many ranks.
    """
    return _slowest(in_processes(ranks, _work, case, shares, group=True))


def collectives(ranks: int, rounds: int) -> dict[Kind, Link]:
    """Latency and bandwidth of each kind over gloo, fitted to medians over messages of all sizes of `SIZES`."""
    every: list[dict[Kind, list[float]]] = in_processes(ranks, _send, rounds, group=True)
    return {
        kind: fitted(SIZES[kind], [max(times) for times in zip(*(own[kind] for own in every), strict=True)])
        for kind in KINDS
    }


def in_processes(count: int, function: Callable[..., Any], *given: Any, group: bool = False) -> list[Any]:
    """What ``function(*given)`` returns in each of so many new processes of one thread.

    Args:
        count: of processes.
        function: of a module.
        given: what it takes.
        group: let them be a group of gloo.

    Raises:
        Exception: as one of them did.
    """
    found: dict[int, Any] = {}
    queue = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given_to_each = (count, folder, group, function, given, queue)
        processes: Any = mp.spawn(_run, given_to_each, nprocs=count, join=False)  # type: ignore[attr-defined, no-untyped-call]
        ended = False
        while not ended:
            ended = processes.join(0.1)  # raises as one of them did
            while not queue.empty():
                found |= queue.get()
    return [found[k] for k in range(count)]


def _run(
    index: int, count: int, folder: str, group: bool, function: Callable[..., Any], given: Any, queue: Any
) -> None:
    torch.set_num_threads(1)
    if group and count > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's name often leads nowhere
        dist.init_process_group("gloo", f"file://{folder}/store", rank=index, world_size=count)
    found = function(*given)
    if group and count > 1:
        dist.barrier()
        dist.destroy_process_group()
    queue.put({index: found})


def _record(case: Case, shares: Sequence[Share]) -> list[dict[Unit, Sent]]:
    found = []
    for share in shares:
        with rehearsal(share.ranks) as ranks:
            calls = case.work(share, ranks).calls()
            for call in calls.values():
                call()  # which traces, or moves state from where a first call finds it
            found.append({unit: recorded(call) for unit, call in calls.items()})
    return found


def _compute(case: Case, shares: Sequence[Share]) -> list[Seconds]:
    found = []
    for share in shares:
        with rehearsal(share.ranks) as ranks:
            found.append(_timed(case.work(share, ranks), case.rounds))
    return found


def _work(case: Case, shares: Sequence[Share]) -> list[Seconds]:
    return [_timed(case.work(share, Ranks.present()), case.rounds) for share in shares]


def _timed(work: RankWork, rounds: int) -> Seconds:
    return {unit: median_of(call, rounds) for unit, call in work.calls().items()}


def _send(rounds: int) -> dict[Kind, list[float]]:
    ranks = Ranks.present()
    assert ranks is not None, "collectives are measured in a group"
    ways: dict[Kind, Callable[[torch.Tensor], object]] = {
        "sum": lambda x: summed(x, ranks),
        "gather": lambda x: gathered(x, ranks),
        "scatter": lambda x: scattered(x.repeat(ranks.size), ranks),
        "shift": lambda x: shifted(x, ranks, 1),
    }
    return {kind: [_median_sent(way, size, rounds) for size in SIZES[kind]] for kind, way in ways.items()}


def _median_sent(way: Callable[[torch.Tensor], object], size: int, rounds: int) -> float:
    """Seconds of a collective; short ones vary more, and are sent more often."""
    given = torch.ones(size // 4)
    return median_of(lambda: way(given), rounds if size >= GRADIENT else 5 * rounds)


def median_of(call: Callable[[], object], rounds: int) -> float:
    """The median of the seconds of some calls, after one to warm up: what is usual, where ranks wait for each other."""
    call()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def _slowest(every: Sequence[Sequence[Seconds]]) -> list[Seconds]:
    """Of what each process took for each share."""
    return [{unit: max(own[unit] for own in of_share) for unit in UNITS} for of_share in zip(*every, strict=True)]
