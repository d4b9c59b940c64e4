"""A number or tensor that a module holds as an attribute is never a stale constant of a product."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector
from tests.bilevel.test_traces_hold_whatever_a_loss_does import batch, squares

MODES = ("reverse", "linearized", "gauss_newton", "finite_difference")
each_mode = pytest.mark.parametrize("mode", MODES)
SQUARES = CompositeLoss(lambda m, b: m(b[0]) - b[1], lambda out: out.square().mean())


class Scale(nn.Module):
    """Attributes of several kinds, a counter of its passes, and a memory of the last input."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature, self.squared, self.power, self.kind = 0.5, False, (1, 2), "tanh"
        self.scale = torch.ones(3, dtype=torch.float64)
        self.passes, self.last = 0, None

    def forward(self, x: torch.Tensor) -> Any:
        self.passes += 1
        self.last = x.detach()
        x = (x.square() if self.squared else x) / self.temperature * self.scale
        return (x.tanh() if self.kind == "tanh" else x.sin()).pow(self.power[0])


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a number": lambda s: setattr(s, "temperature", 2.0),
    "a switch": lambda s: setattr(s, "squared", True),
    "a string": lambda s: setattr(s, "kind", "sin"),
    "a tuple": lambda s: setattr(s, "power", (2, 2)),
    "a tensor": lambda s: setattr(s, "scale", 2 * s.scale),
}


def scaled() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.Linear(4, 3), Scale())).double()


def product(operator: HessianOperator) -> torch.Tensor:
    return operator.matvec(torch.ones(sum(operator.segments), dtype=torch.float64))


@each_mode
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_products_is_refused_and_at_an_update_taken(change: str, mode: Any) -> None:
    module: Any = scaled()
    operator = HessianOperator(SQUARES, ParameterVector(module), [batch(), batch(4)], mode, retain=1)
    before = product(operator)
    CHANGES[change](module[1][1])
    with pytest.raises(RuntimeError, match="string or tensor that is an attribute of a module"):
        product(operator)
    operator.update([batch(), batch(4)])
    expected = product(HessianOperator(SQUARES, ParameterVector(module), [batch(), batch(4)], mode))
    assert torch.equal(product(operator), expected)
    assert not torch.allclose(expected, before, rtol=1e-3)


@each_mode
def test_what_a_forward_pass_itself_moves_is_no_change(mode: Any) -> None:
    module: Any = scaled()
    operator = HessianOperator(SQUARES, ParameterVector(module), [batch(), batch(4)], mode, retain=0)
    before = product(operator)
    module(batch()[0])
    assert torch.equal(product(operator), before)


def test_a_counter_does_not_make_a_new_trace() -> None:
    module: Any = scaled()
    operator = HessianOperator(SQUARES, ParameterVector(module), [batch()], "linearized")
    passes = module[1][1].passes
    for _ in range(3):
        operator.update([batch()])
    assert module[1][1].passes == passes


def test_attributes_of_a_loss_that_is_a_module_are_seen_too() -> None:
    class Loss(nn.Module):
        factor = 1.0

        def forward(self, module: nn.Module, data: Any) -> torch.Tensor:
            return self.factor * squares(module, data)

    loss = Loss()
    operator = HessianOperator(loss, ParameterVector(scaled()), [batch()], "linearized")
    before = product(operator)
    loss.factor = 2.0
    with pytest.raises(RuntimeError, match="attribute of a module"):
        product(operator)
    operator.update([batch()])
    torch.testing.assert_close(product(operator), 2 * before)
