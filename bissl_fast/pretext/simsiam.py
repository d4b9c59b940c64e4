"""SimSiam (Chen and He, 2021): predict the other view, whose projection stands still."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import moco_views
from bissl_fast.models import PredictorHead, build_mlp
from bissl_fast.ops.rows import unit_rows
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.task import Constants, Needs, Output, PretextTask, require, require_widths
from bissl_fast.pretext.wide import in_wide_dtype


@dataclass(frozen=True)
class SimSiam(PretextTask):
    """The prediction of each view meets the same network's projection of the other one, without gradient.

    Attributes:
        projector: widths of the projector's layers. The hidden ones are as wide as the features (of ResNet-50).
        predictor: width of the predictor's hidden layer.
        constant_predictor_rate: whether the predictor's learning rate stays where all others' start (Table 1c), as the
            released code recommends.
    """

    projector: tuple[int, ...] = (2048, 2048, 2048)
    predictor: int = 512
    constant_predictor_rate: bool = True

    name: ClassVar[str] = "simsiam"
    optimizer: ClassVar[OptimizerSettings] = OptimizerSettings("sgd", weight_decay=1e-4, exclude_1d=False)
    learning_rate: ClassVar[float] = 0.05

    def __post_init__(self) -> None:
        require_widths("projector", self.projector)
        require(self.predictor >= 1, "predictor", self.predictor, "a positive layer width")

    @property
    def needs(self) -> Needs:
        return Needs(whole_batch=False)

    def views(self, size: int) -> tuple[ViewSettings, ...]:
        return moco_views(size)

    def head(self, features: int, seed: int) -> nn.Module:
        """The projector ends in a batch norm, without weights in the released code; the predictor ends bare."""
        width = self.projector[-1]
        return PredictorHead(
            build_mlp(features, self.projector, seed, hidden_bias=False, last_bias=False, last_norm="plain"),
            build_mlp(width, (self.predictor, width), seed + 1, hidden_bias=False),
        )

    @in_wide_dtype
    def loss(self, outputs: Sequence[Output], constants: Constants) -> torch.Tensor:
        """−½ [cos(p₁, z₂) + cos(p₂, z₁)], mean over the batch, no gradient through z (Eq. 4).

        Args:
            outputs: predictions p and projections z (B, D) of two views.
            constants: nothing.
        """
        (p1, z1), (p2, z2) = outputs
        cosines = [(unit_rows(p) * unit_rows(z.detach())).sum(1).mean() for p, z in ((p1, z2), (p2, z1))]
        return -torch.stack(cosines).mean()

    def embedding(self, output: Output) -> torch.Tensor:
        """The projection, of which section 4.1 takes the spread."""
        found: torch.Tensor = output[1]
        return found

    def constant_rate(self) -> tuple[str, ...]:
        return ("head.predictor.",) if self.constant_predictor_rate else ()
