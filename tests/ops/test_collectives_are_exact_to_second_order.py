"""Maps over two ranks have the derivatives of the same maps of a list in one process, by every mode of autograd."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bissl_fast.ops import collectives
from bissl_fast.ops.collectives import (
    Ranks,
    checksum,
    enter,
    gradients_of_all,
    leave,
    require_same,
    summed_together,
)
from tests.ranks import SIZE, Processes

MAPS: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "all_reduce": lambda xs: [sum(xs, torch.zeros(()))] * SIZE,
    "all_mean": lambda xs: [sum(xs, torch.zeros(())) / SIZE] * SIZE,
    "all_gather": lambda xs: [torch.cat(xs)] * SIZE,
    "reduce_scatter": lambda xs: [*sum(xs, torch.zeros(())).chunk(SIZE)],
    "from_previous": lambda xs: xs[-1:] + xs[:-1],
}
"""What each function of the same name does to the tensors of all ranks."""

Found = dict[str, Tensor]


@cache  # no trace meets a generator, which older PyTorch cannot write down
def drawn(seed: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def before(theta: Tensor, rank: int) -> Tensor:
    return (theta * drawn(10 + rank)).sin()


def share(moved: Tensor, rank: int) -> Tensor:
    """A rank's share of a loss that is not linear in what has been moved."""
    return (moved.exp() * torch.linspace(0.5, 1.5 + rank, moved.numel(), dtype=torch.float64).view_as(moved)).sum()


def derivatives(loss: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor) -> Found:
    """Value, gradient and product by every mode, and by a trace at other values."""
    leaf = theta.clone().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    (twice,) = torch.autograd.grad(gradient, leaf, v, create_graph=True)
    (thrice,) = torch.autograd.grad(twice, leaf, v)

    def product(theta: Tensor) -> Tensor:
        return torch.func.jvp(torch.func.grad(loss), (theta,), (v,))[1]

    traced = make_fx(product, tracing_mode="fake", _allow_non_fake_inputs=True)(theta + 1)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    found = {
        "value": value,
        "gradient": gradient,
        "reverse over reverse": twice,
        "reverse over reverse over reverse": thrice,
        "tangent": torch.func.jvp(loss, (theta,), (v,))[1],
        "forward over reverse": product(theta),
        "reverse over forward": torch.func.grad(lambda t: torch.func.jvp(loss, (t,), (v,))[1])(theta),
        "traced": traced(theta),
    }
    return {name: tensor.detach() for name, tensor in found.items()}


def of_every_map(ranks: Ranks) -> dict[str, Found]:
    found = {}
    for name in MAPS:
        moved = getattr(collectives, name)
        found[name] = derivatives(
            lambda theta, moved=moved: share(moved(before(theta, ranks.rank), ranks), ranks.rank), drawn(0), drawn(1)
        )

    def whole(theta: Tensor) -> Tensor:
        own = before(enter(theta, ranks), ranks.rank)
        return leave(share(collectives.all_gather(own, ranks), ranks.rank), ranks)

    return found | {"enter and leave": derivatives(whole, drawn(0), drawn(1))}


@pytest.fixture(scope="module")
def on_ranks(two_ranks: Processes) -> list[dict[str, Found]]:
    return two_ranks(of_every_map)


def in_one_process(name: str) -> Found:
    def loss(theta: Tensor) -> Tensor:
        moved = MAPS[name]([before(theta, rank) for rank in range(SIZE)])
        return torch.stack([share(own, rank) for rank, own in enumerate(moved)]).sum()

    return derivatives(loss, drawn(0), drawn(1))


def assert_same(found: Found, expected: Found) -> None:
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 3e-15 * value.norm(), name


@pytest.mark.parametrize("name", MAPS)
def test_shares_add_up_to_one_process_in_every_mode(name: str, on_ranks: list[dict[str, Found]]) -> None:
    first, second = (found[name] for found in on_ranks)
    expected = in_one_process(name)
    assert not torch.allclose(first["gradient"], expected["gradient"])
    assert_same({key: first[key] + second[key] for key in expected}, expected)


def test_what_enters_and_leaves_is_whole_on_every_rank(on_ranks: list[dict[str, Found]]) -> None:
    expected = in_one_process("all_gather")
    for found in on_ranks:
        assert_same(found["enter and leave"], expected)


def refusals(ranks: Ranks) -> list[str]:
    def forward(x: Tensor) -> Tensor:
        return collectives.all_reduce(x, ranks)

    def twice(x: Tensor) -> Any:
        return torch.func.jvp(lambda y: torch.func.jvp(forward, (y,), (y,))[1], (x,), (x,))

    calls: list[Callable[[], Any]] = [
        lambda: torch.func.vmap(forward)(drawn(0)),
        lambda: twice(drawn(0)),
        lambda: collectives.all_gather(torch.tensor(1.0), ranks),
        lambda: collectives.reduce_scatter(torch.ones(SIZE + 1), ranks),
        lambda: require_same(checksum([torch.ones(2) + ranks.rank * 1e-7]), ranks, torch.device("cpu"), "directions"),
    ]
    found = []
    for call in calls:
        with pytest.raises((NotImplementedError, ValueError, RuntimeError)) as error:
            call()
        found.append(str(error.value))
    require_same(checksum([torch.ones(2), torch.zeros(())]), ranks, torch.device("cpu"), "directions")
    return found


def test_what_would_be_wrong_or_differs_between_ranks_is_refused_on_every_rank(two_ranks: Processes) -> None:
    for batching, forward, scalar, rows, others in two_ranks(refusals):
        assert "no batching rule for vmap" in batching
        assert "forward mode over forward mode" in forward
        assert "found a scalar" in scalar
        assert "a multiple of 2 rows, found (3,)" in rows
        assert "directions must be the same on all 2 ranks, found others than rank 0's on 1" in others


def test_one_process_is_left_alone() -> None:
    x = drawn(0)
    functions = (*MAPS, "enter", "leave")
    assert all(getattr(collectives, name)(x, None) is x for name in functions)
    assert Ranks.present() is None


def laid_out(rank: int) -> list[Tensor]:
    """Tensors of every layout that gradients have, and one with gaps."""
    generator = torch.Generator().manual_seed(rank)
    square = torch.randn(3, 4, 2, 2, generator=generator)
    gaps = torch.randn(3, 8, generator=generator)[:, ::2]
    last = square.to(memory_format=torch.channels_last)
    return [last, square, gaps, square[0, 0].t(), square[0, 0, 0, 0]]


def summed_in_their_layouts(ranks: Ranks) -> tuple[list[Tensor], list[Tensor]]:
    """Sums of tensors; and gradients of parameters of which one has an earlier gradient and one none at all."""
    own = laid_out(ranks.rank)
    parameters = [torch.zeros_like(t).requires_grad_() for t in [*own, own[0]]]
    parameters[1].grad = torch.ones_like(parameters[1])
    with gradients_of_all(parameters, ranks):
        torch.autograd.backward([(p * t).sum() for p, t in zip(parameters, own, strict=False)])
    assert parameters[-1].grad is None
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in parameters[:-1])
    return summed_together(own, ranks), [p.grad for p in parameters[:-1] if p.grad is not None]


def test_tensors_are_summed_together_whatever_their_layouts(two_ranks: Processes) -> None:
    expected = [a + b for a, b in zip(*map(laid_out, range(SIZE)), strict=True)]
    for together, gradients in two_ranks(summed_in_their_layouts):
        assert all(map(torch.equal, together, expected))
        assert all(map(torch.equal, gradients, [expected[0], expected[1] + 1, *expected[2:]]))
