"""Nearest neighbours: the class of the most of the k training images whose features are nearest (GeSSL, Table 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bissl_fast.data.sets.dataset import Splits
from bissl_fast.errors import UserError
from bissl_fast.evaluation.answers import Answers, told
from bissl_fast.evaluation.protocols.subject import (
    Labelled,
    Outcome,
    Score,
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


def knn(subject: Subject, settings: NeighbourSettings) -> Outcome:
    """`knn_top1` of all test images.

    Raises:
        UserError: if images have several classes, the set has other classes to test than to train, or there are fewer
            training images than neighbours.
    """
    require(subject.splits, settings)
    found = answers(subject.train, subject.test, settings, len(subject.splits.test.classes))
    return Outcome({"knn_top1": Score(accuracy(found))}, {"knn": told([found])})


def answers(train: Labelled, test: Labelled, settings: NeighbourSettings, classes: int) -> Answers:
    """What neighbours take each test image for; the confidence is the share of them that agree.

    Args:
        train: the neighbours.
        test: who asks them.
        settings: how many, and what is near.
        classes: how many there are.

    Example:
        >>> corners = Labelled(np.eye(3, dtype=np.float32), np.arange(3))
        >>> accuracy(answers(corners, corners, NeighbourSettings(k=1), 3))
        100.0
    """
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(settings.k, metric=settings.metric, algorithm="brute")
    shares = neighbours.fit(train.features, train.labels).predict_proba(test.features)  # (N, classes of train)
    return Answers(test.labels, neighbours.classes_[shares.argmax(axis=1)], shares.max(axis=1), classes)


def accuracy(found: Answers) -> float:
    """Share of images that are taken for what they are, in percent."""
    return float(100 * np.mean(found.predicted == found.labels))
