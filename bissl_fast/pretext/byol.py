"""BYOL (Grill et al., 2020): predict what a slow copy of the network says about the other view."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import byol_views
from bissl_fast.models import PredictorHead, build_mlp
from bissl_fast.ops.rows import unit_rows
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.task import Constants, Needs, Output, PretextTask, require, require_widths
from bissl_fast.pretext.wide import in_wide_dtype


@dataclass(frozen=True)
class BYOL(PretextTask):
    """The prediction of each view meets the momentum copy's projection of the other one; there are no negatives.

    The copy has no predictor, and starts as the network itself (in the released code: with weights of its own).
    Defaults are those of 1,000 epochs of ImageNet; for 300 and 100 of them the released code has momentum .99, weight
    decay 1e-6 and rates of .3 and .45.

    Attributes:
        momentum: share of the copy that the first step keeps; it goes to 1 by a half cosine.
        projector: widths of the projector's layers.
        predictor: width of the predictor's hidden layer.
    """

    momentum: float = 0.996
    projector: tuple[int, ...] = (4096, 256)
    predictor: int = 4096

    name: ClassVar[str] = "byol"
    optimizer: ClassVar[OptimizerSettings] = OptimizerSettings("lars", weight_decay=1.5e-6)
    learning_rate: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        require(0 <= self.momentum <= 1, "momentum", self.momentum, "between 0 and 1")
        require_widths("projector", self.projector)
        require(self.predictor >= 1, "predictor", self.predictor, "a positive layer width")

    @property
    def needs(self) -> Needs:
        return Needs(target=(0, 1), momentum=(self.momentum, 1.0), whole_batch=False)

    def views(self, size: int) -> tuple[ViewSettings, ...]:
        return byol_views(size)

    def head(self, features: int, seed: int) -> nn.Module:
        """Both parts have no bias at their end, as in the released code; the paper does not say."""
        width = self.projector[-1]
        return PredictorHead(
            build_mlp(features, self.projector, seed, last_bias=False),
            build_mlp(width, (self.predictor, width), seed + 1, last_bias=False),
        )

    def target_head(self, head: nn.Module) -> nn.Module:
        assert isinstance(head, PredictorHead)
        return head.projector

    @in_wide_dtype
    def loss(self, outputs: Sequence[Output], constants: Constants) -> torch.Tensor:
        """‖p̄ − t̄‖² = 2 − 2 cos(p, t), mean over the batch, both directions added (Eq. 2 and section 3.1).

        Args:
            outputs: predictions and projections (B, D) of two views.
            constants: ``targets``, the copy's projections (B, D) of both.
        """
        pairs = zip((prediction for prediction, _ in outputs), reversed(constants["targets"]), strict=True)
        distances = [(unit_rows(p) - unit_rows(target)).square().sum(1).mean() for p, target in pairs]
        return torch.stack(distances).sum()

    def embedding(self, output: Output) -> torch.Tensor:
        """The projection."""
        found: torch.Tensor = output[1]
        return found
