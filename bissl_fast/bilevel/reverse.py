"""Products without a trace: reverse over reverse, and finite differences of the gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from bissl_fast.bilevel.parameters import ParameterVector, frozen_buffers
from bissl_fast.bilevel.traced import Loss, LossModule, autocast
from bissl_fast.ops.krylov import norm

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

        theta, module = self._parameters.tensors, self._parameters.module
        with torch.enable_grad(), saved_tensors_hooks(weigh, lambda tensor: tensor), frozen_buffers(module):
            with autocast(theta[0].device, self._dtype):
                value = self._loss(module, batch)
            gradient = torch.autograd.grad(value, theta, create_graph=True, allow_unused=True)
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
        parameters: what is differentiated; they stay where they are.
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
        length = norm(flat)
        epsilon = self._step * (1 + norm(values)) / length
        sides = []
        whole = LossModule(self._loss, self._parameters.module)
        for sign in (1, -1):
            moved = torch.where(length > 0, values + sign * epsilon * flat, values)
            theta = [piece.clone().requires_grad_() for piece in self._parameters.unflatten(moved)]
            state = {f"module.{name}": piece for name, piece in zip(self._parameters.names, theta, strict=True)}
            with torch.enable_grad(), frozen_buffers(self._parameters.module):
                with autocast(theta[0].device, self._dtype):
                    value = torch.func.functional_call(whole, state, (batch,))
                gradient = torch.autograd.grad(value, theta, allow_unused=True)
            sides.append(self._parameters.flatten(gradient))
        difference = (sides[0] - sides[1]) / (2 * epsilon)
        return tuple(self._parameters.unflatten(torch.where(length > 0, difference, 0.0)))
