"""Few-shot classification: N classes told from K images each, over many episodes (GeSSL, section 6.5).

How a backbone is adapted is not said there. Here it is frozen, and a logistic regression is fitted to features of unit
length: Tian et al., "Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need?", ECCV 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bissl_fast.data.sets.dataset import ImageSet, Splits
from bissl_fast.errors import UserError
from bissl_fast.evaluation.protocols.subject import Labelled, Outcome, Score, Subject, Track, require_one_label, silent

Z = 1.96  # of a two-sided 95 % interval


@dataclass(frozen=True)
class FewShotSettings:
    """Episodes of few-shot classification.

    Attributes:
        tasks: pairs of N classes (ways) and K images of each to learn from (shots).
        queries: images of each class to be told, none of which is learned from.
        episodes: how many, of each task.
        penalty: C of scikit-learn's logistic regression, the inverse weight of its L2 penalty.
    """

    tasks: tuple[tuple[int, int], ...] = ((5, 1), (5, 5), (20, 1))
    queries: int = 15
    episodes: int = 600
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.tasks or any(ways < 2 or shots < 1 for ways, shots in self.tasks):
            raise UserError(f"--fewshot.tasks must be pairs of at least 2 ways and 1 shot, found {self.tasks}.")
        if self.queries < 1 or self.episodes < 2 or not self.penalty > 0:
            raise UserError(
                "--fewshot.queries must be at least 1, --fewshot.episodes at least 2 and --fewshot.penalty positive, "
                f"found {self.queries}, {self.episodes} and {self.penalty}."
            )


@dataclass(frozen=True)
class Episode:
    """Rows of a split: support (N, K) to learn from and queries (N, Q) to be told, one line per class; no row twice."""

    support: NDArray[np.int64]
    queries: NDArray[np.int64]


def require(
    splits: Splits, settings: FewShotSettings, protocol: str = "fewshot"
) -> tuple[list[tuple[int, int]], list[str]]:
    """The tasks that a test split can serve, and sentences on what it cannot.

    Raises:
        UserError: if it can serve none, or images have several classes.
    """
    require_one_label(splits, protocol)
    served, sentences = [], []
    for ways, shots in settings.tasks:
        each = shots + settings.queries
        counts = np.bincount(_labels(splits.test))
        enough, present = int((counts >= each).sum()), int((counts > 0).sum())
        task = f"{ways}-way {shots}-shot"
        if enough >= ways:
            served.append((ways, shots))
        if enough < ways <= present:
            sentences.append(
                f"{task} needs {ways} classes of {each} images ({shots} to learn from, {settings.queries} queries), "
                f"and {splits.test.name} has {enough} such: lower the shots or --{protocol}.queries."
            )
        elif enough < ways:
            sentences.append(f"{task} needs {ways} classes, and {splits.test.name} has {present}: lower the ways.")
        elif enough < present:
            left = present - enough
            sentences.append(f"{task}: {left} of {present} classes have fewer than {each} images and are left out.")
    if not served:
        raise UserError(f"--protocol {protocol}: {' '.join(sentences)}")
    return served, sentences


def fewshot(subject: Subject, settings: FewShotSettings, protocol: str = "fewshot") -> Outcome:
    """`fewshot_5w1s` and so on: mean accuracy over the episodes, drawn from the test split, with its 95 % interval.

    A task that the split cannot serve is told and left out.

    Args:
        subject: a backbone and a set; of the set the test split alone is looked at.
        settings: of the episodes.
        protocol: what the keys begin with.

    Raises:
        UserError: if the split can serve no task, or images have several classes.
    """
    tasks, sentences = require(subject.splits, settings, protocol)
    for sentence in sentences:
        subject.tell(sentence)
    return Outcome(
        {
            f"{protocol}_{ways}w{shots}s": summary(
                accuracies(subject.test, ways, shots, settings, subject.seed, subject.track)
            )
            for ways, shots in tasks
        }
    )


def summary(found: NDArray[np.float64]) -> Score:
    """Mean of episodes' accuracies in percent, with 1.96 · s / √E.

    Example:
        >>> print(summary(np.array([40.0, 50.0, 60.0, 50.0])))
        50.0 ± 8.0
    """
    return Score(float(found.mean()), float(Z * found.std(ddof=1) / np.sqrt(len(found))))


def accuracies(
    test: Labelled, ways: int, shots: int, settings: FewShotSettings, seed: int, track: Track = silent
) -> NDArray[np.float64]:
    """Accuracy of each episode in percent, (E,).

    Args:
        test: features and labels of the split.
        ways: N.
        shots: K.
        settings: of the episodes.
        seed: of the draws; episode e is the same whatever backbone is scored and however many episodes there are.
        track: shows progress.
    """
    wide = test.features.astype(np.float64)  # float32 does not hold the squares of what it holds
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = (wide / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)
    members = _members(test.labels.astype(np.int64, copy=False), shots + settings.queries)
    episodes = track(range(settings.episodes), settings.episodes, f"{ways}-way {shots}-shot, episodes")
    return np.array(
        [_accuracy(unit, draw(members, ways, shots, settings.queries, seed, e), settings.penalty) for e in episodes]
    )


def draw(members: list[NDArray[np.int64]], ways: int, shots: int, queries: int, seed: int, number: int) -> Episode:
    """One episode: classes without repetition, and of each class images without repetition.

    Args:
        members: rows of each class, at least `shots + queries` of each.
        ways: N classes.
        shots: K images of each to learn from.
        queries: Q images of each to be told.
        seed: of all episodes.
        number: of this one.
    """
    rng = np.random.default_rng([seed, ways, shots, number])
    chosen = rng.choice(len(members), ways, replace=False)
    rows = np.stack([rng.choice(members[label], shots + queries, replace=False) for label in chosen])
    return Episode(rows[:, :shots], rows[:, shots:])


def _accuracy(unit: NDArray[np.float32], episode: Episode, penalty: float) -> float:
    from sklearn.linear_model import LogisticRegression

    ways, shots = episode.support.shape
    classes = np.arange(ways)
    model = LogisticRegression(C=penalty, max_iter=1000)
    model.fit(unit[episode.support.ravel()], np.repeat(classes, shots))
    found = model.predict(unit[episode.queries.ravel()])
    return float(100 * np.mean(found == np.repeat(classes, episode.queries.shape[1])))


def _members(labels: NDArray[np.int64], least: int) -> list[NDArray[np.int64]]:
    """Rows of each class that has so many."""
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return [members for members in rows if len(members) >= least]


def _labels(images: ImageSet) -> NDArray[np.int64]:
    assert images.labels is not None
    return images.labels.astype(np.int64, copy=False)
