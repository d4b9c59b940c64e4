"""Test metrics of a classifier: accuracy, or of a multi-label set mean average precision, and the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.evaluation.average_precision import Difficult, MeanAveragePrecision
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


METRICS = (
    Metric("top1", "Top-1", "top-1 accuracy", "accuracy"),
    Metric("top5", "Top-5", "top-5 accuracy", "accuracy"),
    Metric("map", "mAP", "11-point mAP", "precision"),
    Metric("linear_top1", "Linear top-1", "top-1 accuracy of a linear classifier", "accuracy"),
    Metric("linear_top5", "Linear top-5", "top-5 accuracy of a linear classifier", "accuracy"),
    Metric("linear_map", "Linear mAP", "11-point mAP of a linear classifier", "precision"),
    Metric("knn_top1", "k-NN top-1", "top-1 accuracy of nearest neighbours", "accuracy"),
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


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one pass over a labelled split.

    Attributes:
        metrics: in percent, by key. `top1` and `top5`: images whose label has the highest output, or is among the five
            highest; `top5` is 100 where there are five classes or fewer. Of a multi-label set `map` alone: VOC2007's
            11-point mean average precision.
        loss: mean over the images, in nats.
        count: number of images.
    """

    metrics: Mapping[str, float]
    loss: float
    count: int

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
) -> Evaluation:
    """Classify every image once, in eval mode and without gradients.

    The device is waited for once, at the end.

    Args:
        model: maps images (B, 3, H, W) to class scores (B, classes).
        batches: labelled batches; `views[0]` is classified.
        device: where the model lives.
        loss: of scores and targets, mean over the images.
        difficult: of a multi-label set, what images are to a class that they show only as difficult objects.

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
    meters: dict[str, Meter] = {}
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    with evaluation_mode(model), torch.inference_mode():
        for batch in batches:
            if batch.labels is None:
                raise UserError("Accuracy needs labels, and this split has none: evaluate a labelled split.")
            targets = batch.labels.to(device)
            scores = model(batch.views[0].to(device)).float()  # (B, classes)
            meters = meters or _meters(scores, targets, difficult)
            for meter in meters.values():
                meter.update(scores, targets)
            loss_sum += len(targets) * loss(scores, targets)
            count += len(targets)
    if not count:
        raise UserError("There is no image to evaluate: the split is empty.")
    mean = float(loss_sum) / count
    if not math.isfinite(mean):  # NaN or +∞ among the scores always reaches the log-sum
        raise NonFiniteError(
            "The model's outputs are not finite, so its accuracy would mean nothing: "
            "training diverged; lower the learning rate and run it again."
        )
    return Evaluation({key: 100 * float(meter.compute()) for key, meter in meters.items()}, mean, count)


class Meter(Protocol):
    """A metric of scores (B, classes) and targets, batch by batch."""

    def update(self, scores: torch.Tensor, targets: torch.Tensor) -> None: ...

    def compute(self) -> Any: ...


def _meters(scores: torch.Tensor, targets: torch.Tensor, difficult: Difficult) -> dict[str, Meter]:
    """By key, the metrics of a set with targets like these."""
    from torchmetrics.classification import MulticlassAccuracy

    classes = _class_count(scores)
    if targets.ndim == 2:
        return {"map": MeanAveragePrecision(difficult)}
    return {
        "top1": MulticlassAccuracy(classes, top_k=1, average="micro").to(scores.device),
        "top5": MulticlassAccuracy(classes, top_k=min(5, classes), average="micro").to(scores.device),
    }


def _class_count(scores: torch.Tensor) -> int:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise UserError(
            f"The model returned shape {tuple(scores.shape)} where (B, classes) with at least two classes "
            "was expected: evaluate the backbone together with its downstream head."
        )
    return scores.shape[1]
