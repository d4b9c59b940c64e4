"""The raw LARS kernel: what the compiled backends implement, and how the op is declared to PyTorch.

``lars_step(weights!, momenta!, gradients, exclude_1d, lr, weight_decay, momentum, trust_coefficient) -> ()``
    Lists of tensors, float32 or float64, all of one dtype and on one device. A tensor, its momentum and its gradient
    have one shape and one dense layout (contiguous, channels last, ...). What is updated in place (weights, momenta)
    may share no memory with another argument. Norms are formed in float64, in an order that depends on the shapes
    alone. Waits for nothing.
"""

from collections.abc import Sequence

import torch

from bissl_fast.ops import native

ADVICE = "It is the step of an optimizer: call it under `torch.no_grad()`."


def fake_lars_step(
    weights: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    exclude_1d: bool,
    lr: float,
    weight_decay: float,
    momentum: float,
    trust_coefficient: float,
) -> None:
    """Nothing is returned."""


_LIBRARY = native.register_compiled({"lars_step": fake_lars_step}, ADVICE)
