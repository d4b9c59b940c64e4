"""Products without a trace: reverse over reverse, and finite differences of the gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from bissl_fast.bilevel.parameters import ParameterVector, frozen_buffers
from bissl_fast.bilevel.traced import Loss

Gradient = tuple[torch.Tensor | None, ...]


class ReverseProducts:
    """Differentiate the gradient's own graph, which is kept as the linearisation.

    Args:
        loss: ``loss(module, batch) -> scalar``.
        parameters: what is differentiated.
        dtype: of autocast; parameters and vectors stay as they are.
    """

    def __init__(self, loss: Loss, parameters: ParameterVector, dtype: torch.dtype = torch.float32) -> None:
        self._loss, self._parameters, self._dtype = loss, parameters, dtype
        self.graph_bytes = 0
        """Bytes that the graph of the last linearisation holds beside parameters."""

    def linearise(self, batch: Any) -> Gradient:
        """The gradient at the present parameters, with its graph."""
        held: dict[int, int] = {}

        def weigh(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            held[storage._cdata] = storage.nbytes()
            return tensor

        with torch.enable_grad(), saved_tensors_hooks(weigh, lambda tensor: tensor):
            gradient = gradient_of(self._loss, self._parameters, batch, self._dtype, create_graph=True)
        own = {tensor.untyped_storage()._cdata for tensor in self._parameters.tensors}
        self.graph_bytes = sum(size for storage, size in held.items() if storage not in own)
        return gradient

    def product(self, gradient: Gradient, tangents: Sequence[torch.Tensor], last: bool) -> Gradient:
        """The product with a tangent; the graph is freed with the ``last`` one."""
        # A gradient that does not depend on the parameters has a Hessian of zero and no graph to walk.
        pairs = [(g, t) for g, t in zip(gradient, tangents, strict=True) if g is not None and g.requires_grad]
        return torch.autograd.grad(
            [g for g, _ in pairs],
            self._parameters.tensors,
            grad_outputs=[t for _, t in pairs],
            retain_graph=not last,
            allow_unused=True,
        )


class DifferenceProducts:
    """``(∇L(θ + ε v) − ∇L(θ − ε v)) / 2ε``: an estimator of the product, not the product.

    A network with ReLU or max pooling has gradients that jump, and a difference across a jump measures the jump: it is
    the curvature of a smoothed loss. Rounding adds an error of about ``eps·‖∇L‖/ε``. Docs: bilevel.md.

    Args:
        loss: ``loss(module, batch) -> scalar``.
        parameters: what is differentiated; they are moved and put back, to the bit.
        step: relative step: ``ε = step · (1 + ‖θ‖) / ‖v‖``.
        dtype: of autocast.
    """

    def __init__(
        self, loss: Loss, parameters: ParameterVector, step: float = 1e-4, dtype: torch.dtype = torch.float32
    ) -> None:
        self._loss, self._parameters, self._step, self._dtype = loss, parameters, step, dtype

    def linearise(self, batch: Any) -> Any:
        """Nothing is computed ahead."""
        return batch

    def product(self, batch: Any, tangents: Sequence[torch.Tensor], last: bool) -> Gradient:
        """The estimate along a tangent; zero along zero."""
        flat = self._parameters.flatten(tangents)
        values = self._parameters.values()
        norm = torch.linalg.vector_norm(flat)
        epsilon = self._step * (1 + torch.linalg.vector_norm(values)) / norm
        sides = []
        with torch.enable_grad(), self._parameters.borrowed():
            for sign in (1, -1):
                self._parameters.assign(torch.where(norm > 0, values + sign * epsilon * flat, values))
                gradient = gradient_of(self._loss, self._parameters, batch, self._dtype, create_graph=False)
                sides.append(self._parameters.flatten(gradient))
        difference = (sides[0] - sides[1]) / (2 * epsilon)
        return tuple(self._parameters.unflatten(torch.where(norm > 0, difference, 0.0)))


def gradient_of(
    loss: Loss, parameters: ParameterVector, batch: Any, dtype: torch.dtype, create_graph: bool
) -> Gradient:
    """∇L of one batch, batch-norm buffers held still."""
    device = parameters.tensors[0].device.type
    enabled = dtype in (torch.bfloat16, torch.float16)
    with frozen_buffers(parameters.module):
        with torch.autocast(device, dtype=dtype if enabled else None, enabled=enabled, cache_enabled=False):
            value = loss(parameters.module, batch)
        return torch.autograd.grad(value, parameters.tensors, create_graph=create_graph, allow_unused=True)
