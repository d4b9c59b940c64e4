"""A CUDA graph's stand-in on a CPU: writes down what a call does, and does it again on the same memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def waits(func: Any, args: Any) -> bool:
    """Whether host and device wait for each other: for a number, a shape, or a number's way to the device."""
    if func is torch.ops.aten.index.Tensor:  # a gather has the shape of its integers, which are known
        return any(index.dtype == torch.bool for index in args[1] if index is not None)
    needs_values = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
    return bool(needs_values) or func is torch.ops.aten.lift_fresh.default


class Writing(TorchDispatchMode):
    """Notes every operation, what it was given and what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if waits(func, args):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        made = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, made))
        return made


class RecordedGraph:
    """What :class:`bissl_fast.bilevel.solvers.captured.CudaGraph` is on a GPU."""

    def capture(self, work: Callable[[], Any], device: torch.device) -> Any:
        with Writing() as writing:
            found = work()
        self.steps = writing.steps
        return found

    def replay(self) -> None:
        for func, args, kwargs, made in self.steps:
            given = {memory(tensor) for tensor in tensors((args, kwargs))}
            is_view = all(memory(tensor) in given for tensor in tensors(made)) and not func._schema.is_mutable
            if is_view:
                continue
            for old, new in zip(tensors(made), tensors(func(*args, **kwargs)), strict=True):
                if memory(old) not in given:
                    old.copy_(new)


def tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def memory(tensor: torch.Tensor) -> int:
    storage: int = tensor.untyped_storage()._cdata
    return storage
