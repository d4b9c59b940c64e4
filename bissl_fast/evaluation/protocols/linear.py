"""Linear evaluation: a linear classifier on frozen features (Chen et al., SimCLR, 2020; GeSSL, section 6.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.data.sets.dataset import Splits
from bissl_fast.errors import UserError
from bissl_fast.evaluation.answers import told
from bissl_fast.evaluation.metrics import evaluate
from bissl_fast.evaluation.protocols.subject import (
    Labelled,
    Outcome,
    Score,
    Subject,
    Track,
    require_same_classes,
    silent,
)
from bissl_fast.models import build_classifier
from bissl_fast.training.schedules import set_learning_rate, warmup_cosine
from bissl_fast.training.supervised import downstream_loss


@dataclass(frozen=True)
class LinearSettings:
    """A linear classifier on frozen features; the defaults are GeSSL's (section 6.2).

    Attributes:
        optimizer: `sgd`, or FUSSL's `adam`.
        epochs: length, 500 in both papers.
        batch_size: features per step; the last, smaller batch is kept.
        learning_rate: the first rate; left out: 0.05 of `sgd`, as in GeSSL, 0.001 of `adam`, which FUSSL does not say.
        final_share: the last rate as a share of it, reached by a half cosine: 5e-6 in GeSSL.
        momentum: of `sgd`.
        weight_decay: added to the gradient.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    epochs: int = 500
    batch_size: int = 128
    learning_rate: float | None = None
    final_share: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise UserError("--linear.epochs and --linear.batch-size must be at least 1.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise UserError(f"--linear.learning-rate must be positive, found {self.learning_rate}.")

    @property
    def peak(self) -> float:
        """The first learning rate."""
        return self.learning_rate or {"sgd": 5e-2, "adam": 1e-3}[self.optimizer]

    def build(self, head: nn.Linear) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(head.parameters(), self.peak, weight_decay=self.weight_decay)
        return torch.optim.SGD(head.parameters(), self.peak, self.momentum, weight_decay=self.weight_decay)


def require(splits: Splits) -> None:
    """Raise the sentence for a set that linear evaluation makes no sense on."""
    require_same_classes(splits, "linear")


def linear(subject: Subject, settings: LinearSettings) -> Outcome:
    """`linear_top1` and `linear_top5` of all test images, or `linear_map` where images have several classes.

    Raises:
        UserError: if the set has other classes to test than to train, or the classifier diverges.
    """
    require(subject.splits)
    classes = len(subject.splits.train.classes)
    head = fit(subject.train, classes, settings, subject.seed, subject.device, subject.track)
    found = evaluate(head, _batches(subject.test, 4096, subject.device), subject.device)
    assert found.answers is not None
    scores = {f"linear_{key}": Score(value) for key, value in found.metrics.items()}
    return Outcome(scores, {"linear": told([found.answers])})


def fit(
    train: Labelled,
    classes: int,
    settings: LinearSettings,
    seed: int,
    device: torch.device | str = "cpu",
    track: Track = silent,
) -> nn.Linear:
    """The classifier, fitted to features.

    Args:
        train: features and labels.
        classes: how many there are.
        settings: of the optimiser.
        seed: of first weights and order.
        device: where it is fitted.
        track: shows progress.

    Example:
        >>> corners = Labelled(np.eye(3, dtype=np.float32), np.arange(3))
        >>> fit(corners, 3, LinearSettings(), 0)(torch.eye(3)).argmax(1).tolist()
        [0, 1, 2]
    """
    features, targets = torch.from_numpy(train.features).to(device), torch.from_numpy(train.labels).to(device)
    head = build_classifier(features.shape[1], classes, seed).to(device)
    optimizer, count = settings.build(head), len(features)
    starts = range(0, count, settings.batch_size)
    total = settings.epochs * len(starts)
    for epoch in track(range(settings.epochs), settings.epochs, "linear classifier, epochs"):
        order = torch.from_numpy(shuffled(count, seed, epoch)).to(device)
        for batch, start in enumerate(starts):
            rows = order[start : start + settings.batch_size]
            rate = warmup_cosine(epoch * len(starts) + batch, total, settings.peak, floor=settings.final_share)
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad(set_to_none=True)
            downstream_loss(head(features[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return head


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """In which order an epoch shows the images: another one each time."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def _batches(labelled: Labelled, size: int, device: torch.device | str) -> Iterator[Batch]:
    """Features in the place of images."""
    for start in range(0, len(labelled.features), size):
        rows = np.arange(start, min(start + size, len(labelled.features)))
        labels = torch.from_numpy(labelled.labels[rows]).to(device)
        yield Batch((torch.from_numpy(labelled.features[rows]).to(device),), labels, rows, 0)
