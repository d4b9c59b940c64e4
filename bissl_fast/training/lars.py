"""LARS as VICReg defines it (Bardes et al., 2022; You et al., 2017)."""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch.optim import Optimizer

from bissl_fast.ops.lars import LarsSettings, lars_step, lars_step_of_parts
from bissl_fast.ops.spread import local, ranks_of

NUMBERS = ("lr", "weight_decay", "momentum", "trust_coefficient")


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling with momentum.

    For each tensor: ``g ← g + wd·p``; ``g ← g·η‖p‖/‖g‖`` (factor 1 where a norm is 0); ``m ← μ·m + g``;
    ``p ← p − lr·m``. The learning rate stays outside the momentum. One-dimensional tensors (biases, batch-norm weights)
    skip the first two lines unless ``exclude_1d`` is off. Of tensors that are spread over ranks
    (:func:`bissl_fast.models.sharded.shard`) norms are those of the whole.

    Args:
        params: tensors or parameter groups.
        lr: learning rate.
        weight_decay: wd.
        momentum: μ.
        trust_coefficient: η.
        exclude_1d: leave one-dimensional tensors without decay and adaptation.

    Raises:
        ValueError: for a setting that is negative or not finite, of the optimiser or of a group.

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
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
            "exclude_1d": exclude_1d,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose settings stand before the optimiser's own."""
        for name in NUMBERS:
            value = param_group.get(name, self.defaults[name])
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"LARS: {name} must be finite and not negative, found {value}")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` of an optimiser of the same parameters gave.

        Raises:
            ValueError: if it is the state of another kind of optimiser, or of other parameters.
        """
        for group in state_dict["param_groups"]:
            if missing := [name for name in (*NUMBERS, "exclude_1d") if name not in group]:
                raise ValueError(f"LARS: this is the state of another optimiser, whose groups lack {missing[0]}")
        shapes = [p.shape for group in self.param_groups for p in group["params"]]
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        for name, shape in zip(names, shapes, strict=False):  # another number of them is refused below
            found = state_dict["state"].get(name)
            if found is None:
                continue
            if "momentum" not in found:
                raise ValueError(f"LARS: this is the state of another optimiser, with {', '.join(found)} per parameter")
            if found["momentum"].shape != shape:
                raise ValueError(
                    f"LARS: this is the state of other parameters: the momentum of parameter {name} has shape "
                    f"{tuple(found['momentum'].shape)}, the parameter {tuple(shape)}"
                )
        super().load_state_dict(state_dict)

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
            found = [(p, gradient) for p in group["params"] if (gradient := p.grad) is not None]
            weights, gradients = [p for p, _ in found], [gradient for _, gradient in found]
            settings = LarsSettings(*(group[name] for name in (*NUMBERS, "exclude_1d")))
            momenta = [self._momentum(p) for p in weights]
            if weights and (ranks := ranks_of(weights[0])) is not None:
                own, moved, given = ([local(tensor) for tensor in whole] for whole in (weights, momenta, gradients))
                lars_step_of_parts(own, moved, given, settings, ranks)
            else:
                lars_step(weights, momenta, gradients, settings)
        return loss

    def _momentum(self, p: torch.Tensor) -> torch.Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        momentum: torch.Tensor = state["momentum"]
        return momentum
