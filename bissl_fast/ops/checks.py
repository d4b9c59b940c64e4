"""Checks of a loss's arguments, before any kernel runs."""

import math
from numbers import Real

import torch

from bissl_fast.ops.backend import DTYPES


def check_views(first: torch.Tensor, second: torch.Tensor, temperature: float) -> None:
    """Raise unless two batches of embeddings and a temperature make a contrastive loss.

    Raises:
        TypeError: Not tensors, not floating-point, dtypes that differ, or a temperature that is not a number.
        ValueError: Shapes other than twice ``(B, D)``, B = 0 or D = 0, two devices, or τ not in (0, ∞).
    """
    for z in (first, second):
        if not isinstance(z, torch.Tensor):
            raise TypeError(f"Embeddings must be tensors, found {type(z).__name__}.")
        if z.layout != torch.strided or z.is_nested:
            raise TypeError(
                "Embeddings must be dense tensors, found a sparse or nested one; `.to_dense()` makes it so."
            )
        if z.dtype not in DTYPES:
            raise TypeError(f"Embeddings must be float16, bfloat16, float32 or float64, found {z.dtype}.")
    if first.dtype != second.dtype:
        raise TypeError(f"Both views must have one dtype, found {first.dtype} and {second.dtype}.")
    shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
    if first.dim() != 2 or first.shape != second.shape:
        raise ValueError(f"Both views must have the same shape (B, D), found {shapes}.")
    if first.shape[0] == 0 or first.shape[1] == 0:
        raise ValueError(f"Both views need at least one row and one column, found {shapes}.")
    if first.device != second.device:
        raise ValueError(f"Both views must be on one device, found {first.device} and {second.device}.")
    check_temperature(temperature)


def check_temperature(temperature: object) -> None:
    """Raise unless the temperature is a positive finite number."""
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        kind = type(temperature).__name__
        raise TypeError(f"The temperature must be a number (it gets no gradient), found {kind}.")
    if not 0 < float(temperature) < math.inf:  # false for NaN, too
        raise ValueError(f"The temperature must be positive and finite, found {temperature}.")
