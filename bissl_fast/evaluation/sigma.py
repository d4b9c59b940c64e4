"""GeSSL's σ-measurement: how far a backbone is from telling every class of unseen tasks (Definition 4.2, Eq. 5).

Eq. 5 sums KL(π_f ‖ π_φ) over tasks, with π_φ of a model that is always right: infinite, as that is certain. Here it is
taken the other way round, KL(π_φ ‖ π_f) = −log π_f(y), mean over the images of a task, with its mean over tasks in
place of the sum, so that it does not grow with their number. What π_f of a backbone is on a task is not said: here that
of a logistic regression that is shown K images of each class, on features of unit length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bissl_fast.errors import UserError

Z = 1.96  # of a two-sided 95 % interval


@dataclass(frozen=True)
class SigmaSettings:
    """The tasks that σ is taken over.

    Attributes:
        ways: N classes of a task.
        shots: K images of each class that are shown with their labels.
        queries: further images of each class, which σ is of.
        tasks: how many are drawn.
        penalty: C of scikit-learn's logistic regression, the inverse weight of its L2 penalty.
    """

    ways: int = 5
    shots: int = 5
    queries: int = 15
    tasks: int = 600
    penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1), ("tasks", 2)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, found {getattr(self, name)}.")
        if not 0 < self.penalty < math.inf:
            raise UserError(f"--penalty must be finite and positive, found {self.penalty}.")


@dataclass(frozen=True)
class Sigma:
    """σ of a backbone.

    Attributes:
        value: in nats, mean over tasks; the smaller, the more general.
        interval: half the width of its 95 % interval over tasks.
        uniform: of a backbone that tells nothing, log N.
        accuracy: in percent, of the same images.
    """

    value: float
    interval: float
    uniform: float
    accuracy: float

    def __str__(self) -> str:
        return f"σ {self.value:.4f} ± {self.interval:.4f} (uniform: {self.uniform:.4f}), accuracy {self.accuracy:.1f} %"


def distance_to_truth(log_pi: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """KL(onehot ‖ π) = −log π(y), mean over the images of a task.

    Args:
        log_pi: (M, N) of M images.
        labels: (M,), their classes.

    Example:
        >>> round(distance_to_truth(np.log(np.full((4, 5), 0.2)), np.array([0, 1, 2, 4])), 4)
        1.6094
    """
    return float(-log_pi[np.arange(len(labels)), labels].mean())


def sigma(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    settings: SigmaSettings = SigmaSettings(),
    seed: int = 0,
) -> Sigma:
    """σ of a backbone by its features of a labelled set.

    Args:
        features: (M, F) of all images.
        labels: (M,), their classes.
        settings: of the tasks.
        seed: of the tasks; the same ones whatever backbone is measured.

    Raises:
        UserError: if features are not finite, labels are not one per image, or too few classes have enough images.

    Example:
        >>> print(sigma(np.ones((60, 3), np.float32), np.arange(60) % 3, SigmaSettings(3, 2, 5, 4)))
        σ 1.0986 ± 0.0000 (uniform: 1.0986), accuracy 33.3 %
    """
    if labels.ndim != 1 or len(labels) != len(features):
        raise UserError("σ needs one class per image, and these have several or none: use a set with single labels.")
    if not np.isfinite(features).all():
        raise UserError("σ needs finite features, found NaN or infinity: the backbone's training diverged.")
    each = settings.shots + settings.queries
    members = [rows for label in np.unique(labels) if len(rows := np.flatnonzero(labels == label)) >= each]
    if len(members) < settings.ways:
        raise UserError(
            f"a task needs {settings.ways} classes of {each} images ({settings.shots} shown, {settings.queries} asked "
            f"for), found {len(members)} such: lower --ways, --shots or --queries."
        )
    wide = features.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    found = np.array([_of_task(unit, members, settings, [seed, number]) for number in range(settings.tasks)])
    distances, accuracies = found.T
    spread = float(Z * distances.std(ddof=1) / math.sqrt(len(distances)))
    return Sigma(float(distances.mean()), spread, math.log(settings.ways), 100 * float(accuracies.mean()))


def _of_task(
    unit: NDArray[np.float64], members: list[NDArray[np.int64]], settings: SigmaSettings, seed: list[int]
) -> tuple[float, float]:
    """Distance and accuracy of one task."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(members), settings.ways, replace=False)
    each = settings.shots + settings.queries
    rows = np.stack([rng.choice(members[label], each, replace=False) for label in chosen])
    shown, asked = rows[:, : settings.shots], rows[:, settings.shots :]
    classes = np.arange(settings.ways)
    model = LogisticRegression(C=settings.penalty, max_iter=1000)
    model.fit(unit[shown.ravel()], np.repeat(classes, settings.shots))
    labels = np.repeat(classes, settings.queries)
    log_pi = model.predict_log_proba(unit[asked.ravel()])
    return distance_to_truth(log_pi, labels), float((log_pi.argmax(1) == labels).mean())
