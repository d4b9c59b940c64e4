"""Random numbers that layers draw, as dropout does, repeated."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Let everything inside the block draw the numbers of a seed; PyTorch's own are afterwards as they were before.

    Args:
        seed: 0 to 2⁶³ − 1.
        device: beside the CPU, whose numbers are meant.

    Example:
        >>> with drawing(0, torch.device("cpu")):
        ...     first = torch.rand(())
        >>> with drawing(0, torch.device("cpu")):
        ...     assert torch.rand(()) == first
    """
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
