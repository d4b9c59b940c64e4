"""Number formats inside of products, whatever holds around them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Half precision inside the block, if ``dtype`` is one. Casts are not cached: a cached one belongs to one graph."""
    enabled = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled, cache_enabled=False)


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """TensorFloat-32 inside the block, or not, whatever holds outside: PyTorch's default has it in convolutions."""
    matmul: Any = torch.backends.cuda.matmul
    convolution: Any = torch.backends.cudnn
    settings: list[tuple[Any, str, Any]] = [(matmul, "allow_tf32", wanted), (convolution, "allow_tf32", wanted)]
    try:
        before = [getattr(owner, name) for owner, name, _ in settings]
    except RuntimeError:  # they have been set by PyTorch's newer names, and then the older ones cannot be read
        word = "tf32" if wanted else "ieee"
        settings = [(matmul, "fp32_precision", word), (convolution.conv, "fp32_precision", word)]
        before = [getattr(owner, name) for owner, name, _ in settings]
    for owner, name, value in settings:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)
