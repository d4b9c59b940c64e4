"""BiSSL's upper phase in plain eager PyTorch, as the authors run it: what `bissl_fast` is measured against.

Algorithms 1 (lines 10 to 15) and 2, tensor by tensor: the graph of the gradient is rebuilt for every product and every
stored batch, conjugate gradients loop over the parameter tensors, nothing is compiled. No code of the package is used
but the network and the loss that both sides are given.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

Tensors = list[torch.Tensor]
Loss = Callable[[nn.Module, Any], torch.Tensor]


def hessian_product(
    loss: Loss, network: nn.Module, parameters: Tensors, batches: Sequence[Any], vector: Tensors
) -> Tensors:
    """Algorithm 2, lines 3 to 6: the mean over stored batches, each with a graph of its own."""
    total = [torch.zeros_like(p) for p in parameters]
    for batch in batches:
        gradient = torch.autograd.grad(loss(network, batch), parameters, create_graph=True)
        product = torch.autograd.grad(gradient, parameters, grad_outputs=vector)
        total = [t + p for t, p in zip(total, product, strict=True)]
    return [t / len(batches) for t in total]


def layerwise_cg(apply: Callable[[Tensors], Tensors], b: Tensors, iterations: int) -> Tensors:
    """Algorithm 2: conjugate gradients with an α and a β per tensor, from zero."""
    x = [torch.zeros_like(t) for t in b]
    r = [t.clone() for t in b]
    d = [t.clone() for t in b]
    rr = [(t * t).sum() for t in r]
    for _ in range(iterations):
        q = apply(d)
        for i in range(len(b)):
            alpha = rr[i] / (d[i] * q[i]).sum()
            x[i] = x[i] + alpha * d[i]
            r[i] = r[i] - alpha * q[i]
            new = (r[i] * r[i]).sum()
            d[i] = r[i] + new / rr[i] * d[i]
            rr[i] = new
    return x


def solve(
    loss: Loss,
    network: nn.Module,
    parameters: Tensors,
    batches: Sequence[Any],
    vector: Tensors,
    scale: float,
    iterations: int,
) -> Tensors:
    """``[I + scale · H]⁻¹ v``, approximately."""

    def apply(d: Tensors) -> Tensors:
        product = hessian_product(loss, network, parameters, batches, d)
        return [t + scale * p for t, p in zip(d, product, strict=True)]

    return layerwise_cg(apply, vector, iterations)


def upper_phase(
    loss: Loss,
    network: nn.Module,
    parameters: Tensors,
    stored: Sequence[Any],
    vectors: Sequence[Tensors],
    scale: float,
    iterations: int,
) -> list[Tensors]:
    """The solutions of one upper phase: one system for each of its N_U right-hand sides, the same Hessian."""
    return [solve(loss, network, parameters, stored, v, scale, iterations) for v in vectors]
