"""Sums, gathers and shifts over the ranks of torch.distributed, each a linear map with its transpose.

The *sum convention*: each rank has a share of a value, and what is differentiated is the sum of all shares. A rank's
gradient is that of the sum with respect to its own tensors; where these stand for one tensor (the parameters), the
gradient, or a Hessian's product, is the sum over the ranks. A backward pass that is the transpose of its forward, and
whose own derivative is the same map again, is exact to any order in reverse mode and by forward over reverse.
:func:`enter` and :func:`leave` are for those who want the whole gradient on every rank instead: around parameters and
loss alone, and never mixed with the sum convention.

All ranks have to call the same functions in the same order on tensors of the same shapes, or they wait for each other;
tensors that are summed together have to lie alike in memory, too, as the same program makes them.
``ranks=None`` stands for one process, for which everything here is the identity.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bissl_fast.ops.contrastive import refuse_forward_over_forward
from bissl_fast.ops.functions import TwiceDifferentiable

FORWARD_TWICE = (
    "A collective cannot be differentiated by forward mode over forward mode: PyTorch drops the outer tangent inside a "
    "custom function, and the result would be zero. Put `torch.func.jvp` over `torch.func.grad`."
)
NO_VMAP = (
    "A collective has no batching rule for vmap, which torch.func.hessian, jacfwd and jacrev use; "
    "`torch.func.jacrev(..., chunk_size=1)` and `torch.autograd.functional.hessian` need none."
)


@dataclass(frozen=True)
class Ranks:
    """The processes of a group, and which of them this one is.

    Attributes:
        rank: of this process, from 0.
        size: R, how many there are, at least 2.
        name: of the group, as ``torch.distributed`` knows it.
        own_statistics: whether batch norms take their statistics over each rank's images alone, which is cheaper and
            another result, and one that depends on the number of ranks.
    """

    rank: int
    size: int
    name: str
    own_statistics: bool = False

    @staticmethod
    def present(group: Any = None) -> "Ranks | None":
        """Those of a process group that has been started, all if none is named; ``None`` for one process.

        Example:
            >>> Ranks.present() is None
            True
        """
        distributed = torch.distributed
        if not distributed.is_available() or not distributed.is_initialized():
            return None
        group = distributed.group.WORLD if group is None else group
        size = distributed.get_world_size(group)
        return Ranks(distributed.get_rank(group), size, group.group_name) if size > 1 else None


def summed(x: Tensor, ranks: Ranks) -> Tensor:
    """The sum over the ranks, the same bits on each; as the functions below it, without a derivative."""
    return waited(collectives().all_reduce(x.contiguous(), "sum", ranks.name))


def summed_(x: Tensor, ranks: Ranks) -> Tensor:
    """The same in the place of a contiguous ``x``: of a gradient, a copy takes as long as its sum."""
    return waited(collectives().all_reduce_(x, "sum", ranks.name))


def gathered(x: Tensor, ranks: Ranks) -> Tensor:
    """``(N, …)`` to ``(R N, …)``, rank after rank."""
    return waited(collectives().all_gather_into_tensor(x.contiguous(), ranks.size, ranks.name))


def scattered(x: Tensor, ranks: Ranks) -> Tensor:
    """``(R N, …)`` to this rank's ``(N, …)`` of the sum."""
    return waited(collectives().reduce_scatter_tensor(x.contiguous(), "sum", ranks.size, ranks.name))


def shifted(x: Tensor, ranks: Ranks, by: int) -> Tensor:
    """What the rank that is ``by`` before this one has, round a ring."""
    sent, received = [0] * ranks.size, [0] * ranks.size
    sent[(ranks.rank + by) % ranks.size] = received[(ranks.rank - by) % ranks.size] = len(x)
    return waited(collectives().all_to_all_single(x.contiguous(), received, sent, ranks.name))


def collectives() -> Any:
    """PyTorch's functional collectives: traces keep them, as they do not keep those of torch.distributed itself."""
    return torch.ops._c10d_functional


def waited(x: Tensor) -> Tensor:
    """The result of a collective, once it is there."""
    found: Tensor = collectives().wait_tensor(x)
    return found


MAPS: dict[str, Callable[[Tensor, Ranks], Tensor]] = {
    "same": lambda x, _: x.clone(),
    "sum": summed,
    "gather": gathered,
    "scatter": scattered,
    "next": lambda x, ranks: shifted(x, ranks, 1),
    "previous": lambda x, ranks: shifted(x, ranks, -1),
}


class LinearMap(TwiceDifferentiable):
    """A map over the ranks, named in `MAPS`, with the name of its transpose."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(x: Tensor, name: str, transpose: str, ranks: Ranks) -> Tensor:
        return MAPS[name](x, ranks)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.way, ctx.ranks = inputs  # a node's `name` is PyTorch's

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None, None]:
        return LinearMap.apply(cotangent, *reversed(ctx.way), ctx.ranks), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        refuse_forward_over_forward(FORWARD_TWICE)
        moved: Tensor = LinearMap.apply(tangent, *ctx.way, ctx.ranks)
        return moved


def all_reduce(x: Tensor, ranks: Ranks | None) -> Tensor:
    """The sum over the ranks, of which every rank makes use: statistics, and values that enter each rank's share."""
    return x if ranks is None else applied(x, "sum", "sum", ranks)


def all_mean(x: Tensor, ranks: Ranks | None) -> Tensor:
    """The mean over the ranks, likewise."""
    return x if ranks is None else all_reduce(x, ranks) / ranks.size


def all_gather(x: Tensor, ranks: Ranks | None) -> Tensor:
    """``(N, …)`` of each rank to ``(R N, …)`` on each, rank after rank.

    Raises:
        ValueError: for a scalar, which has no rows.
    """
    if x.dim() == 0:
        raise ValueError("all_gather takes rows, (N, …), found a scalar; `x.unsqueeze(0)` makes one row of it.")
    return x if ranks is None else applied(x, "gather", "scatter", ranks)


def reduce_scatter(x: Tensor, ranks: Ranks | None) -> Tensor:
    """``(R N, …)`` of each rank to this rank's ``(N, …)`` of their sum.

    Raises:
        ValueError: for rows that are no multiple of the ranks.
    """
    if ranks is None:
        return x
    if x.dim() == 0 or len(x) % ranks.size:
        raise ValueError(f"reduce_scatter takes a multiple of {ranks.size} rows, found {tuple(x.shape)}.")
    return applied(x, "scatter", "gather", ranks)


def from_previous(x: Tensor, ranks: Ranks | None) -> Tensor:
    """``(N, …)`` of the rank before this one, round a ring."""
    return x if ranks is None else applied(x, "next", "previous", ranks)


def enter(x: Tensor, ranks: Ranks | None) -> Tensor:
    """A parameter that is the same on all ranks, whose gradient shall be that of all of them."""
    return x if ranks is None else applied(x, "same", "sum", ranks)


def leave(x: Tensor, ranks: Ranks | None) -> Tensor:
    """The sum of all ranks' shares of a loss, which is differentiated on each rank as if it were there alone."""
    return x if ranks is None else applied(x, "sum", "same", ranks)


def own_rows(count: int, ranks: Ranks) -> slice:
    """Which of so many rows a rank has where they are spread as evenly as can be, rank after rank."""
    first, last = (count * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    return slice(first, last)


def gathered_unequal(x: Tensor, ranks: Ranks) -> Tensor:
    """``(N, …)`` of each rank, with N of its own, to ``(ΣN, …)`` on each, rank after rank; without a derivative."""
    counts = gathered(torch.tensor([len(x)], device=x.device), ranks).tolist()
    padded = x.new_zeros((max(counts), *x.shape[1:]))
    padded[: len(x)] = x
    parts = gathered(padded, ranks).view(ranks.size, max(counts), *x.shape[1:])
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def share_of_mean(mean: Tensor, ranks: Ranks | None) -> Tensor:
    """A rank's share of a mean over the samples of all ranks, from its mean over its own, which are as many on each."""
    return mean if ranks is None else mean / ranks.size


def applied(x: Tensor, name: str, transpose: str, ranks: Ranks) -> Tensor:
    """A map of `MAPS` with its derivatives."""
    found: Tensor = LinearMap.apply(x, name, transpose, ranks)
    return found


@contextmanager
def gradients_of_all(parameters: Iterable[Tensor], ranks: Ranks | None) -> Iterator[None]:
    """Let what the block adds to the gradients of parameters be the sum over the ranks, by one reduction of them all.

    A parameter that the block gives no gradient on this rank gets none on any: all ranks do the same.
    """
    if ranks is None:
        yield
        return
    given = list(parameters)
    before = [parameter.grad for parameter in given]
    for parameter in given:
        parameter.grad = None
    yield
    made = [(p, e, dense(p.grad)) for p, e in zip(given, before, strict=True) if p.grad is not None]
    gradients = [gradient for *_, gradient in made]
    with torch.no_grad():
        torch._foreach_copy_([in_memory(gradient) for gradient in gradients], _summed_pieces(gradients, ranks))
    for parameter, earlier in zip(given, before, strict=True):
        parameter.grad = earlier
    for parameter, earlier, found in made:
        parameter.grad = found if earlier is None else earlier.add_(found)


@torch.no_grad()
def summed_together(tensors: Sequence[Tensor], ranks: Ranks | None) -> list[Tensor]:
    """The sum over the ranks of each of several tensors of one dtype, by one reduction; without a derivative."""
    if ranks is None:
        return list(tensors)
    given = [dense(tensor) for tensor in tensors]
    pieces = _summed_pieces(given, ranks)
    return [piece.as_strided(tensor.shape, tensor.stride()) for piece, tensor in zip(pieces, given, strict=True)]


def _summed_pieces(given: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
    """The sums of dense tensors, each in the order of its memory."""
    total = summed_(torch.cat([in_memory(tensor) for tensor in given]), ranks)
    return list(torch.split(total, [tensor.numel() for tensor in given]))


def dense(x: Tensor) -> Tensor:
    """A tensor that lies in memory without gaps, whatever the order of its axes there; else a copy that does."""
    return x if x.is_contiguous() or x.permute(x.dim_order()).is_contiguous() else x.contiguous()


def in_memory(x: Tensor) -> Tensor:
    """The values of a dense tensor in the order in which they lie, sharing its memory: no axis is turned."""
    return x.as_strided((x.numel(),), (1,))


def checksum(tensors: Sequence[Tensor]) -> int:
    """Of shapes, dtypes and every bit. Waits for the device."""
    found = checksum_of(repr([(tuple(t.shape), t.dtype) for t in tensors]))
    for tensor in tensors:
        bits = tensor.detach().reshape(-1).contiguous().view(torch.uint8)
        found = zlib.crc32(bits.cpu().numpy().tobytes(), found)
    return found


def checksum_of(text: str) -> int:
    """Of a text."""
    return zlib.crc32(text.encode())


def least(found: int, ranks: Ranks, device: torch.device) -> int:
    """The smallest of the ranks' numbers, below 2⁶³, which have to ask together. Waits for the device."""
    return int(gathered(torch.tensor([found], device=device), ranks).min())


def require_same(found: int, ranks: Ranks, device: torch.device, what: str) -> None:
    """Raise unless a number (a :func:`checksum`) is the same on all ranks. One small gather.

    Args:
        found: below 2⁶³.
        ranks: which have to call this together.
        device: that the group communicates from.
        what: has to be the same, plural.

    Raises:
        RuntimeError: on every rank, with the ranks that differ from the first.
    """
    everyone = gathered(torch.tensor([found], device=device), ranks).tolist()
    others = [str(rank) for rank, number in enumerate(everyone) if number != everyone[0]]
    if others:
        raise RuntimeError(
            f"{what} must be the same on all {ranks.size} ranks, found others than rank 0's on {', '.join(others)}"
        )
