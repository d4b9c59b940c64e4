"""Device and number format of a run."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from bissl_fast.errors import UserError

Precision = Literal["fp32", "tf32", "bf16"]
Forward = Callable[[], AbstractContextManager[Any]]
"""Makes the context that a forward pass runs in."""


def find_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; any other name is torch's own.

    Raises:
        UserError: if the device does not exist on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used ({reason}); leave out --device to have it found.") from None
    return device


def apply_precision(precision: Precision, device: torch.device) -> Forward:
    """Set how float32 products are computed, in an order that repeats, and return the context of a forward pass.

    ``fp32``: exact products. ``tf32``: 10-bit mantissas in float32 products where the device has them. ``bf16``:
    autocast to bfloat16, parameters and optimisers staying float32.
    """
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.deterministic = True  # or a run that is resumed would not end with the same bits
    # A cached cast of a weight belongs to the graph of its first use, which second-order products must not share.
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
