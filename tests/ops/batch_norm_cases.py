"""What the tests of batch norm share: tensors, every derivative up to the second order, and PyTorch's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bissl_fast.ops import native

needs_native = pytest.mark.skipif(
    native.IMPORT_ERROR is not None, reason=f"compiled kernels cannot be imported: {native.IMPORT_ERROR}"
)

Run = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Inputs (x, weight, bias, residual), a cotangent of the output, and a direction for each of the five."""

    inputs: tuple[Tensor, ...]
    cotangent: Tensor
    directions: tuple[Tensor, ...]
    along_cotangent: Tensor

    def to(self, dtype: torch.dtype) -> "Case":
        return Case(
            tuple(t.to(dtype) for t in self.inputs),
            self.cotangent.to(dtype),
            tuple(t.to(dtype) for t in self.directions),
            self.along_cotangent.to(dtype),
        )


def case(shape: tuple[int, ...], layout: torch.memory_format = torch.contiguous_format, seed: int = 0) -> Case:
    """Random float64 tensors; x has a mean and a scale of its own in each channel."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        drawn = torch.randn(size, generator=generator, dtype=torch.float64)
        return drawn.contiguous(memory_format=layout) if size == shape and len(shape) > 3 else drawn

    channels = shape[1]
    per_channel = (channels, *(1,) * (len(shape) - 2))
    x = draw(*shape) * draw(*per_channel).exp() + draw(*per_channel)
    return Case(
        (x, draw(channels), draw(channels), draw(*shape)),
        draw(*shape),
        (draw(*shape), draw(channels), draw(channels), draw(*shape)),
        draw(*shape),
    )


def by_pytorch(groups: int = 1, relu: bool = False, with_residual: bool = False) -> Run:
    """The same from PyTorch's layers, a pass for each group."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        passes = [F.batch_norm(part, None, None, weight, bias, True) for part in x.chunk(groups)]
        out = torch.cat(passes) + residual if with_residual else torch.cat(passes)
        return F.relu(out) if relu else out

    return run


def reverse(run: Run, case: Case) -> dict[str, Tensor]:
    """Output, gradients, and reverse over reverse with respect to everything, the cotangent included."""
    inputs = tuple(t.detach().requires_grad_() for t in case.inputs)
    cotangent = case.cotangent.detach().requires_grad_()
    out = run(*inputs)
    first = torch.autograd.grad(out, inputs, cotangent, create_graph=True, materialize_grads=True)
    along = sum((g * v).sum() for g, v in zip(first, case.directions, strict=True))
    second = torch.autograd.grad(along, (*inputs, cotangent), materialize_grads=True)
    return named(out=[out], gradient=first, reverse_over_reverse=second)


def forward(run: Run, case: Case) -> dict[str, Tensor]:
    """Forward mode alone, over reverse, and under it."""
    _, tangent = torch.func.jvp(run, case.inputs, case.directions)

    def gradient(cotangent: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(run, *inputs)[1](cotangent)

    along = (case.along_cotangent, *case.directions)
    _, over_reverse = torch.func.jvp(gradient, (case.cotangent, *case.inputs), along)

    def slope(*inputs: Tensor) -> Tensor:
        return (torch.func.jvp(run, inputs, case.directions)[1] * case.cotangent).sum()

    under_reverse = torch.func.grad(slope, argnums=(0, 1, 2, 3))(*case.inputs)
    return named(tangent=[tangent], forward_over_reverse=over_reverse, reverse_over_forward=under_reverse)


def named(**groups: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name} {k}": t.detach() for name, tensors in groups.items() for k, t in enumerate(tensors)}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300))
