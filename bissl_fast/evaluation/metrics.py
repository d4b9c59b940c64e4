"""Test metrics of a classifier: accuracy, or of a multi-label set mean average precision, and the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.evaluation.answers import Answers, Rankings, Record, record_of
from bissl_fast.evaluation.average_precision import Difficult
from bissl_fast.ops.collectives import Ranks, gathered_unequal
from bissl_fast.training.loop import NonFiniteError
from bissl_fast.training.supervised import DownstreamLoss, downstream_loss

if TYPE_CHECKING:
    from bissl_fast.data.pipelines.loader import Batch


@dataclass(frozen=True)
class Metric:
    """What a metric is called.

    Attributes:
        key: in `results.json`, and behind `val_` in `metrics.jsonl`.
        row: in the table.
        words: in a sentence.
        quantity: what the table shows.
    """

    key: str
    row: str
    words: str
    quantity: str

    @property
    def frozen(self) -> bool:
        """Whether it is of a protocol on a backbone as it is, not of models that were fine-tuned from it."""
        return self.key not in ("top1", "top5", "map")


METRICS = (
    Metric("top1", "Top-1", "top-1 accuracy", "accuracy"),
    Metric("top5", "Top-5", "top-5 accuracy", "accuracy"),
    Metric("map", "mAP", "11-point mAP", "precision"),
    Metric("linear_top1", "Linear top-1", "top-1 accuracy of a linear classifier", "accuracy"),
    Metric("linear_top5", "Linear top-5", "top-5 accuracy of a linear classifier", "accuracy"),
    Metric("linear_map", "Linear mAP", "11-point mAP of a linear classifier", "precision"),
    Metric("knn_top1", "k-NN top-1", "top-1 accuracy of nearest neighbours", "accuracy"),
    Metric("finetune_top1", "Fine-tuned top-1", "top-1 accuracy after fine-tuning", "accuracy"),
    Metric("finetune_top5", "Fine-tuned top-5", "top-5 accuracy after fine-tuning", "accuracy"),
    Metric("finetune_map", "Fine-tuned mAP", "11-point mAP after fine-tuning", "precision"),
    Metric("semi_1_top1", "1 % of labels, top-1", "top-1 accuracy with 1 % of the labels", "accuracy"),
    Metric("semi_1_top5", "1 % of labels, top-5", "top-5 accuracy with 1 % of the labels", "accuracy"),
    Metric("semi_10_top1", "10 % of labels, top-1", "top-1 accuracy with 10 % of the labels", "accuracy"),
    Metric("semi_10_top5", "10 % of labels, top-5", "top-5 accuracy with 10 % of the labels", "accuracy"),
    Metric("fewshot_5w1s", "5-way 1-shot", "5-way 1-shot accuracy", "accuracy"),
    Metric("fewshot_5w5s", "5-way 5-shot", "5-way 5-shot accuracy", "accuracy"),
    Metric("fewshot_20w1s", "20-way 1-shot", "20-way 1-shot accuracy", "accuracy"),
    Metric("crossdomain_5w5s", "5-way 5-shot, cross-domain", "5-way 5-shot cross-domain accuracy", "accuracy"),
    Metric("crossdomain_5w20s", "5-way 20-shot, cross-domain", "5-way 20-shot cross-domain accuracy", "accuracy"),
)
"""All there are, fine-tuning's before those of protocols. Of those that a data set has, models are compared by the
first."""

_BESIDE = {
    "mean_per_class": ("mean per class", "mean accuracy per class", "accuracy"),
    "ece": ("calibration error", "expected calibration error", "error"),
    "map_ignored": ("mAP, difficult ignored", "11-point mAP without difficult objects", "precision"),
    "map_present": ("mAP, difficult present", "11-point mAP with difficult objects as present", "precision"),
}
BESIDE = tuple(
    Metric(f"{name}_{key}", f"{title} {row}", words, quantity)
    for name, title in (("linear", "Linear"), ("knn", "k-NN"), ("finetune", "Fine-tuned"))
    for key, (row, words, quantity) in _BESIDE.items()
)
"""What protocols tell beside, by which nothing is compared."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one pass over a labelled split.

    Attributes:
        metrics: in percent, by key. `top1` and `top5`: images whose label has the highest output, or is among the five
            highest; `top5` is 100 where there are five classes or fewer. Of a multi-label set `map` alone: VOC2007's
            11-point mean average precision.
        loss: mean over the images, in nats.
        count: number of images.
        answers: what each image is taken for, in their order.
    """

    metrics: Mapping[str, float]
    loss: float
    count: int
    answers: Answers | Rankings | None = None

    @property
    def key(self) -> str:
        """Of the metric that models are compared by."""
        return next(metric.key for metric in METRICS if metric.key in self.metrics)

    @property
    def score(self) -> float:
        """The value of that metric."""
        return self.metrics[self.key]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode, and give every submodule its own mode back afterwards.

    `model.train()` alone would not do: it would wake the submodules that the caller keeps in eval mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device | str,
    loss: DownstreamLoss = downstream_loss,
    difficult: Difficult = "ignored",
    ranks: Ranks | None = None,
) -> Evaluation:
    """Classify every image once, in eval mode and without gradients.

    The device is waited for once, at the end.

    Args:
        model: maps images (B, 3, H, W) to class scores (B, classes).
        batches: labelled batches; `views[0]` is classified.
        device: where the model lives.
        loss: of scores and targets, mean over the images.
        difficult: of a multi-label set, what images are to a class that they show only as difficult objects.
        ranks: each of which classifies images of its own; the metrics are over all of them.

    Returns:
        The metrics over all images, each image weighing the same whatever its batch.

    Raises:
        UserError: if there is no image, a batch has no labels, the model has fewer than two outputs, or no image of a
            multi-label set shows any class.
        NonFiniteError: if an output is not finite.

    Example:
        >>> evaluation = evaluate(model, sequential_batches(splits.test, view, 256, "cpu"), "cpu")  # doctest: +SKIP
        >>> print(f"{evaluation.score:.1f} %")  # doctest: +SKIP
    """
    record: Record | None = None
    accuracies: dict[str, TopAccuracy] = {}
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    with evaluation_mode(model), torch.inference_mode():
        for scores, targets in _of_all(_scored(model, batches, device), ranks):
            if record is None:
                accuracies, record = _accuracies(scores, targets), record_of(scores, targets)
            record.update(scores, targets)
            for accuracy in accuracies.values():
                accuracy.update(scores, targets)
            loss_sum += len(targets) * loss(scores, targets)
            count += len(targets)
    if record is None:
        raise UserError("There is no image to evaluate: the split is empty.")
    mean = float(loss_sum) / count
    if not math.isfinite(mean):  # NaN or +∞ among the scores always reaches the log-sum
        raise NonFiniteError(
            "The model's outputs are not finite, so its accuracy would mean nothing: "
            "training diverged; lower the learning rate and run it again."
        )
    answers = record.compute()
    if isinstance(answers, Rankings):
        return Evaluation({"map": answers.mean(difficult)}, mean, count, answers)
    return Evaluation({key: found.compute() for key, found in accuracies.items()}, mean, count, answers)


Scored = Iterable[tuple[torch.Tensor, torch.Tensor]]


def _scored(model: nn.Module, batches: Iterable[Batch], device: torch.device | str) -> Scored:
    """(B, classes) float32 scores and the targets of each batch."""
    for batch in batches:
        if batch.labels is None:
            raise UserError("Accuracy needs labels, and this split has none: evaluate a labelled split.")
        yield model(batch.views[0].to(device)).float(), batch.labels.to(device)


def _of_all(scored: Scored, ranks: Ranks | None) -> Scored:
    """The same of the images of all ranks, rank after rank."""
    if ranks is None:
        return scored
    scores, targets = (torch.cat(part) for part in zip(*scored, strict=True))
    return [(gathered_unequal(scores, ranks), gathered_unequal(targets, ranks))]


class TopAccuracy:
    """Images whose class is among those of the k highest scores. Of equal scores the lower class is the higher.

    torchmetrics 1.9 takes the first of equal scores where k is 1, and any of them where it is more, so that its top-5
    accuracy can lie below its top-1.

    Args:
        k: how many.
        device: where it counts.
    """

    def __init__(self, k: int, device: torch.device | str) -> None:
        self._k, self._count = k, 0
        self._right = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        """Add (B, classes) scores and (B,) targets."""
        own, lower = scores.gather(1, targets[:, None]), torch.arange(scores.shape[1], device=scores.device)
        before = (scores > own) | ((scores == own) & (lower < targets[:, None]))  # (B, classes)
        self._right += (before.sum(dim=1) < self._k).sum()
        self._count += len(targets)

    def compute(self) -> float:
        """In percent, of a quotient in float32: as it has always been rounded, so that no best epoch changes."""
        return 100 * float(np.float32(int(self._right)) / np.float32(self._count))


def _accuracies(scores: torch.Tensor, targets: torch.Tensor) -> dict[str, TopAccuracy]:
    """By key, those of a set with targets like these: none of several classes per image."""
    _require_classes(scores)
    return {f"top{k}": TopAccuracy(k, scores.device) for k in (1, 5)} if targets.ndim == 1 else {}


def _require_classes(scores: torch.Tensor) -> None:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise UserError(
            f"The model returned shape {tuple(scores.shape)} where (B, classes) with at least two classes "
            "was expected: evaluate the backbone together with its downstream head."
        )
