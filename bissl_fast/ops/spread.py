"""Tensors that FSDP2 has spread over ranks, and the part of each that a rank holds."""

import torch

from bissl_fast.ops.collectives import Ranks


def is_spread(tensor: object) -> bool:
    """Whether a tensor is spread over ranks."""
    return hasattr(tensor, "full_tensor")


def ranks_of(tensor: torch.Tensor) -> Ranks | None:
    """The ranks that a tensor is spread over; ``None``: it is not."""
    return Ranks.present(tensor.device_mesh.get_group()) if is_spread(tensor) else None  # type: ignore[attr-defined]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this rank holds, sharing its memory: all of it, if it is not spread."""
    found: torch.Tensor = tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return found
