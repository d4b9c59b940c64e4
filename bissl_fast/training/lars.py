"""LARS as VICReg defines it (Bardes et al., 2022; You et al., 2017)."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch.optim import Optimizer

from bissl_fast.ops.lars import LarsSettings, lars_step


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
        >>> model, batch_size = torch.nn.Linear(8, 4), 1024
        >>> optimizer = LARS(model.parameters(), lr=4.8 * batch_size / 256)
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
            weights = [p for p in group["params"] if p.grad is not None]
            names = ("lr", "weight_decay", "momentum", "trust_coefficient", "exclude_1d")
            settings = LarsSettings(*(group[name] for name in names))
            lars_step(weights, [self._momentum(p) for p in weights], [p.grad for p in weights], settings)
        return loss

    def _momentum(self, p: torch.Tensor) -> torch.Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        momentum: torch.Tensor = state["momentum"]
        return momentum
