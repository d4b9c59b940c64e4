"""LARS as VICReg defines it (Bardes et al., 2022; You et al., 2017)."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling with momentum.

    For each tensor: ``g ← g + wd·p``; ``g ← g·η‖p‖/‖g‖`` (factor 1 where a norm is 0); ``m ← μ·m + g``;
    ``p ← p − lr·m``. The learning rate stays outside the momentum. One-dimensional tensors (biases, batch-norm weights)
    skip the first two lines unless ``exclude_1d`` is off.

    Args:
        params: tensors or parameter groups.
        lr: learning rate.
        weight_decay: wd.
        momentum: μ.
        trust_coefficient: η.
        exclude_1d: leave one-dimensional tensors without decay and adaptation.

    Raises:
        ValueError: for a negative setting.

    Example:
        >>> optimizer = LARS(model.parameters(), lr=4.8 * batch_size / 256)  # doctest: +SKIP
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 1e-6,
        momentum: float = 0.9,
        trust_coefficient: float = 1e-3,
        exclude_1d: bool = True,
    ) -> None:
        settings = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
        }
        for name, value in settings.items():
            if not value >= 0:
                raise ValueError(f"LARS: {name} must not be negative, found {value}")
        super().__init__(params, {**settings, "exclude_1d": exclude_1d})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; gradients are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        update = p.grad
        assert update is not None
        if p.ndim != 1 or not group["exclude_1d"]:
            update = update + group["weight_decay"] * p
            weight_norm, update_norm = p.norm(), update.norm()
            ratio = group["trust_coefficient"] * weight_norm / update_norm
            update = update * torch.where((weight_norm > 0) & (update_norm > 0), ratio, 1.0)
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].mul_(group["momentum"]).add_(update)
        p.sub_(group["lr"] * momentum)
