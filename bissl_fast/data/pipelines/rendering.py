"""From a table of view parameters to views: one fused kernel where it is compiled, else the `torch` pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from bissl_fast.data.pipelines import torch_pipeline
from bissl_fast.data.sets.dataset import Images
from bissl_fast.data.views.parameters import ViewParameters, ViewSettings
from bissl_fast.ops.render_views import function as fused


def render(
    images: torch.Tensor,
    parameters: ViewParameters,
    settings: ViewSettings,
    samples: npt.NDArray[np.int64] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Renders one view of each sample.

    Args:
        images: (M, H, W, C) uint8, on any device; what is not RGB is rendered by the `torch` pipeline.
        parameters: the table of the N views, drawn for images of this size.
        settings: what the table was drawn from; its mean has C numbers, 3 of RGB.
        samples: (N,) rows of `images`, one per view; row by row if left out.
        dtype: float32 or bfloat16.
        device: where the views are wanted: the images' device if left out, or a CUDA device that can read the images
            in pinned host memory.

    Returns:
        (N, C, S, S) in channels_last memory, normalised by the settings' mean and std.

    Raises:
        UserError: if the images are not uint8 of the settings' channels, or the table or the samples do not fit them.

    Example:
        >>> from bissl_fast.data.views.presets import vicreg_views
        >>> from bissl_fast.data.views.parameters import draw_views
        >>> images, (settings, _) = torch.zeros(8, 112, 112, 3, dtype=torch.uint8), vicreg_views(96)
        >>> table = draw_views(settings, seed=0, epoch=0, samples=np.arange(8), view=0, image_size=(112, 112))
        >>> render(images, table, settings).shape
        torch.Size([8, 3, 96, 96])
    """
    rows = np.arange(len(images)) if samples is None else samples
    torch_pipeline.check(images, parameters, settings, rows)
    device = images.device if device is None else torch.empty(0, device=device).device  # with its index
    like = images if device == images.device else torch.empty(0, device=device)
    if not fused.serves(like, settings.size, images.shape[-1]):
        chosen = images if samples is None else images[torch.from_numpy(samples).to(images.device)]
        return torch_pipeline.render(chosen.to(device), parameters, settings).to(dtype)
    table = [torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)), *as_tensors(parameters)]
    if device != images.device:
        table = copied_at_once(table, device)
    return fused.render_views(
        images.contiguous(),
        table[0],
        table[1],
        table[2],
        channels(settings),
        size=settings.size,
        cubic=settings.interpolation == "bicubic",
        box_blur=settings.blur_filter == "box",
        threshold=torch_pipeline.inverted_above(settings),
        dtype=dtype,
    )


def as_tensors(parameters: ViewParameters) -> tuple[torch.Tensor, torch.Tensor]:
    """The table as the kernels read it: (N, INTEGERS) int32 and (N, NUMBERS) float32, on the same memory."""
    integers, numbers = (np.ascontiguousarray(array) for array in (parameters.integers, parameters.numbers))
    return torch.from_numpy(integers), torch.from_numpy(numbers)


def copied_at_once(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Contiguous tensors on a device, by one copy from pinned memory that nobody waits for."""
    parts = [tensor.view(-1).view(torch.uint8) for tensor in tensors]
    sizes = [len(part) for part in parts]
    pinned = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    torch.cat(parts, out=pinned)
    there = torch.split(pinned.to(device, non_blocking=True), sizes)
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(there, tensors, strict=True)]


def channels(settings: ViewSettings) -> torch.Tensor:
    """(2, 3) float32: a value v in 0..1 is normalised to ``v * first - second``."""
    mean, std = np.array(settings.mean), np.array(settings.std)
    return torch.tensor(np.stack((settings.pixel_range / std, mean / std)), dtype=torch.float32)


def as_tensor(images: Images) -> torch.Tensor:
    """An image set's array as a tensor on the same memory. Nobody writes to it: it may be a read-only memory map."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)
