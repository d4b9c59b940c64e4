"""What the pretext task gets to see, as pictures."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.parameters import ViewSettings, draw_views

COUNT = 8


def sample_views(images: ImageSet, views: Sequence[ViewSettings], seed: int) -> npt.NDArray[np.uint8]:
    """Some images of a set, each with its views of epoch 0.

    Returns:
        ``(k, 1 + views, S, S, 3)`` uint8: the image resized to S, then its views with the normalisation undone. Of many
        channels the first three; of one or two the first, as gray.
    """
    samples = np.linspace(0, len(images) - 1, min(COUNT, len(images))).astype(np.int64)
    pixels = torch.from_numpy(np.array(images.images[samples]))
    side = (images.size, images.size)
    whole = F.interpolate(pixels.permute(0, 3, 1, 2).float(), views[0].size, mode="bilinear", antialias=True)
    columns = [whole.clamp(0, 255)]
    for number, view in enumerate(views):
        table = draw_views(view, seed, 0, samples, number, side)
        columns.append(_pixels(render(pixels, table, view), view))
    pictures = torch.stack(columns, 1).permute(0, 1, 3, 4, 2)
    shown = pictures[..., :3] if images.channels >= 3 else pictures[..., :1].expand(*pictures.shape[:-1], 3)
    return shown.round().to(torch.uint8).numpy()


def _pixels(normalised: torch.Tensor, view: ViewSettings) -> torch.Tensor:
    """Undo mean, standard deviation and range: ``(N, C, S, S)`` in 0..255."""
    mean, std = torch.tensor(view.mean).view(-1, 1, 1), torch.tensor(view.std).view(-1, 1, 1)
    return ((normalised * std + mean) * 255 / view.pixel_range).clamp(0, 255)
