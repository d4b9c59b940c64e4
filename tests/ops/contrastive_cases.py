"""What the tests of the contrastive losses share: embeddings, derivatives, losses and references."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bissl_fast.ops import info_nce_loss, native, nt_xent_loss
from bissl_fast.ops.info_nce import reference as info_nce_reference
from bissl_fast.ops.nt_xent import reference as nt_xent_reference

needs_native = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason=f"compiled kernels cannot be imported: {native.IMPORT_ERROR}"
)


@dataclass(frozen=True)
class Loss:
    """A loss through the kernels, and its definition in plain PyTorch."""

    fused: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    cross_view: bool


LOSSES = {
    "nt_xent": Loss(nt_xent_loss, nt_xent_reference.nt_xent_loss, False),
    "info_nce": Loss(info_nce_loss, info_nce_reference.info_nce_loss, True),
}


each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def views(
    pairs: int, dim: int, dtype: torch.dtype = torch.float64, noise: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Two views that are alike, but not so much that the loss vanishes."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(pairs, dim, dtype=torch.float64, generator=generator)
    second = first + noise * torch.randn(pairs, dim, dtype=torch.float64, generator=generator)
    return first.to(dtype), second.to(dtype)


def derivatives(
    function: Callable[[Tensor, Tensor], Tensor], z1: Tensor, z2: Tensor, v1: Tensor, v2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and Hessian-vector product, reverse over reverse; the last two are ``(2B, D)``."""
    inputs = z1.detach().requires_grad_(), z2.detach().requires_grad_()
    value = function(*inputs)
    gradients = torch.autograd.grad(value, inputs, create_graph=True)
    products = torch.autograd.grad(gradients, inputs, (v1.to(z1.dtype), v2.to(z2.dtype)))
    return value.detach(), torch.cat(gradients).detach(), torch.cat(products).detach()


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300))
