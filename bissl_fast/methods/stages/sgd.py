"""Stochastic gradient descent on the downstream task, of whichever stage."""

from dataclasses import dataclass

import torch

from bissl_fast.methods.checks import require
from bissl_fast.training.schedules import set_learning_rate, warmup_cosine

_SGD = "(upper, gessl.outer, abrl.outer, finetune-bissl or finetune-baseline)"


@dataclass(frozen=True)
class SGDSettings:
    """Stochastic gradient descent on the downstream task.

    Attributes:
        learning_rate: the peak.
        weight_decay: added to the gradient.
        momentum: μ.
        final_share: the last rate as a share of the peak, reached by a half cosine.
    """

    learning_rate: float
    weight_decay: float
    momentum: float = 0.9
    final_share: float = 0.0

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"{_SGD}.learning-rate", self.learning_rate, "positive")
        require(self.weight_decay >= 0, f"{_SGD}.weight-decay", self.weight_decay, "0 or more")
        require(0 <= self.momentum < 1, f"{_SGD}.momentum", self.momentum, "in [0, 1)")
        require(0 <= self.final_share <= 1, f"{_SGD}.final-share", self.final_share, "between 0 and 1")

    def build(self, parameters: list[torch.nn.Parameter]) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, self.learning_rate, self.momentum, weight_decay=self.weight_decay)

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int, total: int) -> float:
        """Give an optimiser the rate of a step, 0-based, of so many; returns it."""
        rate = warmup_cosine(step, total, self.learning_rate, floor=self.final_share)
        set_learning_rate(optimizer, rate)
        return rate
