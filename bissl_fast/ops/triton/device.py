"""The device that a Triton kernel is launched on."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def on_device_of_first(kernel: Callable[P, R]) -> Callable[P, R]:
    """Triton launches on the current device, which need not be the tensors': that of the first tensor is taken."""

    @functools.wraps(kernel)
    def launch(*args: P.args, **kwargs: P.kwargs) -> R:
        first = next(argument for argument in args if isinstance(argument, torch.Tensor))
        with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
            return kernel(*args, **kwargs)

    return launch
