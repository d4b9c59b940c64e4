"""Writes into tensors that PyTorch does not count (``.data``, NumPy): at once on the CPU, later on a device.

Host and device run apart, and a look at values that waits for the device would stop both. There the values are compared
by the device itself, which leaves what it has found in memory that the host reads whenever it comes by.
"""

import zlib
from collections.abc import Sequence

import torch

Versions = list[tuple[int, int, int]]

SAMPLE = 256
"""How many values of a tensor are looked at."""
AT_ONCE = ("cpu",)
"""Devices whose values the host reads without waiting."""


def sampled(tensor: torch.Tensor) -> torch.Tensor:
    """A view of some of a tensor's values, evenly spaced in memory: at most `SAMPLE`, in one dimension."""
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    step = -(-extent // SAMPLE)
    return tensor.detach().as_strided((-(-extent // step),), (step,)).resolve_conj().resolve_neg()


def has_samples(tensor: torch.Tensor) -> bool:
    """Whether there are values, and they lie in one place."""
    return tensor.layout == torch.strided and tensor.numel() > 0


def sample(tensor: torch.Tensor) -> int:
    """A checksum of `sampled` values; 0 on devices that it would have to wait for."""
    if tensor.device.type not in AT_ONCE or not has_samples(tensor):
        return 0
    return zlib.crc32(sampled(tensor).contiguous().view(torch.uint8).numpy().tobytes())


def versions(tensors: Sequence[torch.Tensor]) -> Versions:
    """What changes when a tensor's values do, whether written in place or put into ``.data``."""
    return [(address(t), 0 if t.is_inference() else t._version, sample(t)) for t in tensors]


def address(tensor: torch.Tensor) -> int:
    """Where a tensor's values lie; sparse ones, which lie in several places, are told apart as objects."""
    return tensor.data_ptr() if tensor.layout == torch.strided else id(tensor)


class Watched:
    """Tensors of one device and dtype, their `sampled` values compared by the device with those of the beginning."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._views = [sampled(tensor) for tensor in tensors]
        self._before = self._bits()
        device = self._before.device
        self._changed = torch.zeros((), dtype=torch.bool, device=device)
        self._told = torch.zeros((), dtype=torch.bool, pin_memory=device.type == "cuda")

    def _bits(self) -> torch.Tensor:
        return torch.cat(self._views).view(torch.uint8)

    def look(self) -> None:
        """Have the device compare; waits for nothing, so a CUDA graph captures it, and each replay compares again."""
        self._changed.logical_or_((self._bits() != self._before).any())
        self._told.copy_(self._changed, non_blocking=True)

    def changed(self, wait: bool) -> bool:
        """Whether a comparison has found a change: any at all, or one that the device has come to."""
        return bool(self._changed if wait else self._told)


class Watch:
    """What the host cannot look at without waiting, of some tensors."""

    def __init__(self, tensors: Sequence[torch.Tensor] = ()) -> None:
        groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for tensor in tensors:
            if tensor.device.type not in (*AT_ONCE, "meta") and has_samples(tensor):
                groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        self._groups = [Watched(group) for group in groups.values()]

    def look(self) -> None:
        """Have the devices compare."""
        for group in self._groups:
            group.look()

    def changed(self, wait: bool = False) -> bool:
        """Whether a look has found a change."""
        return any(group.changed(wait) for group in self._groups)
