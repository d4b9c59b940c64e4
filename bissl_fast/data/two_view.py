"""`TwoViewAugment`: the two views of contrastive learning, for any trainer that has uint8 batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from bissl_fast.data.rendering import render
from bissl_fast.data.torch_pipeline import require_tensor
from bissl_fast.data.views import ViewSettings, draw_views
from bissl_fast.errors import UserError


class TwoViewAugment:
    """Turns a batch of uint8 images into two augmented views, on the images' device.

    Each image has its own parameters, fixed by (seed, epoch, sample, view): the same sample in the same epoch gives
    the same views, whatever batch, process or machine it is in.

    Args:
        first: Settings of the first view, e.g. from `presets.vicreg_views`.
        second: Settings of the second view; the first's if left out.
        seed: Of the view parameters.
        dtype: Of the views, float32 or bfloat16.

    Raises:
        UserError: if a view is something else than `ViewSettings`.

    Example:
        >>> from bissl_fast.data.presets import vicreg_views
        >>> augment = TwoViewAugment(*vicreg_views(96), seed=0)
        >>> images = torch.zeros(8, 112, 112, 3, dtype=torch.uint8)
        >>> view_1, view_2 = augment(images, samples=torch.arange(8), epoch=0)
        >>> view_1.shape
        torch.Size([8, 3, 96, 96])
    """

    def __init__(
        self, first: ViewSettings, second: ViewSettings | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        for view in (first, second):
            if not isinstance(view, ViewSettings | None):
                raise UserError(
                    f"TwoViewAugment takes ViewSettings, found {type(view).__name__}; a pair of them is unpacked: "
                    "TwoViewAugment(*vicreg_views(96))."
                )
        self.settings = (first, first if second is None else second)
        self.seed = seed
        self.dtype = dtype

    def __call__(
        self, images: torch.Tensor, samples: torch.Tensor | npt.NDArray[np.int64], epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Renders both views.

        Args:
            images: (B, H, W, 3) or (B, 3, H, W) uint8.
            samples: (B,) indices of the images in their data set.
            epoch: How often the set has been gone through before.

        Returns:
            Two (B, 3, S, S) channels_last tensors, normalised.

        Raises:
            UserError: if the images are no tensor, or shapes or dtypes do not fit.
        """
        require_tensor(images)
        if images.ndim == 4 and images.shape[-1] != 3 and images.shape[1] == 3:
            images = images.permute(0, 2, 3, 1)
        indices = np.asarray(samples.cpu() if isinstance(samples, torch.Tensor) else samples)
        if indices.shape != images.shape[:1]:
            raise UserError(f"{len(images)} images need as many sample indices, not shape {indices.shape}.")
        height, width = images.shape[1:3]
        first, second = (
            render(
                images,
                draw_views(settings, self.seed, epoch, indices, view, (height, width)),
                settings,
                dtype=self.dtype,
            )
            for view, settings in enumerate(self.settings)
        )
        return first, second
