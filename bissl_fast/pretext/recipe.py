"""The optimiser that a pretext task was published with."""

import math
from dataclasses import dataclass
from typing import Literal

from bissl_fast.errors import UserError

Kind = Literal["lars", "sgd", "adam", "adamw"]


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimiser of the pretext task, for the pretext stages and BiSSL's lower level.

    Attributes:
        kind: `lars` (You et al., 2017, in VICReg's form), `sgd`, `adam` or `adamw`.
        weight_decay: added to the gradient as wd · p; of `adamw` taken from the weight itself.
        final_weight_decay: where the decay goes by a half cosine; left out: it stays.
        momentum: μ of `lars` and `sgd`, β₁ of the others.
        trust_coefficient: η of `lars`.
        exclude_1d: leave biases and batch-norm weights without decay and adaptation, as VICReg does.
        rate_1d: rate of biases and batch-norm weights as a share of that of all others.
        scale_learning_rate: multiply learning rates by batch size / 256 ("base" learning rate).
        clip: largest norm of a gradient over all weights; left out: any.
    """

    kind: Kind = "lars"
    weight_decay: float = 1e-6
    final_weight_decay: float | None = None
    momentum: float = 0.9
    trust_coefficient: float = 1e-3
    exclude_1d: bool = True
    rate_1d: float = 1.0
    scale_learning_rate: bool = True
    clip: float | None = None

    def __post_init__(self) -> None:
        for name, holds, expected in (
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("final_weight_decay", 0 <= (self.final_weight_decay or 0) < math.inf, "0 or more"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("trust_coefficient", 0 < self.trust_coefficient < math.inf, "positive"),
            ("rate_1d", 0 < self.rate_1d < math.inf, "positive"),
            ("clip", self.clip is None or 0 < self.clip < math.inf, "positive"),
        ):
            if not holds:
                setting = f"--pretrain.optimizer.{name.replace('_', '-')}"
                raise UserError(f"{setting} must be {expected}, found {getattr(self, name)}.")

    def peak(self, learning_rate: float, batch_size: int) -> float:
        """The highest rate for a batch size."""
        return learning_rate * (batch_size / 256 if self.scale_learning_rate else 1.0)

    def decay_at(self, progress: float) -> float:
        """Weight decay after a share of all steps."""
        if self.final_weight_decay is None:
            return self.weight_decay
        return half_cosine(self.weight_decay, self.final_weight_decay, progress)


def half_cosine(first: float, last: float, progress: float) -> float:
    """From ``first`` at ``progress`` 0 to ``last`` at 1, level at both ends.

    Example:
        >>> half_cosine(0.0, 4.0, 0.5)
        2.0
    """
    return last - (last - first) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
