"""DINO (Caron et al., 2021): agree with a slow copy of the network on how an image belongs to many prototypes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import dino_views
from bissl_fast.models import build_mlp
from bissl_fast.ops.rows import unit_rows
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.task import Constants, Needs, Output, PretextTask, require, require_widths
from bissl_fast.pretext.wide import in_wide_dtype


class Prototypes(nn.Module):
    """Directions that inputs are compared with: ``(N, D)`` of any length to scores ``(N, K)``.

    A linear layer without bias and with weight normalisation (Salimans and Kingma, 2016), behind an L2 normalisation.

    Args:
        width: D.
        count: K.
        trained_norm: whether prototypes have a trained length; else it is 1.
    """

    def __init__(self, width: int, count: int, trained_norm: bool) -> None:
        super().__init__()
        self.weight = nn.Linear(width, count, bias=False).weight
        self.norm = nn.Parameter(torch.ones(count, 1)) if trained_norm else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        directions = unit_rows(self.weight)
        return F.linear(unit_rows(x), directions if self.norm is None else self.norm * directions)


class DINOHead(nn.Module):
    """A projector and prototypes: ``(N, F)`` to scores ``(N, K)`` and projections ``(N, D)``."""

    def __init__(self, projector: nn.Module, prototypes: Prototypes) -> None:
        super().__init__()
        self.projector, self.prototypes = projector, prototypes

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        projections = self.projector(x)
        return self.prototypes(projections), projections


@dataclass(frozen=True)
class DINO(PretextTask):
    """The softmax of each view's scores meets the momentum copy's, centred and sharpened, of the other large view.

    The copy sees the two large views, the trained network all of them. Where there are batch norms, a view has
    statistics of its own (in the released code: all views of one size together). The teacher's temperature is constant,
    as by default in the released code; in the paper it rises from .04 to .07 in 30 epochs. Optimiser and rate are those
    for vision transformers; convolutional networks the authors train by `sgd`, at .03 and with a weight decay of 1e-4.
    Clipping is of the norm over all weights; the released code clips each tensor's.

    Attributes:
        temperature: τ_s of the trained network.
        teacher_temperature: τ_t of the momentum copy.
        momentum: share of the copy that the first step keeps; it goes to 1 by a half cosine. The authors want more for
            small batches, as .9995 for 256 images.
        centre_momentum: share of the centre that a step keeps.
        prototypes: K.
        projector: widths of the projector's layers.
        batch_norm: whether the projector has batch norms.
        trained_norm: whether the prototypes' lengths are trained, which the authors do for ViT-S; else they are 1.
        freeze_last_layer: in how many first steps the prototypes stand still. The released code counts one epoch.
        local_views: small views beside the two large ones.
    """

    temperature: float = 0.1
    teacher_temperature: float = 0.04
    momentum: float = 0.996
    centre_momentum: float = 0.9
    prototypes: int = 65_536
    projector: tuple[int, ...] = (2048, 2048, 256)
    batch_norm: bool = False
    trained_norm: bool = False
    freeze_last_layer: int = 100
    local_views: int = 8

    name: ClassVar[str] = "dino"
    optimizer: ClassVar[OptimizerSettings] = OptimizerSettings(
        "adamw", weight_decay=0.04, final_weight_decay=0.4, clip=3.0
    )
    learning_rate: ClassVar[float] = 5e-4

    def __post_init__(self) -> None:
        for setting in ("temperature", "teacher_temperature"):
            require(0 < getattr(self, setting) < math.inf, setting, getattr(self, setting), "finite and positive")
        for setting in ("momentum", "centre_momentum"):
            require(0 <= getattr(self, setting) <= 1, setting, getattr(self, setting), "between 0 and 1")
        require(self.prototypes >= 2, "prototypes", self.prototypes, "at least 2: one always agrees")
        require_widths("projector", self.projector)
        require(self.freeze_last_layer >= 0, "freeze_last_layer", self.freeze_last_layer, "0 or more steps")
        require(self.local_views >= 0, "local_views", self.local_views, "0 or more")

    @property
    def needs(self) -> Needs:
        return Needs(
            target=(0, 1),
            local=self.local_views,
            momentum=(self.momentum, 1.0),
            centre=self.prototypes,
            centre_momentum=self.centre_momentum,
            whole_batch=False,
        )

    def views(self, size: int) -> tuple[ViewSettings, ...]:
        return dino_views(size, self.local_views)

    def head(self, features: int, seed: int) -> nn.Module:
        """Layers start as in the released code: truncated normal of standard deviation .02, no bias."""
        projector = build_mlp(features, self.projector, seed, hidden_norm=self.batch_norm, activation=nn.GELU)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in projector:
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)
            return DINOHead(projector, Prototypes(self.projector[-1], self.prototypes, self.trained_norm))

    def target_head(self, head: nn.Module) -> nn.Module:
        """The scores alone."""
        assert isinstance(head, DINOHead)
        return nn.Sequential(head.projector, head.prototypes)

    @in_wide_dtype
    def loss(self, outputs: Sequence[Output], constants: Constants) -> torch.Tensor:
        """Cross-entropy, mean over the batch and over all pairs of the copy's views and others (Eq. 3, Algorithm 1).

        Args:
            outputs: scores (B, K) and projections (B, D) of all views, the two large ones first.
            constants: ``targets``, the copy's scores (B, K) of the large ones, and ``centre`` (K,).
        """
        targets = [((t - constants["centre"]) / self.teacher_temperature).softmax(1) for t in constants["targets"]]
        logs = [(scores / self.temperature).log_softmax(1) for scores, _ in outputs]
        pairs = [(t, log) for k, t in enumerate(targets) for view, log in enumerate(logs) if view != k]
        return -torch.stack([(t * log).sum(1).mean() for t, log in pairs]).mean()

    def embedding(self, output: Output) -> torch.Tensor:
        """The projection, whose direction is compared with prototypes."""
        found: torch.Tensor = output[1]
        return found

    def log_prototypes(self, output: Output) -> torch.Tensor:
        """Of the trained network: log softmax of the scores over τ_s, not centred (Eq. 1)."""
        scores: torch.Tensor = output[0]
        return (scores / self.temperature).log_softmax(1)

    def hold(self, head: nn.Module, step: int) -> None:
        assert isinstance(head, DINOHead)
        if step < self.freeze_last_layer:
            for parameter in head.prototypes.parameters():
                parameter.grad = None
