"""Activations keep their numbers, leave their inputs alone, and can be differentiated twice."""

import pytest
import timm
import torch
from torch import nn

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.models import build_backbone, differentiable_twice


def test_a_hard_sigmoid_keeps_its_numbers_and_its_gradient() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64).requires_grad_()
    ours = differentiable_twice(nn.Hardsigmoid())(x)
    torch.testing.assert_close(ours, torch.nn.functional.hardsigmoid(x), rtol=1e-15, atol=1e-15)
    (found,) = torch.autograd.grad(ours.sum(), x)
    torch.testing.assert_close(found, (x.abs() < 3).double() / 6, rtol=1e-15, atol=0)


@pytest.mark.parametrize("mode", ["reverse", "linearized"])
def test_products_through_hard_gates_equal_differences(mode: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 5), nn.Hardswish(inplace=True), nn.Linear(5, 4), nn.Hardsigmoid(inplace=True)]
    network = differentiable_twice(nn.Sequential(*layers)).double()
    theta, x = ParameterVector(network), torch.randn(7, 3, dtype=torch.float64)
    v = torch.randn(len(theta), dtype=torch.float64)
    found = HessianOperator(lambda m, x: m(x).square().mean(), theta, [x], mode).matvec(v)  # type: ignore[arg-type]
    expected = HessianOperator(lambda m, x: m(x).square().mean(), theta, [x], "finite_difference", step=1e-6).matvec(v)
    assert found.norm() > 0.01
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_no_activation_of_a_backbone_writes_in_place() -> None:
    assert any(getattr(module, "inplace", False) for module in timm.create_model("test_resnet").modules())
    assert not any(getattr(module, "inplace", False) for module in build_backbone("test_resnet", 0).modules())


def test_only_plain_hard_sigmoids_are_replaced() -> None:
    class Own(nn.Hardsigmoid):
        pass

    network = differentiable_twice(nn.Sequential(Own(), nn.Hardsigmoid()))
    assert [type(layer).__name__ for layer in network] == ["Own", "HardSigmoid"]
