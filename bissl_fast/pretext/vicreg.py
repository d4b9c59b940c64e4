"""VICReg (Bardes et al., 2022): views agree, and embeddings keep their variance without saying anything twice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import vicreg_views
from bissl_fast.errors import UserError
from bissl_fast.models import build_projector
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.statistics import diagonal_and_rest
from bissl_fast.pretext.task import Constants, PretextTask, require, require_widths
from bissl_fast.pretext.wide import in_wide_dtype

EPSILON = 1e-4
"""Added to variances (section 4)."""


@dataclass(frozen=True)
class VICReg(PretextTask):
    """Invariance between the views, and in each view variance at least 1 and no covariance.

    Terms are scaled as in the released code, whose weights these are. As the paper's text writes them (Eq. 1, 3, 5),
    the distance is a sum over columns and the variance terms of the views are added: this is ``invariance`` / D and
    ``variance`` / 2 there.

    Attributes:
        invariance: λ, weight of the mean squared difference of the views.
        variance: μ, weight of the standard deviations' distance below 1, mean over columns and views.
        covariance: ν, weight of the squared covariances of different columns, summed and divided by D, of both views.
        projector: widths of the expander's layers.
    """

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    projector: tuple[int, ...] = (8192, 8192, 8192)

    name: ClassVar[str] = "vicreg"
    optimizer: ClassVar[OptimizerSettings] = OptimizerSettings("lars", weight_decay=1e-6)
    learning_rate: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        for setting in ("invariance", "variance", "covariance"):
            require(0 <= getattr(self, setting) < math.inf, setting, getattr(self, setting), "finite and 0 or more")
        require_widths("projector", self.projector)

    def views(self, size: int) -> tuple[ViewSettings, ...]:
        return vicreg_views(size)

    def head(self, features: int, seed: int) -> nn.Module:
        return build_projector(features, self.projector, seed)

    @in_wide_dtype
    def loss(self, outputs: Sequence[torch.Tensor], constants: Constants) -> torch.Tensor:
        """λ s(z, z') + μ/2 [v(z) + v(z')] + ν [c(z) + c(z')] of embeddings (B, D) of two views (Eq. 6).

        Raises:
            UserError: for a single image, which has no variance.
        """
        first, second = outputs
        if len(first) < 2:
            raise UserError("--pretext vicreg takes variances over a batch, found one of 1 image: make it larger.")
        terms = [self.invariance * (first - second).square().mean()]
        terms += [self._regularisation(embeddings) for embeddings in outputs]
        return torch.stack(terms).sum()

    def _regularisation(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Variance and covariance terms of one view's embeddings (B, D), both unbiased (Eq. 1 to 4)."""
        rows, columns = embeddings.shape
        centred = embeddings - embeddings.mean(0)
        squares, rest = diagonal_and_rest(centred, centred)
        deviations = (squares / (rows - 1) + EPSILON).sqrt()
        covariance = rest / (rows - 1) ** 2 / columns
        return self.variance / 2 * (1 - deviations).relu().mean() + self.covariance * covariance
