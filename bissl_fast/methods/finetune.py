"""Supervised training on the downstream task: the head's warm-up and fine-tuning (BiSSL, section 4.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bissl_fast.bilevel import frozen_buffers
from bissl_fast.data.pipelines.loader import Loader
from bissl_fast.evaluation.average_precision import Difficult
from bissl_fast.evaluation.metrics import Evaluation
from bissl_fast.methods.checks import require
from bissl_fast.models import Network
from bissl_fast.training.loop import Values
from bissl_fast.training.precision import Forward
from bissl_fast.training.schedules import set_learning_rate, warmup_cosine
from bissl_fast.training.supervised import DownstreamLoss, MultilabelLoss, downstream_loss

_SGD = "(upper, finetune-bissl or finetune-baseline)"


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


@dataclass(frozen=True)
class HeadSettings:
    """Warm-up of the downstream head on the frozen backbone, at a constant rate.

    Its rate and decay are those of the upper level (Table 3).

    Attributes:
        epochs: length.
        leak_statistics: let downstream images move the backbone's batch-norm statistics, which θ_D then starts from, as
            the released code.
    """

    epochs: int = 20
    leak_statistics: bool = False

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "head.epochs", self.epochs, "at least 1")


@dataclass(frozen=True)
class FineTuneSettings:
    """Fine-tuning of backbone and a new linear head; the epoch of the best validation score is kept.

    Attributes:
        epochs: length.
        batch_size: images per step; also of the head's warm-up and the upper level.
        seeds: how many models are trained from each backbone.
        multilabel_loss: of a set with several classes per image, likewise; others have cross-entropy. `bce`: one
            logistic loss per class, the classes' sum; `cross-entropy`: softmax against the multi-hot target, as the
            released code.
        difficult: what the average precision of such a set makes of images that show a class only as difficult objects:
            `ignored`, as VOC2007 defines it, or `present`, as the released code.
    """

    epochs: int = 400
    batch_size: int = 256
    seeds: int = 10
    multilabel_loss: MultilabelLoss = "bce"
    difficult: Difficult = "ignored"

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "finetune.epochs", self.epochs, "at least 1")
        require(self.batch_size >= 2, "finetune.batch-size", self.batch_size, "at least 2")
        require(self.seeds >= 1, "finetune.seeds", self.seeds, "at least 1")


class HeadWarmupTask:
    """Fit the linear head on features of the frozen backbone: batch norms in train mode.

    Args:
        network: backbone and linear head; the head is trained in place.
        loader: labelled batches.
        sgd: optimiser settings.
        steps: length.
        forward: precision context of a forward pass.
        loss: of scores and targets.
        leak_statistics: let the batch norms' buffers move; else they are left alone.
    """

    def __init__(
        self,
        network: Network,
        loader: Loader,
        sgd: SGDSettings,
        steps: int,
        forward: Forward,
        loss: DownstreamLoss = downstream_loss,
        leak_statistics: bool = False,
    ) -> None:
        self.network, self.loader, self.sgd, self.forward = network, loader, sgd, forward
        self.loss, self._protected = loss, () if leak_statistics else (network.backbone,)
        self.steps, self.log_every = steps, max(1, min(50, steps // 20))
        self.images_per_step = loader.batch_size
        self._optimizer = sgd.build(list(network.head.parameters()))

    def step(self, index: int) -> Values:
        batch = self.loader.load(index)
        self.network.train()
        self._optimizer.zero_grad(set_to_none=True)
        with self.forward():
            with torch.no_grad(), frozen_buffers(*self._protected):
                features = self.network.backbone(batch.views[0])
            loss = self.loss(self.network.head(features), batch.target)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return {"loss": loss.detach(), "lr": self.sgd.learning_rate}

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


class FineTuneTask:
    """One step of SGD on the downstream loss; after each epoch the validation set, keeping the best weights so far.

    Args:
        network: backbone and linear head, trained in place.
        loader: labelled training batches.
        validate: evaluates a network on the validation set.
        sgd: optimiser settings.
        epochs: length.
        steps_per_epoch: batches between two validations.
        forward: precision context of a forward pass.
        loss: of scores and targets.
    """

    def __init__(
        self,
        network: Network,
        loader: Loader,
        validate: Callable[[Network], Evaluation],
        sgd: SGDSettings,
        epochs: int,
        steps_per_epoch: int,
        forward: Forward,
        loss: DownstreamLoss = downstream_loss,
    ) -> None:
        self.network, self.loader, self.sgd, self.forward = network, loader, sgd, forward
        self.steps, self.log_every, self.images_per_step = epochs * steps_per_epoch, steps_per_epoch, loader.batch_size
        self.best: dict[str, torch.Tensor] = {}
        self.best_score = -1.0
        self.loss, self._validate = loss, validate
        self._optimizer = sgd.build(list(network.parameters()))

    def step(self, index: int) -> Values:
        rate = warmup_cosine(index, self.steps, self.sgd.learning_rate, floor=self.sgd.final_share)
        set_learning_rate(self._optimizer, rate)
        batch = self.loader.load(index)
        self.network.train()
        self._optimizer.zero_grad(set_to_none=True)
        with self.forward():
            loss = self.loss(self.network(batch.views[0]), batch.target)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        values: dict[str, torch.Tensor | float] = {"loss": loss.detach(), "lr": rate}
        if (index + 1) % self.log_every == 0:
            values |= self._end_epoch((index + 1) // self.log_every)
        return values

    def _end_epoch(self, epoch: int) -> dict[str, float]:
        result = self._validate(self.network)
        if result.score > self.best_score:
            self.best_score = result.score
            self.best = {name: value.clone() for name, value in self.network.state_dict().items()}
        return {"epoch": epoch, f"val_{result.key}": result.score, "val_loss": result.loss}

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self.best,
            "best_score": self.best_score,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_score = state["best"], state["best_score"]
