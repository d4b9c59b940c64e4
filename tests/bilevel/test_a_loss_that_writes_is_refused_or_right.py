"""A loss that writes into what it computes with has the product that it says, or none, in every mode."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import HessianOperator, ParameterVector
from tests.bilevel.test_traces_hold_whatever_a_loss_does import batch

MODES = ("reverse", "linearized", "finite_difference")


class Scaled(nn.Module):
    """A layer that learns, a factor in a buffer, and a layer that does not learn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.learns = nn.Linear(5, 4)
        self.frozen = nn.Linear(4, 3).requires_grad_(False)
        self.register_buffer("factor", torch.tensor([0.5, 1.0, 1.5, 2.0]))
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.frozen((self.learns(x).tanh() * self.factor).pow(3))
        return out


PLACES: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "parameter": lambda m, b: m.learns.weight,
    "frozen": lambda m, b: m.frozen.weight,
    "batch": lambda m, b: b[0],
    "buffer": lambda m, b: m.factor,
}
WRITES: dict[str, Callable[[torch.Tensor], Any]] = {
    "counted": lambda t: torch.no_grad()(t.mul_)(1.5),
    "data": lambda t: t.data.mul_(1.5),
    "assigned": lambda t: setattr(t, "data", 1.5 * t.data),
}


def product(place: str, write: str, when: str, mode: Any) -> torch.Tensor:
    def loss(module: nn.Module, data: Any) -> torch.Tensor:
        if when == "before":
            WRITES[write](PLACES[place](module, data))
        value = (module(data[0]) - data[1]).square().mean()
        if when == "after":
            WRITES[write](PLACES[place](module, data))
        return value

    theta = ParameterVector(Scaled())
    return HessianOperator(loss, theta, [batch()], mode, retain=0).matvec(torch.ones(len(theta), dtype=torch.float64))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("write", "when"), list(itertools.product(WRITES, ("before", "after"))))
@pytest.mark.parametrize("place", ["parameter", "frozen", "batch"])
def test_a_write_into_a_parameter_or_a_batch_is_refused_by_the_first_product(
    place: str, write: str, when: str, mode: str
) -> None:
    sentence = r"the loss writes into a parameter|cannot be traced|was written in place after it had been read"
    with pytest.raises((ValueError, RuntimeError), match=sentence):
        product(place, write, when, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("write", "when"), list(itertools.product(WRITES, ("before", "after"))))
def test_a_write_into_a_buffer_counts_from_then_on_or_is_refused(write: str, when: str, mode: str) -> None:
    def scaled(module: Any, data: Any) -> torch.Tensor:
        module.factor = module.factor * (1.5 if when == "before" else 1.0)
        return (module(data[0]) - data[1]).square().mean()  # type: ignore[no-any-return]

    theta = ParameterVector(Scaled())
    expected = HessianOperator(scaled, theta, [batch()]).matvec(torch.ones(len(theta), dtype=torch.float64))
    try:
        found = product("buffer", write, when, mode)
    except (ValueError, RuntimeError) as error:
        sentence = str(error)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        return
    assert re.search("cannot be traced|was written in place after it had been read", sentence)


def test_finite_differences_take_a_loss_that_calls_torch_func() -> None:
    def loss(module: nn.Module, data: Any) -> torch.Tensor:
        slopes = torch.func.grad(lambda x: module(x).square().sum())(data[0])
        return (slopes.detach() + module(data[0]).sum()).square().mean()

    theta = ParameterVector(Scaled())
    v = torch.ones(len(theta), dtype=torch.float64)
    assert HessianOperator(loss, theta, [batch()], "finite_difference").matvec(v).isfinite().all()
