"""The optimiser of a pretext task, as its settings name it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bissl_fast.models.sharded import full_tensors, spread_like
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.training.lars import LARS


def build_optimizer(
    settings: OptimizerSettings, named: Iterable[tuple[str, nn.Parameter]], constant: Sequence[str] = ()
) -> Optimizer:
    """The optimiser of a network's parameters; :func:`set_rate` gives it rate and decay before every step.

    Args:
        settings: kind and numbers.
        named: parameters with their names.
        constant: beginnings of the names whose rate does not follow the schedule.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    apart = settings.rate_1d != 1.0 or (settings.exclude_1d and settings.kind != "lars")  # which LARS does by itself
    for name, parameter in named:
        kind = (name.startswith(tuple(constant)), apart and parameter.ndim < 2)
        groups.setdefault(kind, []).append(parameter)
    listed = [
        {
            "params": parameters,
            "constant_rate": fixed,
            "rate_share": settings.rate_1d if flat else 1.0,
            "decays": not (flat and settings.exclude_1d),
        }
        for (fixed, flat), parameters in groups.items()
    ]
    decay = settings.weight_decay
    if settings.kind == "lars":
        return LARS(listed, 0.0, decay, settings.momentum, settings.trust_coefficient, settings.exclude_1d)
    if settings.kind == "sgd":
        return torch.optim.SGD(listed, 0.0, settings.momentum, weight_decay=decay)
    adam = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return adam(listed, 0.0, (settings.momentum, 0.999), weight_decay=decay)


def set_rate(optimizer: Optimizer, rate: float, peak: float, decay: float) -> None:
    """What stands in a step.

    Args:
        optimizer: of :func:`build_optimizer`.
        rate: of the schedule.
        peak: of the schedule, which parameters of a constant rate have.
        decay: weight decay of what has any.
    """
    for group in optimizer.param_groups:
        group["lr"] = (peak if group["constant_rate"] else rate) * group["rate_share"]
        group["weight_decay"] = decay if group["decays"] else 0.0


def state_of(optimizer: Optimizer) -> dict[str, Any]:
    """What :func:`restore` takes, whole: one process writes the same. Ranks with sharded weights call it together."""
    state: dict[str, Any] = full_tensors(optimizer.state_dict())
    return state


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Go on from what :func:`state_of` gave for an optimiser of the same parameters, sharded or not."""
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    moments = {
        number: {name: spread_like(value, parameters.get(number)) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
