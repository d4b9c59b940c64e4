"""SimCLR (Chen et al., 2020), as BiSSL section 4.2.1 sets it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.models import build_projector
from bissl_fast.ops.nt_xent import nt_xent_loss


@dataclass(frozen=True)
class SimCLR:
    """The two views of an image attract each other and repel those of all other images of the batch.

    Attributes:
        temperature: τ of NT-Xent.
        projector: widths of the projection head's layers.
    """

    temperature: float = 0.5
    projector: tuple[int, ...] = (256, 256, 256)

    views = 2
    """Number of views that :meth:`loss` takes."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"--pretext.temperature must be finite and positive, found {self.temperature}.")
        if not self.projector or min(self.projector) < 1:
            raise UserError(f"--pretext.projector takes positive layer widths, found {self.projector}.")

    def head(self, features: int, seed: int) -> nn.Module:
        """The projection head on ``features`` backbone features."""
        return build_projector(features, self.projector, seed)

    def loss(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """NT-Xent of the projections ``(B, D)`` of two views, a scalar in float32 or better."""
        first, second = outputs
        return nt_xent_loss(first, second, self.temperature)
