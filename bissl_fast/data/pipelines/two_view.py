"""`TwoViewAugment`: the two views of contrastive learning, for any trainer that has uint8 batches."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import torch

from bissl_fast.data.pipelines.rendering import as_tensor, render
from bissl_fast.data.pipelines.torch_pipeline import require_tensor
from bissl_fast.data.views.parameters import ViewSettings, draw_views
from bissl_fast.errors import UserError


class TwoViewAugment:
    """Turns a batch of uint8 images into two augmented views, on the images' device.

    Every call draws new parameters for every image. Which ones depends on the seed, on how many images came before, on
    the rank and on the worker of a `DataLoader`; they repeat after 2**32 images. With `samples` and `epoch` they are a
    function of (seed, epoch, sample, view) alone: the same in whatever batch, process or machine, and after a restart.

    Args:
        first: Settings of the first view, e.g. from `presets.vicreg_views`.
        second: Settings of the second view; the first's if left out.
        seed: Of the view parameters.
        dtype: Of the views, float32 or bfloat16.

    Raises:
        UserError: if a view is something else than `ViewSettings`.

    Example:
        >>> from bissl_fast.data.views.presets import vicreg_views
        >>> augment = TwoViewAugment(*vicreg_views(96), seed=0)
        >>> images = torch.zeros(8, 112, 112, 3, dtype=torch.uint8)
        >>> view_1, view_2 = augment(images)
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
        self._drawn = 0  # images so far

    def __call__(
        self,
        images: torch.Tensor | npt.NDArray[np.uint8],
        samples: torch.Tensor | npt.NDArray[np.int64] | None = None,
        epoch: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Renders both views.

        Args:
            images: (B, H, W, C) or (B, C, H, W) uint8, with the C channels of the settings' mean: 3 of RGB.
            samples: (B,) indices of the images in their data set, not their rows in the batch; left out for new views.
            epoch: How often the set has been gone through before; given with `samples`.

        Returns:
            Two (B, C, S, S) channels_last tensors, normalised.

        Raises:
            UserError: if the images are no tensor or array, shapes or dtypes do not fit, or one of samples and epoch is
                missing.
        """
        if isinstance(images, np.ndarray):
            images = as_tensor(images)
        require_tensor(images)
        channels = len(self.settings[0].mean)
        if images.ndim == 4 and images.shape[-1] != channels and images.shape[1] == channels:
            images = images.permute(0, 2, 3, 1)
        if samples is None and epoch is None:
            seed, epoch, indices = self._next(len(images))
        elif samples is None or epoch is None:
            raise UserError(
                "One of samples and epoch is missing, so views would repeat: give both samples and epoch, or neither."
            )
        else:
            seed, indices = self.seed, np.asarray(samples.cpu() if isinstance(samples, torch.Tensor) else samples)
        if indices.shape != images.shape[:1]:
            raise UserError(f"{len(images)} images need as many sample indices, not shape {indices.shape}.")
        size = images.shape[1], images.shape[2]
        first, second = (
            render(images, draw_views(settings, seed, epoch, indices, view, size), settings, dtype=self.dtype)
            for view, settings in enumerate(self.settings)
        )
        return first, second

    def _next(self, count: int) -> tuple[int, int, npt.NDArray[np.int64]]:
        """Seed, epoch and samples that no other call, rank or worker draws."""
        indices = np.arange(self._drawn, self._drawn + count) % 2**32
        self._drawn += count
        worker = torch.utils.data.get_worker_info()
        seed = self.seed if worker is None else self.seed + (worker.seed << 32)  # another in each of its lives
        started = torch.distributed.is_available() and torch.distributed.is_initialized()
        return seed, torch.distributed.get_rank() if started else int(os.environ.get("RANK", 0)), indices
