"""SwAV (Caron et al., 2020): predict from each view to which prototypes another view of the image is assigned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import swav_views
from bissl_fast.models import build_mlp
from bissl_fast.ops.rows import unit_rows
from bissl_fast.pretext.recipe import OptimizerSettings
from bissl_fast.pretext.task import Constants, Needs, Output, PretextTask, require, require_widths
from bissl_fast.pretext.wide import in_wide_dtype


class PrototypeHead(nn.Module):
    """A projector to the unit sphere, and prototypes: ``(N, F)`` to embeddings ``(N, D)`` and scores ``(N, K)``.

    Args:
        projector: ``(N, F)`` to ``(N, D)``.
        prototypes: ``(N, D)`` to ``(N, K)``, without bias.
    """

    def __init__(self, projector: nn.Module, prototypes: nn.Linear) -> None:
        super().__init__()
        self.projector, self.prototypes = projector, prototypes

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = unit_rows(self.projector(features))
        return embeddings, self.prototypes(embeddings)


@dataclass(frozen=True)
class SwAV(PretextTask):
    """Each large view is assigned to prototypes, all of them equally full; every other view predicts that.

    The two large views are assigned, each on its own, and small ones only predict. Assignments are targets: no
    derivative passes through them. Prototypes have norm 1 at the start of a step. The queue of earlier embeddings,
    which the released code adds for batches of 256 images (with a rate of .6 for them, and prototypes that stand still
    for 5005 steps), is left out: take fewer prototypes for small batches.

    Attributes:
        temperature: τ of the prediction.
        epsilon: ε of the assignment; the smaller, the sharper.
        sinkhorn_iterations: how often prototypes and images are made equal in turn.
        prototypes: K.
        freeze_prototypes: in how many first steps the prototypes stand still; 313 are an epoch of 4096 ImageNet images
            a step.
        projector: widths of the projector's layers.
        local_views: small views beside the two large ones.
    """

    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    prototypes: int = 3000
    freeze_prototypes: int = 313
    projector: tuple[int, ...] = (2048, 128)
    local_views: int = 6

    name: ClassVar[str] = "swav"
    optimizer: ClassVar[OptimizerSettings] = OptimizerSettings("lars", weight_decay=1e-6, exclude_1d=False)
    learning_rate: ClassVar[float] = 0.3  # 4.8 for 4096 images

    def __post_init__(self) -> None:
        for setting in ("temperature", "epsilon"):
            require(0 < getattr(self, setting) < math.inf, setting, getattr(self, setting), "finite and positive")
        require(self.sinkhorn_iterations >= 1, "sinkhorn_iterations", self.sinkhorn_iterations, "at least 1")
        require(self.prototypes >= 2, "prototypes", self.prototypes, "at least 2: one always agrees")
        require(self.freeze_prototypes >= 0, "freeze_prototypes", self.freeze_prototypes, "0 or more steps")
        require_widths("projector", self.projector)
        require(self.local_views >= 0, "local_views", self.local_views, "0 or more")

    @property
    def needs(self) -> Needs:
        return Needs(local=self.local_views)

    def views(self, size: int) -> tuple[ViewSettings, ...]:
        return swav_views(size, self.local_views)

    def head(self, features: int, seed: int) -> nn.Module:
        projector = build_mlp(features, self.projector, seed)
        prototypes = build_mlp(self.projector[-1], (self.prototypes,), seed + 1, last_bias=False)[0]
        assert isinstance(prototypes, nn.Linear)
        return PrototypeHead(projector, prototypes)

    @in_wide_dtype
    def loss(self, outputs: Sequence[Output], constants: Constants) -> torch.Tensor:
        """Cross-entropy, mean over the batch, and over all pairs of an assigned view and another (Eq. 1, 2, 6).

        As in the released code; the paper's Eq. 1 adds the two directions, which is twice as much.

        Args:
            outputs: embeddings (B, D) and scores (B, K) of all views, the two large ones first.
            constants: none.
        """
        scores = [scores for _, scores in outputs]
        codes = [self.assign(view.detach()) for view in scores[:2]]
        logs = [(view / self.temperature).log_softmax(1) for view in scores]
        pairs = [(code, log) for k, code in enumerate(codes) for view, log in enumerate(logs) if view != k]
        return -torch.stack([(code * log).sum(1).mean() for code, log in pairs]).mean()

    def assign(self, scores: torch.Tensor) -> torch.Tensor:
        """Sinkhorn's algorithm on exp(scores / ε): rows sum to 1, columns about to B / K (Eq. 3 to 5).

        By logarithms, so that no ε overflows: in the released code exp does from scores of 88 ε on in float32.

        Args:
            scores: (B, K) of one view.
        """
        logs = scores / self.epsilon
        for _ in range(self.sinkhorn_iterations):
            logs = logs.log_softmax(0).log_softmax(1)  # as in the released code, the images have the last word
        return logs.exp()

    def log_prototypes(self, output: Output) -> torch.Tensor:
        """The prediction, log softmax of the scores over τ (Eq. 2)."""
        scores: torch.Tensor = output[1]
        return (scores / self.temperature).log_softmax(1)

    def begin_step(self, head: nn.Module) -> None:
        """Prototypes get norm 1."""
        assert isinstance(head, PrototypeHead)
        head.prototypes.weight.copy_(unit_rows(head.prototypes.weight))

    def hold(self, head: nn.Module, step: int) -> None:
        """Prototypes of the first steps keep their directions."""
        assert isinstance(head, PrototypeHead)
        if step < self.freeze_prototypes:
            head.prototypes.weight.grad = None
