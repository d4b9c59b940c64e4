"""NT-Xent whose rows two ranks share is that of one process, and so are the log-sums that it is made of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bissl_fast.ops import Ranks, backend, nt_xent_loss
from bissl_fast.ops.log_sums import kernels, log_sums, reference
from tests.ranks import SIZE, Processes

IMAGES, WIDTH, TEMPERATURE = 10, 6, 0.2
Found = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    z = torch.randn(2, IMAGES, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z[0, 3] = 0  # a row without a direction
    z[1, 4] = z[0, 4]  # and partners that are one
    return z[0], z[1]


def derivatives(loss: Loss, z: tuple[Tensor, Tensor], v: tuple[Tensor, Tensor]) -> Found:
    leaves = [t.clone().requires_grad_() for t in z]
    value = loss(*leaves)
    gradient = torch.autograd.grad(value, leaves, create_graph=True)
    twice = torch.autograd.grad(sum((g * t).sum() for g, t in zip(gradient, v, strict=True)), leaves)

    def product(*z: Tensor) -> tuple[Tensor, ...]:
        return torch.func.jvp(torch.func.grad(loss, (0, 1)), z, v)[1]

    traced = make_fx(product, tracing_mode="fake", _allow_non_fake_inputs=True)(*(t + 1 for t in z))
    traced.graph.eliminate_dead_code()
    traced.recompile()
    under = torch.func.grad(lambda *z: torch.func.jvp(loss, z, v)[1], (0, 1))(*z)
    groups = {"gradient": gradient, "reverse over reverse": twice, "forward over reverse": product(*z)}
    groups |= {"reverse over forward": under, "traced": traced(*z)}
    found = {name: torch.stack(pair).detach() for name, pair in groups.items()}
    return found | {"value": value.detach(), "tangent": torch.func.jvp(loss, z, v)[1]}


def own(pair: tuple[Tensor, Tensor], rank: int) -> tuple[Tensor, Tensor]:
    first, second = (t.chunk(SIZE)[rank] for t in pair)
    return first, second


def on_each_rank(ranks: Ranks) -> tuple[Found, list[Any], str]:
    def loss(first: Tensor, second: Tensor) -> Tensor:
        return nt_xent_loss(first, second, TEMPERATURE, ranks)

    z, v = own(drawn(0), ranks.rank), own(drawn(1), ranks.rank)
    found = {}
    for kernels.TILE in (1024, 4):  # one tile, and many with one that is not full
        found |= {f"{name}, tiles of {kernels.TILE}": t for name, t in derivatives(loss, z, v).items()}
    kernels.TILE = 1024
    graph = make_fx(lambda *z: torch.func.jvp(torch.func.grad(loss, (0, 1)), z, v)[1])(*z)
    values = [node.meta["val"] for node in graph.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    largest = max(value.numel() for value in values)
    single = nt_xent_loss(*(t.float() for t in z), TEMPERATURE, ranks)
    with pytest.raises(NotImplementedError, match="differentiable twice") as third:
        torch.func.grad(lambda a: torch.func.grad(lambda b: torch.func.grad(loss)(b, b).sum())(a).sum())(z[0])
    return found, [largest, single], str(third.value)


def test_loss_and_derivatives_of_all_ranks_are_those_of_one_process(two_ranks: Processes) -> None:
    with backend("reference"):
        expected = derivatives(lambda a, b: nt_xent_loss(a, b, TEMPERATURE), drawn(0), drawn(1))
    (first, (largest, single), third), (second, (_, other), _) = two_ranks(on_each_rank)
    for name, found in first.items():
        value = expected[name.partition(",")[0]]
        whole = found + second[name] if value.dim() == 0 else torch.cat([found, second[name]], 1)
        assert (whole - value).norm() <= 3e-15 * value.norm(), name
    assert (single + other - expected["value"]).abs() <= 1e-6
    assert largest < IMAGES * IMAGES  # of 2 · 5 anchors and 20 columns there is no matrix
    assert "a third derivative was asked for" in third


@pytest.mark.parametrize("skip", [False, True])
def test_log_sums_have_the_derivatives_of_their_definition(monkeypatch: pytest.MonkeyPatch, skip: bool) -> None:
    monkeypatch.setattr(kernels, "TILE", 3)
    x, y = (t.requires_grad_() for t in torch.randn(2, 7, 3, dtype=torch.float64).unbind())
    y = y if skip else y[:5]
    inputs = tuple(t.detach().requires_grad_() for t in (x, y))
    torch.testing.assert_close(log_sums(*inputs, 2.0, skip), reference.log_sums(*inputs, 2.0, skip))
    assert torch.autograd.gradcheck(lambda *t: log_sums(*t, 2.0, skip), inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *t: log_sums(*t, 2.0, skip), inputs, check_fwd_over_rev=True)


def test_log_sums_refuse_what_they_cannot_take_and_keep_autocast_out() -> None:
    x = torch.randn(4, 3)
    for rows, columns, skip in ((x, x[:, :2], False), (x, x[:0], False), (x, x[:2], True), (x[:1], x[:1], True)):
        with pytest.raises(ValueError, match="Log-sums"):
            log_sums(rows, columns, 1.0, skip)
    expected = log_sums(x, x, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_sums(x, x, 1.0), expected)
    with pytest.raises(NotImplementedError, match=r"log_sums_fwd is a raw kernel .* Call bissl_fast\.ops\.log_sums"):
        torch.ops.bissl_fast.log_sums_fwd(x.requires_grad_(), x, 1.0, False)
