"""Hooks on gradients: those of parameters stay out of products, and those inside of a loss are refused."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bissl_fast.bilevel import HessianOperator, ParameterVector
from tests.bilevel.test_products_belong_to_one_point import each_mode, ones
from tests.bilevel.test_traces_hold_whatever_a_loss_does import batch, mlp, squares


@each_mode
@pytest.mark.parametrize("retain", [0, 1])
def test_hooks_of_parameters_see_and_change_no_product(mode: Any, retain: int) -> None:
    seen: list[torch.Tensor] = []
    module = mlp()
    expected = HessianOperator(squares, ParameterVector(module), [batch()], mode).matvec(ones(ParameterVector(module)))
    module[0].weight.register_hook(seen.append)
    module[0].weight.register_hook(lambda gradient: 2 * gradient)
    theta = ParameterVector(module)
    assert torch.equal(HessianOperator(squares, theta, [batch()], mode, retain).matvec(ones(theta)), expected)
    assert seen == []
    squares(module, batch()).backward()  # type: ignore[no-untyped-call]
    assert module[0].weight.grad is not None
    torch.testing.assert_close(module[0].weight.grad, 2 * seen[0])


def hooked(module: Any, data: Any) -> torch.Tensor:
    hidden = module[0](data[0])
    hidden.register_hook(lambda gradient: 3 * gradient)
    return (module[2](module[1](hidden)) - data[1]).square().mean()


@each_mode
def test_a_hook_that_the_loss_puts_on_a_tensor_is_refused(mode: Any) -> None:
    theta = ParameterVector(mlp())
    with pytest.raises(ValueError, match="a hook on a tensor inside the loss can change the gradient"):
        HessianOperator(hooked, theta, [batch()], mode).matvec(ones(theta))


@pytest.mark.parametrize("retain", [0, 1])
def test_pytorchs_counter_of_operations_may_look_at_a_product(retain: int) -> None:
    """It puts hooks on what enters and leaves a module, which cannot change a gradient."""
    theta = ParameterVector(mlp())
    expected = HessianOperator(squares, theta, [batch()]).matvec(ones(theta))
    with FlopCounterMode(display=False) as counter:
        found = HessianOperator(squares, theta, [batch()], retain=retain).matvec(ones(theta))
    assert counter.get_total_flops() > 0
    assert torch.equal(found, expected)


def test_a_hook_on_a_backward_pass_is_refused_in_exact_modes() -> None:
    module: nn.Module = mlp()
    module[1].register_full_backward_hook(lambda layer, grad, out: (3 * grad[0],))  # type: ignore[index]
    with pytest.raises(ValueError, match="a hook on a module's backward pass can change the gradient"):
        HessianOperator(squares, ParameterVector(module), [batch()])
    with pytest.raises(ValueError, match=r"it calls an autograd\.Function without setup_context"):
        HessianOperator(squares, ParameterVector(module), [batch()], "linearized")
