"""One LARS step of one tensor in plain PyTorch: the definition that the kernels are compared with."""

from typing import NamedTuple

import torch


class LarsSettings(NamedTuple):
    """Numbers of a step, as in :class:`bissl_fast.training.lars.LARS`."""

    lr: float
    weight_decay: float
    momentum: float
    trust_coefficient: float
    exclude_1d: bool


def lars_step(weight: torch.Tensor, momentum: torch.Tensor, gradient: torch.Tensor, settings: LarsSettings) -> None:
    """``g ← g + wd·p``; ``g ← g·η‖p‖/‖g‖`` (factor 1 where a norm is 0); ``m ← μ·m + g``; ``p ← p − lr·m``, in place.

    One-dimensional tensors skip the first two where ``exclude_1d`` is on. The gradient is left as it is.
    """
    update = gradient if gradient.layout == torch.strided else gradient.to_dense()  # decay reaches every entry
    if weight.ndim != 1 or not settings.exclude_1d:
        update = update + settings.weight_decay * weight
        weight_norm, update_norm = (torch.linalg.vector_norm(v, dtype=torch.float64) for v in (weight, update))
        ratio = settings.trust_coefficient * weight_norm / update_norm
        update = update * torch.where((weight_norm > 0) & (update_norm > 0), ratio, 1.0)
    momentum.mul_(settings.momentum).add_(update)
    weight.sub_(settings.lr * momentum)
