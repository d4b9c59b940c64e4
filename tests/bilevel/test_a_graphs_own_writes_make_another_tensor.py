"""What a trace writes into tensors of its own becomes ops without writes, unless another name leads there."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.bilevel.tracing import written
from bissl_fast.bilevel.tracing.writes import rewrite_writes, writes


def read_before_and_after(x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    return y * 2 + y.mul_(x).add_(1) - y


def unread(x: torch.Tensor) -> torch.Tensor:
    moved = x.clone()
    torch._foreach_lerp_([moved, x.exp()], [x, x], 0.5)
    moved.add_(1)
    return x.cos()


def raised(x: torch.Tensor) -> torch.Tensor:
    return x.sin().pow_(2) + 1  # pow_.Scalar is pow.Tensor_Scalar, not pow.Scalar, which raises a number


def through_a_view(x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    y[1:].add_(1)
    return y


def seen_by_a_view(x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    view = y[1:]
    y.mul_(3)
    return view + y[1:]


def by_two_names(x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    first = y.view(2, 2)
    y.mul_(3)
    first.add_(1)
    return y


def read_in_a_list(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    torch._foreach_mul_([y], 3.0)
    return y + 1


def of_a_narrower_dtype(x: torch.Tensor) -> torch.Tensor:
    return x.float().add_(x)


def into_what_is_given(x: torch.Tensor) -> torch.Tensor:
    return x.add_(1) * 2


@pytest.mark.parametrize("function", [read_before_and_after, unread, raised])
def test_plain_writes_are_gone(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert rewritten_writes(function) == 0


@pytest.mark.parametrize(
    "function",
    [through_a_view, seen_by_a_view, by_two_names, read_in_a_list, of_a_narrower_dtype, into_what_is_given],
)
def test_writes_that_another_name_or_dtype_would_show_are_left(
    function: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    assert rewritten_writes(function) > 0


def rewritten_writes(function: Callable[[torch.Tensor], torch.Tensor]) -> int:
    """How many writes are left, in a graph that gives what the function gives."""
    x = torch.linspace(0.3, 1.1, 4, dtype=torch.float64)
    traced = make_fx(function, tracing_mode="fake")(x)
    assert any(map(writes, traced.graph.nodes))
    rewrite_writes(traced.graph)
    traced.graph.lint()
    traced.recompile()
    expected, found = function(x.clone()), traced(x.clone())
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    return sum(map(writes, traced.graph.nodes))


def test_a_network_with_batch_norms_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    trace = written.trace
    monkeypatch.setattr(written, "trace", lambda *given: calls.append(given) or trace(*given))
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    x = torch.linspace(-1, 1, 18, dtype=torch.float64).view(6, 3)
    theta = ParameterVector(module)
    modes = ("reverse", "linearized")
    products = [HessianOperator(lambda m, x: m(x).exp().mean(), theta, [x], k).matvec(theta.values()) for k in modes]
    assert len(calls) == 1
    expected, found = products
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
