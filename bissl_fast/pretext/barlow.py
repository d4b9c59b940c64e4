"""Barlow Twins (Zbontar et al., 2021): the correlation of two views' embeddings goes to the identity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import vicreg_views
from bissl_fast.models import build_mlp
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.statistics import diagonal_and_rest
from bissl_fast.pretext.task import Constants, PretextTask, require, require_widths
from bissl_fast.pretext.wide import in_wide_dtype

EPSILON = 1e-5
"""Added to variances: that of the batch norm in the released code."""


@dataclass(frozen=True)
class BarlowTwins(PretextTask):
    """Each column of the embeddings agrees with itself in the other view, and with no other column.

    Columns are standardised by their view's own mean and biased variance, and C is divided by B, as in the released
    code. The paper's pseudo-code (Algorithm 1) takes the unbiased variance, so that its C is (B − 1)/B of this one. The
    weight is that of the released code; the paper has .005. Decay is the paper's; the released code has 1e-6.

    Attributes:
        redundancy: λ, weight of the squared correlations of different columns.
        projector: widths of the projector's layers.
    """

    redundancy: float = 0.0051
    projector: tuple[int, ...] = (8192, 8192, 8192)

    name: ClassVar[str] = "barlow"
    optimizer: ClassVar[OptimizerSettings] = OptimizerSettings("lars", weight_decay=1.5e-6, rate_1d=0.0048 / 0.2)
    learning_rate: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        require(0 <= self.redundancy < math.inf, "redundancy", self.redundancy, "finite and 0 or more")
        require_widths("projector", self.projector)

    def views(self, size: int) -> tuple[ViewSettings, ...]:
        """BYOL's views, as the paper has them and VICReg took them over."""
        return vicreg_views(size)

    def head(self, features: int, seed: int) -> nn.Module:
        """No layer has a bias, as in the released code."""
        return build_mlp(features, self.projector, seed, hidden_bias=False, last_bias=False)

    @in_wide_dtype
    def loss(self, outputs: Sequence[torch.Tensor], constants: Constants) -> torch.Tensor:
        """Σ (1 − C_ii)² + λ Σ C_ij² over i ≠ j, of embeddings (B, D) of two views (Eq. 1 and 2)."""
        first, second = (standardised(embeddings) for embeddings in outputs)
        diagonal, rest = diagonal_and_rest(first, second)
        batch = len(first)
        return (diagonal / batch - 1).square().sum() + self.redundancy * rest / batch**2


def standardised(embeddings: torch.Tensor) -> torch.Tensor:
    """(B, D) with columns of mean 0 and, but for ε, biased variance 1."""
    centred = embeddings - embeddings.mean(0)
    return centred / (centred.square().mean(0) + EPSILON).sqrt()
