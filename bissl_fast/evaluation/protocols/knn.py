"""Nearest neighbours: the class of the most of the k training images whose features are nearest (GeSSL, Table 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bissl_fast.data.sets.dataset import Splits
from bissl_fast.errors import UserError
from bissl_fast.evaluation.protocols.subject import (
    Labelled,
    Score,
    Scores,
    Subject,
    require_one_label,
    require_same_classes,
)


@dataclass(frozen=True)
class NeighbourSettings:
    """Nearest neighbours among frozen features, by scikit-learn.

    Attributes:
        k: how many vote, each alike; of equal votes the class of the lowest number wins.
        metric: `cosine` looks at directions alone; `euclidean` at lengths, too.
    """

    k: int = 5
    metric: Literal["cosine", "euclidean"] = "cosine"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"--knn.k must be at least 1, found {self.k}.")


def require(splits: Splits, settings: NeighbourSettings) -> None:
    """Raise the sentence for a set that has no such neighbours."""
    require_one_label(splits, "knn")
    require_same_classes(splits, "knn")
    if len(splits.train) < settings.k:
        raise UserError(
            f"--knn.k must be at most {len(splits.train)}, the images of {splits.train.name}, found {settings.k}."
        )


def knn(subject: Subject, settings: NeighbourSettings) -> Scores:
    """`knn_top1` of all test images.

    Raises:
        UserError: if images have several classes, the set has other classes to test than to train, or there are fewer
            training images than neighbours.
    """
    require(subject.splits, settings)
    return {"knn_top1": Score(accuracy(subject.train, subject.test, settings))}


def accuracy(train: Labelled, test: Labelled, settings: NeighbourSettings) -> float:
    """Share of test features, in percent, that their neighbours classify rightly.

    Example:
        >>> corners = Labelled(np.eye(3, dtype=np.float32), np.arange(3))
        >>> accuracy(corners, corners, NeighbourSettings(k=1))
        100.0
    """
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(settings.k, metric=settings.metric, algorithm="brute")
    found = neighbours.fit(train.features, train.labels).predict(test.features)
    return float(100 * np.mean(found == test.labels))
