"""SimCLR (Chen et al., 2020), as BiSSL section 4.2.1 sets it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import simclr_views
from bissl_fast.models import build_projector
from bissl_fast.ops.collectives import Ranks
from bissl_fast.ops.nt_xent import nt_xent_loss
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.task import Constants, PretextTask, require, require_widths


@dataclass(frozen=True)
class SimCLR(PretextTask):
    """The two views of an image attract each other and repel those of all other images of the batch.

    Attributes:
        temperature: τ of NT-Xent.
        projector: widths of the projection head's layers.
    """

    temperature: float = 0.5
    projector: tuple[int, ...] = (256, 256, 256)

    name: ClassVar[str] = "simclr"
    optimizer: ClassVar[OptimizerSettings] = OptimizerSettings()
    learning_rate: ClassVar[float] = 4.8  # BiSSL, Appendix B.2

    def __post_init__(self) -> None:
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "finite and positive")
        require_widths("projector", self.projector)

    def views(self, size: int) -> tuple[ViewSettings, ...]:
        return simclr_views(size)

    def head(self, features: int, seed: int) -> nn.Module:
        return build_projector(features, self.projector, seed)

    def loss(self, outputs: Sequence[torch.Tensor], constants: Constants) -> torch.Tensor:
        """NT-Xent of the projections (B, D) of two views (Eq. 1)."""
        first, second = outputs
        return nt_xent_loss(first, second, self.temperature)

    def share(self, outputs: Sequence[torch.Tensor], constants: Constants, ranks: Ranks) -> torch.Tensor:
        """Of this rank's anchors alone, with the negatives of all ranks."""
        first, second = outputs
        return nt_xent_loss(first, second, self.temperature, ranks)
