"""Accuracy, confusion and calibration beside torchmetrics, scikit-learn and the definitions in whole numbers.

Where they differ, which each test names, docs/evaluation.md says which convention is ours.
"""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as theirs
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    top_k_accuracy_score,
)

from bissl_fast.evaluation.answers import BINS, Answers, Rankings, record_of, told
from bissl_fast.evaluation.average_precision import average_precision
from bissl_fast.evaluation.metrics import TopAccuracy

CLASSES = 11


def drawn(seed: int, count: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, 11) that know something, and labels, none of which is the last class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES - 1, (count,), generator=generator)
    scores = torch.randn(count, CLASSES, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, CLASSES)
    return scores, labels


def answers(scores: torch.Tensor, labels: torch.Tensor) -> Answers:
    record = record_of(scores, labels)
    for part in torch.arange(len(labels)).split(64):  # the last is smaller
        record.update(scores[part], labels[part])
    found = record.compute()
    assert isinstance(found, Answers)
    return found


def top(k: int, scores: torch.Tensor, labels: torch.Tensor) -> float:
    meter = TopAccuracy(k, "cpu")
    for part in torch.arange(len(labels)).split(64):
        meter.update(scores[part], labels[part])
    return meter.compute()


@pytest.mark.parametrize("k", [1, 5])
def test_top_accuracy_is_torchmetrics_to_the_bit_and_scikit_learns_where_no_scores_are_equal(k: int) -> None:
    for seed in range(5):
        scores, labels = drawn(seed)
        found = top(k, scores, labels)
        assert found == 100 * float(theirs.multiclass_accuracy(scores, labels, CLASSES, "micro", k))
        peer = top_k_accuracy_score(labels, scores.numpy(), k=k, labels=range(CLASSES))
        assert found == pytest.approx(100 * peer, rel=1e-6)


def test_of_equal_scores_the_lower_class_comes_first_so_that_top5_is_never_below_top1() -> None:
    """torchmetrics 1.9 gives 100 % top-1 and 0 % top-5 here; scikit-learn 1.9 takes the highest class of equal ones."""
    equal, first = torch.zeros(40, CLASSES), torch.zeros(40, dtype=torch.long)
    assert (top(1, equal, first), top(5, equal, first)) == (100.0, 100.0)
    assert top(5, equal, first + 4) == 100.0
    assert top(5, equal, first + 5) == 0.0
    assert answers(equal, first).predicted.tolist() == [0] * 40
    assert top_k_accuracy_score(first, equal.numpy(), k=1, labels=range(CLASSES)) == 0.0
    assert top_k_accuracy_score(first + 10, equal.numpy(), k=1, labels=range(CLASSES)) == 1.0


def test_ranks_of_scores_with_many_ties_are_those_of_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(3, (300, CLASSES), generator=generator).float()
    labels = torch.randint(CLASSES, (300,), generator=generator)
    order = scores.argsort(dim=1, descending=True, stable=True)
    for k in (1, 2, 5, CLASSES):
        right = (order[:, :k] == labels[:, None]).any(dim=1)
        assert top(k, scores, labels) == pytest.approx(100 * float(right.double().mean()), rel=1e-6)


def test_the_confusion_matrix_has_true_classes_in_rows_as_both_libraries_have() -> None:
    scores, labels = drawn(0)
    found = answers(scores, labels).confusion()
    predicted = scores.argmax(1)
    counted = np.zeros((CLASSES, CLASSES), int)
    for true, called in zip(labels.tolist(), predicted.tolist(), strict=True):
        counted[true, called] += 1
    assert np.array_equal(found, counted)
    assert np.array_equal(found, confusion_matrix(labels, predicted, labels=range(CLASSES)))
    assert np.array_equal(found, theirs.multiclass_confusion_matrix(scores, labels, CLASSES).numpy())


def test_the_mean_per_class_is_scikit_learns_balanced_accuracy_and_leaves_out_a_class_without_images() -> None:
    """torchmetrics 1.9 counts such a class as 0 % where some image is taken for it, and else leaves it out as well."""
    scores, labels = drawn(0)
    found = answers(scores, labels)
    rates, seen = found.per_class(), CLASSES - 1
    assert np.isnan(rates[-1])
    (mean,) = told([found])["mean_per_class"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that images are taken for a class that has none
        assert mean == pytest.approx(100 * balanced_accuracy_score(labels, scores.argmax(1)), rel=1e-12)
    assert (scores.argmax(1) == seen).any()
    macro = float(theirs.multiclass_accuracy(scores, labels, CLASSES, "macro"))
    assert mean * seen / CLASSES == pytest.approx(100 * macro, rel=1e-6)
    never = torch.where(torch.arange(CLASSES) == seen, -99.0, scores)
    (mean,) = told([answers(never, labels)])["mean_per_class"]
    assert mean == pytest.approx(100 * float(theirs.multiclass_accuracy(never, labels, CLASSES, "macro")), rel=1e-6)


def literal(found: Answers) -> float:
    """Guo et al. (2017), equation 3, in fractions: bins (k/15, (k + 1)/15], which weigh as the images in them."""
    total = Fraction(0)
    confidences = [Fraction(float(value)) for value in found.confidence]
    right = (found.predicted == found.labels).tolist()
    for k in range(BINS):
        low, high = Fraction(k, BINS), Fraction(k + 1, BINS)
        rows = [i for i, c in enumerate(confidences) if low < c <= high or (k == 0 and c == 0)]
        total += abs(sum(right[i] for i in rows) - sum(confidences[i] for i in rows))
    return float(total / len(confidences))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_calibration_error_is_its_definition_and_torchmetrics_where_no_confidence_is_at_an_edge(
    dtype: torch.dtype,
) -> None:
    for seed in range(5):
        scores, labels = drawn(seed)
        found = answers(2 * scores.to(dtype), labels)
        error = found.reliability().error
        assert error == pytest.approx(literal(found), rel=1e-12)
        peer = theirs.multiclass_calibration_error((2 * scores.to(dtype)).softmax(1), labels, CLASSES, BINS, "l1")
        assert error == pytest.approx(float(peer), rel=1e-5)
        assert 0.001 < error < 1


def sure(confidences: list[float], right: list[int]) -> Answers:
    """Two classes, of which the first is right."""
    labels = 1 - np.array(right)
    return Answers(labels, np.zeros(len(labels), np.int64), np.array(confidences), 2)


def test_a_confidence_of_1_belongs_to_the_last_bin_and_one_at_an_edge_to_the_bin_below() -> None:
    """torchmetrics 1.9 puts exactly 1 into a sixteenth bin of its own, and k/15 into either bin, as it is rounded."""
    found = sure([1.0, 1.0, 0.95, 0.95], [1, 0, 1, 1])
    assert found.reliability().counts.tolist() == [0] * 14 + [4]
    assert found.reliability().error == pytest.approx(abs(0.75 - 0.975)) == pytest.approx(literal(found))
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05], [0.95, 0.05]])
    peer = theirs.multiclass_calibration_error(scores, torch.tensor([0, 1, 0, 0]), 2, BINS, "l1")
    assert float(peer) == pytest.approx((0.5 + 0.05) / 2)
    edges = [k / BINS for k in range(BINS + 1)]
    for dtype in (np.float32, np.float64):
        placed = Answers(*np.zeros((2, BINS + 1), np.int64), np.array(edges, dtype), 2).reliability()
        assert placed.counts.tolist() == [2] + [1] * (BINS - 1)  # 0 and 1/15 share the first


def test_scores_between_0_and_1_are_scores_here() -> None:
    """torchmetrics 1.9 takes a batch of such for probabilities, and skips the softmax."""
    scores, labels = torch.tensor([[0.9, 0.1], [0.2, 0.7]]), torch.tensor([0, 1])
    found = answers(scores, labels)
    assert found.confidence == pytest.approx(scores.softmax(1).amax(1).numpy())
    peers = [float(theirs.multiclass_calibration_error(s, labels, 2, BINS)) for s in (scores, scores + 10)]
    assert peers == [pytest.approx(0.2), pytest.approx(found.reliability().error)]


def test_vocs_eleven_points_are_not_scikit_learns_average_precision() -> None:
    """That is the sum of (R_n − R_{n−1}) P_n, without interpolation; neither bounds the other."""
    for targets, eleven, area in (([1, -1, 1], (6 + 5 * 2 / 3) / 11, 5 / 6), ([-1, 1, 1], 2 / 3, 7 / 12)):
        scores = -np.arange(3, dtype=np.float32)
        assert average_precision(scores, np.array(targets)) == pytest.approx(eleven)
        assert average_precision_score(np.array(targets) == 1, scores) == pytest.approx(area)
        assert abs(eleven - area) > 0.01


def test_of_several_classes_both_conventions_are_told_side_by_side() -> None:
    scores = np.array([[3, 1], [2, 2], [1, 3]], np.float32)
    targets = np.array([[-1, -1], [0, -1], [1, -1]], np.int8)
    found = told([Rankings(scores, targets)] * 2)
    assert found["map"] == {"ignored": [50.0] * 2, "present": [pytest.approx(200 / 3)] * 2}
    assert found["per_class"] == {"ignored": [[50.0, None]] * 2, "present": [[pytest.approx(200 / 3), None]] * 2}


def test_models_of_several_seeds_are_told_one_by_one_and_their_confusion_together() -> None:
    first, second = (answers(*drawn(seed)) for seed in range(2))
    found = told([first, second])
    assert found["ece"] == [100 * each.reliability().error for each in (first, second)]
    assert [row[-1] for row in found["per_class"]] == [None, None]
    assert np.array_equal(found["confusion"], first.confusion() + second.confusion())
    assert sum(found["reliability"]["counts"]) == 1000
    filled = [a is not None for a in found["reliability"]["accuracy"]]
    assert filled == [count > 0 for count in found["reliability"]["counts"]]
