"""W-MSE (Ermolov et al., 2021): whitened embeddings of the views of an image meet; whitening keeps others away."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import nn

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import wmse_views
from bissl_fast.errors import UserError
from bissl_fast.models import build_mlp
from bissl_fast.ops.rows import unit_rows
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.task import Constants, Needs, PretextTask, require, require_widths
from bissl_fast.pretext.wide import in_wide_dtype

NOT_POSITIVE = (
    "The embeddings' covariance has no Cholesky factor ({error}): they have collapsed, or some of their columns follow "
    "from others. Raise --pretext.shrinkage (.01, say) or lower the last width of --pretext.projector."
)


@dataclass(frozen=True)
class WMSE(PretextTask):
    """Distance of the views' embeddings, each view whitened by its own mean and covariance.

    Covariances are those of slices of the batch, at the same places in every view. Slices follow the order of the
    batch, which is shuffled already: a loss is the same however often it is asked. In the paper they are drawn, up to
    four times a step.

    Attributes:
        slice_size: images per covariance, at least twice the embedding's width, in which the batch is divided.
        shrinkage: share of the identity in a covariance.
        unit_norm: whether whitened embeddings are scaled to norm 1 (cosine), or compared as they are (Euclid).
        positives: d, views of an image, all pairs of which meet.
        projector: widths of the projection head's layers; the last is 64 for CIFAR in the paper, 128 for larger sets.
    """

    slice_size: int = 128
    shrinkage: float = 0.0
    unit_norm: bool = True
    positives: int = 2
    projector: tuple[int, ...] = (1024, 64)

    name: ClassVar[str] = "wmse"
    optimizer: ClassVar[OptimizerSettings] = OptimizerSettings(
        "adam", weight_decay=1e-6, exclude_1d=False, scale_learning_rate=False
    )
    learning_rate: ClassVar[float] = 3e-3  # 2e-3 for sets larger than CIFAR

    def __post_init__(self) -> None:
        require_widths("projector", self.projector)
        least = 2 * self.projector[-1]
        expected = f"at least {least}, twice the last width of --pretext.projector"
        require(self.slice_size >= least, "slice_size", self.slice_size, expected)
        require(0 <= self.shrinkage < 1, "shrinkage", self.shrinkage, "at least 0 and below 1")
        require(self.positives >= 2, "positives", self.positives, "at least 2")

    @property
    def needs(self) -> Needs:
        return Needs(online=tuple(range(self.positives)), batch_multiple=self.slice_size)

    def views(self, size: int) -> tuple[ViewSettings, ...]:
        return wmse_views(size, self.positives)

    def head(self, features: int, seed: int) -> nn.Module:
        return build_mlp(features, self.projector, seed)

    @in_wide_dtype
    def loss(self, outputs: Sequence[torch.Tensor], constants: Constants) -> torch.Tensor:
        """2 − 2 cos(z_i, z_j), or the mean squared difference, mean over images and pairs of views (section 3).

        Args:
            outputs: embeddings (B, D) of each view.
            constants: none.

        Raises:
            UserError: if the batch is no multiple of the slices, or a covariance has no Cholesky factor.
        """
        whitened = [self.whiten(embeddings) for embeddings in outputs]
        if self.unit_norm:
            whitened = [unit_rows(embeddings) for embeddings in whitened]
        pairs = [(first - second).square() for first, second in combinations(whitened, 2)]
        distances = torch.stack([pair.sum(1).mean() if self.unit_norm else pair.mean() for pair in pairs])
        return distances.mean()

    def whiten(self, embeddings: torch.Tensor) -> torch.Tensor:
        """L⁻¹ (v − μ) with L Lᵀ = Σ, the unbiased covariance of a slice (section 3).

        Args:
            embeddings: (B, D).
        """
        batch, width = embeddings.shape
        if batch == 0 or batch % self.slice_size:
            raise UserError(
                f"--pretext.slice-size {self.slice_size} does not divide a batch of {batch} images: change it, or the "
                "batch size."
            )
        slices = embeddings.reshape(-1, self.slice_size, width)  # (S, W, D)
        centred = slices - slices.mean(1, keepdim=True)
        covariance = centred.mT @ centred / (self.slice_size - 1)  # (S, D, D)
        identity = torch.eye(width, dtype=embeddings.dtype, device=embeddings.device)
        mixed = (1 - self.shrinkage) * covariance + self.shrinkage * identity
        try:
            factor = torch.linalg.cholesky_ex(mixed, check_errors=True).L
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise UserError(NOT_POSITIVE.format(error=str(error).splitlines()[0])) from None
        whitened: torch.Tensor = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
        return whitened.reshape(batch, width)
