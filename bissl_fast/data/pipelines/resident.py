"""The `resident` pipeline: an image set that stays where a CUDA kernel reads it, in GPU or in pinned host memory.

A step then draws a table of view parameters and nothing else: no pixel is gathered, and from GPU memory none crosses
the bus.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bissl_fast.data.pipelines.rendering import as_tensor
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.errors import UserError
from bissl_fast.ops.backend import why_absent

SHARE_OF_FREE_MEMORY = 0.5


@dataclass(frozen=True, eq=False)
class ResidentSet:
    """An image set whose pixels and labels a device reads in place.

    Args:
        images: The set.
        pixels: (N, S, S, C) uint8 on the device, or in pinned host memory.
        labels: (N,) int64 or (N, classes) int8 on the device, or None for an unlabelled set.
        device: Where views are rendered.
        place: Where the pixels lie, a sentence.
    """

    images: ImageSet
    pixels: torch.Tensor
    labels: torch.Tensor | None
    device: torch.device
    place: str

    def __len__(self) -> int:
        return len(self.images)

    def labels_of(self, samples: npt.NDArray[np.int64]) -> torch.Tensor | None:
        """The samples' labels on the device; the host does not wait."""
        if self.labels is None:
            return None
        where = torch.from_numpy(samples)
        if self.device.type == "cuda":
            where = where.pin_memory()
        return self.labels[where.to(self.device, non_blocking=True)]


def hold(images: ImageSet, device: torch.device, share: float = SHARE_OF_FREE_MEMORY) -> ResidentSet:
    """Copies a set to where the device reads it in place.

    Args:
        images: The set.
        device: A CUDA device; on the CPU the set stays as it is.
        share: Of the free GPU memory that the pixels may take; a larger set goes to pinned host memory, which PyTorch
            rounds up to the next power of two.

    Returns:
        The set with its place.

    Raises:
        UserError: If the set fits neither, or is too large for GPU memory and no compiled kernel can read the host's.

    Example:
        >>> images = hold(unlabelled, torch.device("cuda"))  # doctest: +SKIP
        >>> order = BatchOrder(len(images), 256, seed=0)  # doctest: +SKIP
        >>> with ViewLoader(images, vicreg_views(96), order, 0, torch.device("cuda")) as loader:  # doctest: +SKIP
        ...     first, second = loader.load(0).views
    """
    source = as_tensor(images.images)
    size = f"{images.name}: {source.nbytes / 1e9:.2g} GB of pixels"
    if device.type != "cuda":
        labels = None if images.labels is None else torch.from_numpy(images.labels)
        return ResidentSet(images, source, labels, device, f"{size} stay in host memory")
    device = torch.empty(0, device=device).device  # with its index
    labels = None if images.labels is None else torch.from_numpy(images.labels).to(device)
    free = torch.cuda.mem_get_info(device)[0]
    limit = f"{share:.0%} of the {free / 1e9:.3g} GB that are free on {device}"
    if fits(source.nbytes, free, share):
        return ResidentSet(images, source.to(device), labels, device, f"{size} lie in GPU memory, within {limit}")
    if reason := why_absent("cuda") or ("" if images.channels == 3 else "the kernel that does takes 3 channels"):
        raise UserError(f"{size} are more than {limit}, and host memory cannot be read in place: {reason}.")
    return ResidentSet(images, _pinned(source, size), labels, device, f"{size} lie in pinned host memory: over {limit}")


def fits(wanted: int, free: int, share: float) -> bool:
    """Whether so many bytes are within a share of the free ones."""
    return wanted <= share * free


def _pinned(source: torch.Tensor, size: str) -> torch.Tensor:
    try:
        pinned = torch.empty(source.shape, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{size} fit neither GPU memory nor pinned host memory ({reason}): pass --images.pipeline torch."
        ) from None
    return pinned.copy_(source)
