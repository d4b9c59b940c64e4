"""Losses in float32 or better, whatever the network runs in."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_leaves, tree_map

from bissl_fast.ops.schemas import wide_dtype
from bissl_fast.pretext.task import Constants, Output

Task = TypeVar("Task")
Loss = Callable[[Task, Sequence[Output], Constants], torch.Tensor]


def in_wide_dtype(loss: Loss[Task]) -> Loss[Task]:
    """A task's loss of outputs and constants as float32, or float64 where they are that; autocast has no part in it."""

    @wraps(loss)
    def widened(task: Task, outputs: Sequence[Output], constants: Constants) -> torch.Tensor:
        outputs, constants = tree_map(wide, (list(outputs), dict(constants)))
        device = next(leaf.device.type for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor))
        with torch.autocast(device, enabled=False):
            return loss(task, outputs, constants)

    return widened


def wide(leaf: Any) -> Any:
    """A floating-point tensor in the dtype of sums and products; anything else as it is."""
    is_float = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    return leaf.to(wide_dtype(leaf.dtype)) if is_float else leaf
