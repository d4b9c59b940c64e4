"""Tensors on the meta device, with which PyTorch computes in silence, are refused in every mode."""

from typing import get_args

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector
from bissl_fast.bilevel.products.hessian import Mode

LOSS = CompositeLoss(lambda m, x: m(x), lambda out: out.square().mean())


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_parameter_a_buffer_or_a_batch_without_values_is_refused(mode: Mode) -> None:
    x = torch.randn(5, 3)
    frozen, buffered = network(), network()
    frozen[2].weight = nn.Parameter(torch.empty(2, 4, device="meta"), requires_grad=False)
    buffered[1].running_mean = torch.empty(4, device="meta")
    for module, name in ((frozen, r"2\.weight"), (buffered, r"1\.running_mean")):
        with pytest.raises(ValueError, match=f"{name} of Sequential is on the meta device.*to_empty"):
            HessianOperator(LOSS, ParameterVector(module, "0."), [x], mode)
    with pytest.raises(ValueError, match="a tensor of a batch is on the meta device"):
        HessianOperator(LOSS, ParameterVector(network()), [x, x.to("meta")], mode)


def test_a_loss_that_is_a_module_without_values_is_refused() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2, device="meta")

        def forward(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return self.head(module(x)).square().mean()

    with pytest.raises(ValueError, match=r"head\.weight of Behind is on the meta device"):
        HessianOperator(Behind(), ParameterVector(network()), [torch.randn(5, 3)])
