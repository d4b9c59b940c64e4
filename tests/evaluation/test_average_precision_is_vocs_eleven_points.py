from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from bissl_fast.errors import UserError
from bissl_fast.evaluation.answers import Rankings
from bissl_fast.evaluation.average_precision import CONVENTIONS, average_precision, average_precisions


def literal(scores: np.ndarray, targets: np.ndarray) -> float:
    """Everingham et al. (2010), equations 1 and 2, with every score as a threshold, in fractions."""
    judged = [(score, target) for score, target in zip(scores.tolist(), targets.tolist(), strict=True) if target != 0]
    positives = sum(target == 1 for _, target in judged)
    points = []
    for threshold in {score for score, _ in judged}:
        taken = [target for score, target in judged if score >= threshold]
        points.append((Fraction(taken.count(1), positives), Fraction(taken.count(1), len(taken))))
    eleven = [max(precision for recall, precision in points if recall >= Fraction(t, 10)) for t in range(11)]
    return float(sum(eleven, Fraction(0)) / 11)


def drawn(seed: int, count: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of which some are equal where there are few levels, and targets of all three kinds."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(np.array([-1, 0, 1], np.int8), count, p=[0.6, 0.1, 0.3])
    targets[0] = 1
    return rng.integers(levels, size=count).astype(np.float32), targets


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([1, -1, -1], 1.0),
        ([1, 1, -1], 1.0),
        ([-1, -1, 1], 1 / 3),
        ([1, -1, 1], (6 * 1 + 5 * 2 / 3) / 11),  # recall 1/2 reaches t = 0 to 0.5
        ([-1, 1, -1, 1], 1 / 2),  # the later precision is no lower than the earlier
        ([0, 1, 0, -1], 1.0),
        ([1] * 3 + [-1] + [1] * 7, (4 * 1 + 7 * 10 / 11) / 11),  # recall 3/10 reaches t = 0.3
    ],
)
def test_examples_worked_by_hand(targets: list[int], expected: float) -> None:
    scores = -np.arange(len(targets), dtype=np.float32)
    assert average_precision(scores, np.array(targets, np.int8)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("levels", [1, 4, 30, 10**6])
@pytest.mark.parametrize("count", [1, 7, 60, 211])
def test_it_equals_the_definition_with_and_without_equal_scores(count: int, levels: int) -> None:
    for seed in range(5):
        scores, targets = drawn(seed, count, levels)
        assert average_precision(scores, targets) == pytest.approx(literal(scores, targets), rel=1e-14)


@pytest.mark.parametrize("levels", [4, 10**6])
def test_it_is_read_off_scikit_learns_precision_recall_curve(levels: int) -> None:
    scores, targets = drawn(0, 150, levels)
    judged = targets != 0
    precision, recall, _ = precision_recall_curve(targets[judged] == 1, scores[judged])
    precision, recall = precision[:-1], recall[:-1]  # the last point belongs to no threshold
    expected = np.mean([precision[recall >= t - 1e-9].max() for t in np.linspace(0, 1, 11)])
    assert average_precision(scores, targets) == pytest.approx(expected, rel=1e-12)


def test_neither_the_order_of_images_nor_the_scores_of_difficult_ones_matter() -> None:
    scores, targets = drawn(3, 90, 6)
    order = np.random.default_rng(4).permutation(90)
    assert average_precision(scores[order], targets[order]) == average_precision(scores, targets)
    assert average_precision(np.where(targets == 0, 100, scores), targets) == average_precision(scores, targets)


def test_difficult_objects_count_as_present_where_the_released_code_is_followed() -> None:
    scores, targets = np.array([[3.0], [2.0], [1.0]], np.float32), np.array([[-1], [0], [1]], np.int8)
    found = {way: Rankings(scores, targets).mean(way) for way in CONVENTIONS}
    assert found == {"ignored": 50.0, "present": pytest.approx(200 / 3)}


def test_a_constant_score_is_as_precise_as_the_class_is_frequent() -> None:
    assert average_precision(np.zeros(4, np.float32), np.array([1, -1, -1, -1], np.int8)) == 0.25


def test_a_class_that_no_image_shows_is_left_out_of_the_mean() -> None:
    scores = np.array([[3, 1, 9], [2, 2, 9], [1, 3, 9]], np.float32)
    targets = np.array([[1, 1, -1], [-1, -1, 0], [1, -1, -1]], np.int8)
    expected = (average_precision(scores[:, 0], targets[:, 0]) + 1 / 3) / 2
    assert np.isnan(average_precisions(scores, targets)).tolist() == [False, False, True]
    assert Rankings(scores, targets).mean("ignored") == pytest.approx(100 * expected, rel=1e-14)


def test_a_split_that_shows_no_class_is_a_sentence() -> None:
    with pytest.raises(UserError, match="needs an image that shows a class"):
        Rankings(np.zeros((2, 3), np.float32), np.array([[-1, 0, -1], [0, -1, -1]], np.int8)).mean("ignored")
