"""Test metrics of a classifier: top-1 and top-5 accuracy and cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bissl_fast.errors import UserError

if TYPE_CHECKING:
    from bissl_fast.data.loader import Batch


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one pass over a labelled split.

    Attributes:
        top1: images whose label has the highest output, in percent.
        top5: images whose label is among the five highest outputs, in percent; 100 where there are
            five classes or fewer.
        loss: cross-entropy, mean over the images, in nats.
        count: number of images.
    """

    top1: float
    top5: float
    loss: float
    count: int


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


def evaluate(model: nn.Module, batches: Iterable[Batch], device: torch.device | str) -> Evaluation:
    """Classify every image once, in eval mode and without gradients.

    The device is waited for once, at the end.

    Args:
        model: maps images (B, 3, H, W) to class scores (B, classes).
        batches: labelled batches; `views[0]` is classified.
        device: where the model lives.

    Returns:
        The metrics over all images, each image weighing the same whatever its batch.

    Raises:
        UserError: if there is no image, a batch has no labels, the model has fewer than two outputs, or
            an output is not finite.

    Example:
        >>> evaluation = evaluate(model, sequential_batches(splits.test, view, 256, "cpu"), "cpu")  # doctest: +SKIP
        >>> print(f"{evaluation.top1:.1f} %")  # doctest: +SKIP
    """
    from torchmetrics.classification import MulticlassAccuracy

    top1 = top5 = None
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    with evaluation_mode(model), torch.inference_mode():
        for batch in batches:
            if batch.labels is None:
                raise UserError("Accuracy needs labels, and this split has none: evaluate a labelled split.")
            labels = batch.labels.to(device)
            scores = model(batch.views[0].to(device)).float()  # (B, classes)
            if top1 is None or top5 is None:
                classes = _class_count(scores)
                top1 = MulticlassAccuracy(classes, top_k=1, average="micro").to(device)
                top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro").to(device)
            top1.update(scores, labels)
            top5.update(scores, labels)
            loss_sum += cross_entropy(scores, labels, reduction="sum")
            count += len(labels)
    if top1 is None or top5 is None:
        raise UserError("There is no image to evaluate: the split is empty.")
    loss = float(loss_sum) / count
    if not math.isfinite(loss):  # a NaN or infinite score always reaches the log-sum
        raise UserError(
            "The model's outputs are not finite, so its accuracy would mean nothing: "
            "training diverged; lower the learning rate and run it again."
        )
    return Evaluation(100 * float(top1.compute()), 100 * float(top5.compute()), loss, count)


def _class_count(scores: torch.Tensor) -> int:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise UserError(
            f"The model returned shape {tuple(scores.shape)} where (B, classes) with at least two classes "
            "was expected: evaluate the backbone together with its downstream head."
        )
    return scores.shape[1]
