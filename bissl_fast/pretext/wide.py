"""Losses in float32 or better, whatever the network runs in."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_leaves, tree_map

from bissl_fast.pretext.task import Constants, Output

Task = TypeVar("Task")
Loss = Callable[[Task, Sequence[Output], Constants], torch.Tensor]


def in_wide_dtype(loss: Loss[Task]) -> Loss[Task]:
    """A task's loss of outputs and constants in float32, or in float64 if one of them is; autocast is off."""

    @wraps(loss)
    def widened(task: Task, outputs: Sequence[Output], constants: Constants) -> torch.Tensor:
        given = (list(outputs), dict(constants))
        floats = [leaf for leaf in tree_leaves(given) if is_float(leaf)]
        dtype = torch.float64 if any(leaf.dtype == torch.float64 for leaf in floats) else torch.float32
        outputs, constants = tree_map(lambda leaf: leaf.to(dtype) if is_float(leaf) else leaf, given)
        with torch.autocast(floats[0].device.type, enabled=False):
            return loss(task, outputs, constants)

    return widened


def is_float(leaf: Any) -> bool:
    """Whether it is a tensor of floating-point numbers."""
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
