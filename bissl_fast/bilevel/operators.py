"""Linear operators on flat vectors: anything with ``matvec`` and ``segments``."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn

from bissl_fast.bilevel.parameters import ParameterVector, frozen_buffers

Loss = Callable[[Any, Any], torch.Tensor]


class Operator(Protocol):
    """A symmetric linear map on vectors ``(L,)``.

    ``segments`` are the lengths of the parameter tensors that the vector is made of; layer-wise solvers need them.
    """

    @property
    def segments(self) -> Sequence[int]: ...

    def matvec(self, vector: torch.Tensor) -> torch.Tensor: ...


class HessianOperator:
    """Hessian of a loss, averaged over batches, as a product (BiSSL, Algorithm 2, lines 3–6).

    The Hessian is with respect to ``parameters`` at the values they have when the operator is built; everything else
    in the module is a constant. Batch-norm buffers are the same before and after every call.

    Args:
        loss: ``loss(module, batch) -> scalar``, called with ``parameters.module``.
        parameters: what is differentiated.
        batches: the K stored batches; whatever ``loss`` takes.
        mode: ``"reverse"``: reverse over reverse. The graph of each gradient is built once and serves every product.
        retain: how many of the batches keep their graph. The rest rebuild it for each product: less memory, the
            same numbers, unless the module draws random numbers (dropout), which needs ``None``: keep all.

    Raises:
        ValueError: without a batch, or for a mode that does not exist.
        RuntimeError: in a product, if the parameters have changed since the operator was built.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> hessian = HessianOperator(lambda m, x: m(x).square().mean(), ParameterVector(layer), [torch.eye(2)])
        >>> hessian.matvec(torch.tensor([1.0, 0.0]))
        tensor([1., 0.])
    """

    def __init__(
        self,
        loss: Loss,
        parameters: ParameterVector,
        batches: Sequence[Any],
        mode: Literal["reverse"] = "reverse",
        retain: int | None = None,
    ) -> None:
        if mode != "reverse":
            raise ValueError(f"mode {mode!r} does not exist; expected 'reverse'")
        if not batches:
            raise ValueError("a Hessian needs at least one stored batch")
        self._loss = loss
        self._parameters = parameters
        self._batches = list(batches)
        self._versions = self._parameter_versions()
        kept = len(self._batches) if retain is None else retain
        self._gradients = [self._gradient(batch) for batch in self._batches[:kept]]

    @property
    def segments(self) -> Sequence[int]:
        return self._parameters.segments

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        """``(1/K) Σ_k ∇²L(θ; z_k) v`` for a vector ``(L,)``; the result is detached."""
        if self._parameter_versions() != self._versions:
            raise RuntimeError("the parameters have changed since this HessianOperator was built: build a new one")
        tangents = self._parameters.unflatten(vector)
        total = torch.zeros_like(vector)
        for k, batch in enumerate(self._batches):
            kept = k < len(self._gradients)
            gradient = self._gradients[k] if kept else self._gradient(batch)
            total += self._product(gradient, tangents, retain_graph=kept)
        return total / len(self._batches)

    def _parameter_versions(self) -> list[int]:
        return [tensor._version for tensor in self._parameters.tensors]

    def _gradient(self, batch: Any) -> tuple[torch.Tensor | None, ...]:
        module: nn.Module = self._parameters.module
        with torch.enable_grad(), frozen_buffers(module):
            value = self._loss(module, batch)
            return torch.autograd.grad(value, self._parameters.tensors, create_graph=True, allow_unused=True)

    def _product(
        self, gradient: Sequence[torch.Tensor | None], tangents: Sequence[torch.Tensor], retain_graph: bool
    ) -> torch.Tensor:
        # A gradient that does not depend on the parameters has a Hessian of zero and no graph to walk.
        pairs = [(g, t) for g, t in zip(gradient, tangents, strict=True) if g is not None and g.requires_grad]
        products = torch.autograd.grad(
            [g for g, _ in pairs],
            self._parameters.tensors,
            grad_outputs=[t for _, t in pairs],
            retain_graph=retain_graph,
            allow_unused=True,
        )
        return self._parameters.flatten(products)


class ShiftedOperator:
    """``v + scale · A v``: the identity that makes an implicit gradient's system well posed.

    Args:
        operator: A.
        scale: the factor, 1/(λ + λ_damp) in BiSSL (Algorithm 2, line 7).
    """

    def __init__(self, operator: Operator, scale: float) -> None:
        self._operator = operator
        self._scale = scale

    @property
    def segments(self) -> Sequence[int]:
        return self._operator.segments

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        """``(L,)`` to ``(L,)``."""
        return torch.add(vector, self._operator.matvec(vector), alpha=self._scale)
