"""Conventional pretext training: minimise L^P over backbone and projection head (BiSSL, section 4.2.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bissl_fast.data.pipelines.loader import Loader
from bissl_fast.errors import UserError
from bissl_fast.methods.checks import require
from bissl_fast.models import Network
from bissl_fast.pretext import SimCLR, pretext_loss
from bissl_fast.training.lars import LARS
from bissl_fast.training.loop import Values
from bissl_fast.training.precision import Forward
from bissl_fast.training.schedules import set_learning_rate, warmup_cosine


@dataclass(frozen=True)
class LARSSettings:
    """The optimiser of the pretext task, for the pretext stages and BiSSL's lower level.

    Attributes:
        weight_decay: added to the gradient as wd · p.
        momentum: μ.
        trust_coefficient: η.
        exclude_1d: leave biases and batch-norm weights without decay and adaptation, as VICReg does.
        scale_learning_rate: multiply learning rates by batch size / 256 ("base" learning rate).
    """

    weight_decay: float = 1e-6
    momentum: float = 0.9
    trust_coefficient: float = 1e-3
    exclude_1d: bool = True
    scale_learning_rate: bool = True

    def __post_init__(self) -> None:
        require(self.weight_decay >= 0, "pretrain.lars.weight-decay", self.weight_decay, "0 or more")
        require(0 <= self.momentum < 1, "pretrain.lars.momentum", self.momentum, "in [0, 1)")
        require(self.trust_coefficient > 0, "pretrain.lars.trust-coefficient", self.trust_coefficient, "positive")

    def build(self, parameters: Sequence[torch.nn.Parameter]) -> LARS:
        """The optimiser; its rate is set before every step."""
        return LARS(parameters, 0.0, self.weight_decay, self.momentum, self.trust_coefficient, self.exclude_1d)

    def peak(self, learning_rate: float, batch_size: int) -> float:
        """The highest rate for a batch size."""
        return learning_rate * (batch_size / 256 if self.scale_learning_rate else 1.0)


@dataclass(frozen=True)
class PretrainSettings:
    """Pretext training, and the length of BiSSL's pretext warm-up.

    Attributes:
        epochs: of the pretext warm-up; 0 leaves the backbone as it is.
        baseline_epochs: likewise of the baseline's pretext stage; left out: as many steps as warm-up and BiSSL's
            lower level have together.
        batch_size: B images, so 2B views.
        learning_rate: peak of the schedule.
        warmup_epochs: linear from 0.
        final_share: the last rate as a share of the peak, reached by a half cosine.
        lars: the optimiser.
    """

    epochs: float = 500
    baseline_epochs: float | None = None
    batch_size: int = 1024
    learning_rate: float = 4.8
    warmup_epochs: float = 10
    final_share: float = 0.0
    lars: LARSSettings = LARSSettings()

    def __post_init__(self) -> None:
        require(self.epochs >= 0, "pretrain.epochs", self.epochs, "0 or more")
        if self.baseline_epochs is not None:
            require(self.baseline_epochs >= 0, "pretrain.baseline-epochs", self.baseline_epochs, "0 or more")
        require(self.batch_size >= 2, "pretrain.batch-size", self.batch_size, "at least 2")
        require(self.learning_rate > 0, "pretrain.learning-rate", self.learning_rate, "positive")
        require(self.warmup_epochs >= 0, "pretrain.warmup-epochs", self.warmup_epochs, "0 or more")
        require(0 <= self.final_share <= 1, "pretrain.final-share", self.final_share, "between 0 and 1")


class PretrainTask:
    """One step: two views, NT-Xent, LARS.

    Args:
        network: backbone and projection head, trained in place.
        task: the pretext task.
        loader: its batches of views.
        settings: schedule and optimiser.
        steps: how many steps the stage has.
        warmup: how many of them are warm-up.
        forward: precision context of a forward pass.
    """

    def __init__(
        self,
        network: Network,
        task: SimCLR,
        loader: Loader,
        settings: PretrainSettings,
        steps: int,
        warmup: int,
        forward: Forward,
    ) -> None:
        self.network, self.loader, self.settings = network, loader, settings
        self.steps, self.images_per_step, self.log_every = steps, settings.batch_size, max(1, min(50, steps // 50))
        self._warmup = warmup
        self._loss = pretext_loss(task, forward)
        self._optimizer = settings.lars.build(list(network.parameters()))

    def step(self, index: int) -> Values:
        settings = self.settings
        peak = settings.lars.peak(settings.learning_rate, settings.batch_size)
        rate = warmup_cosine(index, self.steps, peak, self._warmup, settings.final_share)
        set_learning_rate(self._optimizer, rate)
        self.network.train()
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self.network, self.loader.load(index).views)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return {"loss": loss.detach(), "lr": rate}

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


def steps_per_epoch(images: int, batch_size: int, setting: str) -> int:
    """Whole batches in a set.

    Raises:
        UserError: if there is none.
    """
    if batch_size > images:
        raise UserError(
            f"a batch of {batch_size} images exceeds the {images} images of the set; pass {setting} {images} or less."
        )
    return images // batch_size


def stage_steps(epochs: float, steps_per_epoch: int) -> int:
    """Steps of a stage: one at least, unless it has no epochs at all."""
    return max(1, round(epochs * steps_per_epoch)) if epochs else 0
