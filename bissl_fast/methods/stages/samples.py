"""Images of a run as pictures: what the pretext task gets to see, and what the test has mistaken."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.parameters import ViewSettings, draw_views

COUNT = 8
LARGEST = 96  # side of a test image that is shown, in pixels

Pictures = npt.NDArray[np.uint8]


def sample_views(images: ImageSet, views: Sequence[ViewSettings], seed: int) -> Pictures:
    """Some images of a set, each with its views of epoch 0.

    Returns:
        ``(k, 1 + views, S, S, 3)`` uint8: the image resized to S, then its views with the normalisation undone. Of many
        channels the first three; of one or two the first, as gray.
    """
    samples = np.linspace(0, len(images) - 1, min(COUNT, len(images))).astype(np.int64)
    pixels = torch.from_numpy(np.array(images.images[samples]))
    side = (images.size, images.size)
    columns = [_resized(pixels, views[0].size)]
    for number, view in enumerate(views):
        table = draw_views(view, seed, 0, samples, number, side)
        columns.append(_pixels(render(pixels, table, view), view))
    return _shown(torch.stack(columns, 1))


def stored_images(images: ImageSet, indices: npt.NDArray[np.int64]) -> Pictures:
    """Images of a set as they are stored, small.

    Args:
        images: the set.
        indices: of any shape; black where one is negative.

    Returns:
        ``(*indices.shape, S, S, 3)`` uint8, S at most 96.
    """
    flat = indices.ravel()
    pixels = torch.from_numpy(np.array(images.images[np.maximum(flat, 0)]))
    pixels[torch.from_numpy(flat < 0)] = 0
    shown = _shown(_resized(pixels, min(LARGEST, images.size)))
    return shown.reshape(*indices.shape, *shown.shape[1:])


def _resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """``(N, H, W, C)`` uint8 to ``(N, C, size, size)`` in 0..255."""
    return F.interpolate(pixels.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True).clamp(0, 255)


def _shown(pictures: torch.Tensor) -> Pictures:
    """``(…, C, S, S)`` to ``(…, S, S, 3)``: of many channels the first three; of one or two the first, as gray."""
    pictures = pictures.movedim(-3, -1)
    shown = pictures[..., :3] if pictures.shape[-1] >= 3 else pictures[..., :1].expand(*pictures.shape[:-1], 3)
    return shown.round().to(torch.uint8).numpy()


def _pixels(normalised: torch.Tensor, view: ViewSettings) -> torch.Tensor:
    """Undo mean, standard deviation and range: ``(N, C, S, S)`` in 0..255."""
    mean, std = torch.tensor(view.mean).view(-1, 1, 1), torch.tensor(view.std).view(-1, 1, 1)
    return ((normalised * std + mean) * 255 / view.pixel_range).clamp(0, 255)
