"""What a model takes every image of a split for, and what follows from it beside accuracy.

Of one class per image: accuracy by class, confusion and calibration. Of several: average precision by class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bissl_fast.data.sets.dataset import Targets
from bissl_fast.errors import UserError
from bissl_fast.evaluation.average_precision import CONVENTIONS, Difficult, average_precisions

BINS = 15
"""Of equal width, between 0 and 1, that confidences are sorted into."""


@dataclass(frozen=True)
class Reliability:
    """Images by their confidence, in bins (k/15, (k + 1)/15] as of Guo et al. (2017); 0 belongs to the first.

    Attributes:
        counts: (15,) int64, images in each bin.
        confidence: (15,) mean of it, between 0 and 1; NaN where there is no image.
        accuracy: (15,) share of images that are taken for what they are; NaN likewise.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error: |accuracy − confidence|, mean over the images, between 0 and 1."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float(gaps @ self.counts[filled] / self.counts.sum())


@dataclass(frozen=True, eq=False)
class Answers:
    """Of images with one class each.

    Attributes:
        labels: (N,) int64.
        predicted: (N,) int64, the class of the highest score.
        confidence: (N,) its probability, floating.
        classes: how many there are.

    Example:
        >>> found = Answers(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0.9, 0.6, 0.8]), 2)
        >>> found.confusion().tolist(), found.per_class().tolist(), round(found.reliability().error, 3)
        ([[1, 1], [0, 1]], [50.0, 100.0], 0.3)
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[Any]
    classes: int

    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes): how many images of a row's class are taken for a column's."""
        from sklearn.metrics import confusion_matrix

        counts: NDArray[np.int64] = confusion_matrix(self.labels, self.predicted, labels=np.arange(self.classes))
        return counts

    def per_class(self) -> NDArray[np.float64]:
        """(classes,) accuracy in percent on the images of a class; NaN where there is none."""
        counts = self.confusion()
        return 100 * _quotient(np.diag(counts), counts.sum(axis=1))

    def reliability(self) -> Reliability:
        """The images by their confidence."""
        edges = (np.arange(1, BINS) / BINS).astype(self.confidence.dtype)
        bins = np.searchsorted(edges, self.confidence, side="left")  # edges[k - 1] < confidence <= edges[k]
        counts = np.bincount(bins, minlength=BINS)
        confidence = np.bincount(bins, self.confidence.astype(np.float64), BINS)
        right = np.bincount(bins, self.predicted == self.labels, BINS)
        return Reliability(counts, _quotient(confidence, counts), _quotient(right, counts))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What it is made of."""
        return {"labels": self.labels, "predicted": self.predicted, "confidence": self.confidence}


@dataclass(frozen=True, eq=False)
class Rankings:
    """Of images with several classes each.

    Attributes:
        scores: (N, classes), higher where a class is the more likely.
        targets: (N, classes) with 1 present, 0 difficult, -1 absent.
    """

    scores: NDArray[np.float32]
    targets: Targets

    def per_class(self, difficult: Difficult) -> NDArray[np.float64]:
        """(classes,) VOC2007's 11-point average precision in percent; NaN where no image shows a class."""
        return 100 * average_precisions(self.scores, self.targets, difficult)

    def mean(self, difficult: Difficult) -> float:
        """Its mean over the classes that some image shows, in percent.

        Raises:
            UserError: if no image shows any class.
        """
        found = average_precisions(self.scores, self.targets, difficult)
        shown = found[~np.isnan(found)]
        if not len(shown):
            raise UserError(
                "Average precision needs an image that shows a class, and the split has none: use a larger one."
            )
        return 100 * float(np.mean(shown))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What it is made of."""
        return {"scores": self.scores, "targets": self.targets}


def told(found: Sequence[Answers | Rankings]) -> dict[str, Any]:
    """As JSON, of the models of several seeds on the same images; percentages, and null where a class has no image.

    Returns:
        Of one class per image: `mean_per_class` and `ece` of each seed, `per_class` (a list of each seed), `confusion`
        (all seeds together) and `reliability` (`counts`, `confidence` and `accuracy` of each bin, likewise). Of
        several: `map` and `per_class` by what difficult objects count as.
    """
    single = [each for each in found if isinstance(each, Answers)]
    several = [each for each in found if isinstance(each, Rankings)]
    if several:
        return {
            "map": {way: [each.mean(way) for each in several] for way in CONVENTIONS},
            "per_class": {way: [_plain(each.per_class(way)) for each in several] for way in CONVENTIONS},
        }
    classes = [each.per_class() for each in single]
    pooled = _together(single)
    bins = pooled.reliability()
    return {
        "mean_per_class": [float(np.nanmean(rates)) for rates in classes],
        "ece": [100 * each.reliability().error for each in single],
        "per_class": [_plain(rates) for rates in classes],
        "confusion": pooled.confusion().tolist(),
        "reliability": {
            "counts": bins.counts.tolist(),
            "confidence": _plain(100 * bins.confidence),
            "accuracy": _plain(100 * bins.accuracy),
        },
    }


def _together(found: Sequence[Answers]) -> Answers:
    """Those of several models, as if each had seen images of its own."""
    labels, predicted, confidence = (
        np.concatenate([getattr(each, name) for each in found]) for name in ("labels", "predicted", "confidence")
    )
    return Answers(labels, predicted, confidence, found[0].classes)


class Record(Protocol):
    """Collects what a model says, where it says it, and hands it over on the host at the end."""

    def update(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        """Add (B, classes) scores and their targets."""

    def compute(self) -> Answers | Rankings: ...


def record_of(scores: torch.Tensor, targets: torch.Tensor) -> Record:
    """The record for targets like these."""
    return _Answered(scores.shape[1]) if targets.ndim == 1 else _Ranked()


class _Answered:
    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def update(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        self._parts.append((targets, scores.argmax(dim=1), scores.softmax(dim=1).amax(dim=1)))

    def compute(self) -> Answers:
        labels, predicted, confidence = (torch.cat(part).cpu().numpy() for part in zip(*self._parts, strict=True))
        return Answers(labels, predicted, confidence, self._classes)


class _Ranked:
    def __init__(self) -> None:
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        self._parts.append((scores, targets))

    def compute(self) -> Rankings:
        scores, targets = (torch.cat(part).cpu().numpy() for part in zip(*self._parts, strict=True))
        return Rankings(scores, targets)


def _quotient(sums: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """NaN where nothing was counted."""
    found: NDArray[np.float64] = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return found


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
