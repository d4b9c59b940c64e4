"""A CUDA graph's stand-in on a CPU: writes down what a call does, and does it again on the same memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether host and device wait for each other: for a number, a shape, an error, or a number's way to the device."""
    if func is torch.ops.aten.index.Tensor:  # a gather has the shape of its integers, which are known
        return any(index.dtype == torch.bool for index in args[1] if index is not None)
    needs_values = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
    return bool(needs_values) or bool(kwargs.get("check_errors")) or func is torch.ops.aten.lift_fresh.default


class Writing(TorchDispatchMode):
    """Notes every operation, what it was given and what it made, and what was in memory that it writes over."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if waits(func, args, kwargs):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        if func._schema.is_mutable:
            for tensor in tensors((args, kwargs)):
                storage = tensor.untyped_storage()
                self.before.setdefault(memory(tensor), (storage, storage.clone()))
        made = func(*args, **kwargs)
        self.steps.append((func, args, kwargs, made))
        return made


class RecordedGraph:
    """What :class:`bissl_fast.ops.captured.CudaGraph` is on a GPU: a capture does nothing, but for what it makes."""

    def capture(self, work: Callable[[], Any], device: torch.device) -> Any:
        with torch.random.fork_rng(devices=[]), Writing() as writing:
            found = work()
        for storage, before in writing.before.values():
            storage.copy_(before)
        self.steps = writing.steps
        return found

    @torch.no_grad()
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
