"""MoCo v2 (Chen et al., 2020): an encoder of queries, a slow copy of it for keys, and a queue of earlier keys."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import moco_views
from bissl_fast.errors import UserError
from bissl_fast.models import build_mlp
from bissl_fast.ops import info_nce_loss
from bissl_fast.ops.rows import unit_rows
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.task import Constants, Needs, PretextTask, require, require_widths
from bissl_fast.pretext.wide import in_wide_dtype

NO_APPROXIMATION = 40.0
"""From here on ``softplus(x)`` is x in float64, too; PyTorch takes it for x from 20 on, which is 1e-10 off."""


@dataclass(frozen=True)
class MoCo(PretextTask):
    """A query attracts the key of the other view of its image and repels the keys of earlier batches.

    Keys are not shuffled among devices ("shuffling BN"): on one device there is nothing to shuffle.

    Attributes:
        temperature: τ.
        momentum: share of the key encoder that a step keeps.
        queue: K, keys of earlier batches that are negatives, at least those of one step; 0: the others of the batch,
            by two-sided InfoNCE.
        symmetric: whether each view is query and key in turn; the two losses are added.
        projector: widths of the projection head's layers. The hidden one is as wide as the features (of ResNet-50).
    """

    temperature: float = 0.2
    momentum: float = 0.999
    queue: int = 65_536
    symmetric: bool = False
    projector: tuple[int, ...] = (2048, 128)

    name: ClassVar[str] = "moco"
    optimizer: ClassVar[OptimizerSettings] = OptimizerSettings("sgd", weight_decay=1e-4, exclude_1d=False)
    learning_rate: ClassVar[float] = 0.03

    def __post_init__(self) -> None:
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "finite and positive")
        require(0 <= self.momentum <= 1, "momentum", self.momentum, "between 0 and 1")
        require(self.queue >= 0, "queue", self.queue, "0 or more rows")
        require_widths("projector", self.projector)

    @property
    def needs(self) -> Needs:
        queue = (self.queue, self.projector[-1] if self.queue else 0)
        online, target = ((0, 1), (0, 1)) if self.symmetric else ((0,), (1,))
        kept = (self.momentum, self.momentum)
        return Needs(online, target, momentum=kept, queue=queue, whole_batch=not self.queue)

    def views(self, size: int) -> tuple[ViewSettings, ...]:
        return moco_views(size)

    def head(self, features: int, seed: int) -> nn.Module:
        return build_mlp(features, self.projector, seed, hidden_norm=False)

    @in_wide_dtype
    def loss(self, outputs: Sequence[torch.Tensor], constants: Constants) -> torch.Tensor:
        """InfoNCE of queries (B, D) with the keys (B, D) of the other view and the queue (K, D) (MoCo, Eq. 1).

        In O(BK) memory. Without a queue it is :func:`info_nce_loss`, whose queries-to-keys half is MoCo v3's
        (Algorithm 1) but for v3's factor 2τ; the keys-to-queries half is not in v3.

        Raises:
            UserError: if the queue is shorter than the keys of a step.
        """
        targets = constants["targets"]
        found = sum(map(len, targets))
        if 0 < self.queue < found:
            raise UserError(
                f"--pretext.queue {self.queue} is shorter than the {found} keys of a step: make it longer, or 0 for "
                "negatives from the batch."
            )
        pairs = zip(outputs, reversed(targets), strict=True)
        return torch.stack([self._contrast(queries, keys, constants) for queries, keys in pairs]).sum()

    def _contrast(self, queries: torch.Tensor, keys: torch.Tensor, constants: Constants) -> torch.Tensor:
        """−log(e^p / (e^p + Σ e^n)), as log(1 + e^x) of x = log Σ e^n − p, which keeps its digits where p is large."""
        if not self.queue:
            return info_nce_loss(queries, keys, self.temperature)
        queries, keys = unit_rows(queries), unit_rows(keys)
        positives = (queries * keys).sum(1) / self.temperature  # (B,)
        negatives = queries @ constants["queue"].T / self.temperature  # (B, K)
        return F.softplus(negatives.logsumexp(1) - positives, threshold=NO_APPROXIMATION).mean()
