"""Number formats and order of sums inside of products, whatever holds around them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Half precision inside the block, if ``dtype`` is one. Casts are not cached: a cached one belongs to one graph."""
    enabled = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled, cache_enabled=False)


@contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """cuDNN's gradients by algorithms that add in one order: by others, equal products differ in their last digits."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """TensorFloat-32 inside the block, or not, whatever holds outside: PyTorch's default has it in convolutions.

    PyTorch keeps this setting under older and newer names, and reading an older one raises where they differ. The block
    sets both, for Inductor reads the older ones, and leaves both as it found them, where they differed, too.
    """
    names = _newer_names()
    words = [owner.fp32_precision for owner in names]
    products, convolutions = _older_names(words)
    _set_older_names("high" if wanted else "highest", wanted)
    for owner in names:  # the older name of convolutions says only "as elsewhere" where it forbids TF32
        owner.fp32_precision = "tf32" if wanted else "ieee"
    try:
        yield
    finally:
        _set_older_names(products, convolutions)
        for owner, word in zip(names, words, strict=True):
            owner.fp32_precision = word


def _newer_names() -> list[Any]:
    """What the older names set by their newer ones."""
    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]


def _older_names(words: list[str]) -> tuple[str, bool]:
    """Precision of products, and TF32 in convolutions. Unreadable, they are the opposite of what the newer ones say."""
    products, convolutions, *_ = words
    in_products = _read(lambda: torch.backends.cuda.matmul.allow_tf32, products != "tf32")
    precision = _read(torch.get_float32_matmul_precision, "high" if in_products else "highest")
    return precision, _read(lambda: torch.backends.cudnn.allow_tf32, convolutions != "tf32")


def _read(name: Callable[[], T], otherwise: T) -> T:
    try:
        return name()
    except RuntimeError:
        return otherwise


def _set_older_names(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
