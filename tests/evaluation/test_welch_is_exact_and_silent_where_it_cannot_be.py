from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from bissl_fast.errors import UserError
from bissl_fast.evaluation.statistics import Comparison, compare, compare_all, holm
from bissl_fast.experiments.paper_results import DATASETS, TABLE_1, Printed


def test_equals_scipy_on_unequal_seeds_and_variances() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        ours = rng.normal(50, 2, rng.integers(2, 12))
        theirs = rng.normal(49, 0.3, rng.integers(2, 12))
        comparison = compare(ours, theirs)
        assert comparison.p == pytest.approx(stats.ttest_ind(ours, theirs, equal_var=False).pvalue, rel=1e-9)
        assert comparison.difference == pytest.approx(ours.mean() - theirs.mean())


def test_equals_an_example_computed_by_hand() -> None:
    # Means 2 and 5, variances 1 and 4, n = 3: t = −3/√(1/3 + 4/3) = −2.32379, and by Welch–Satterthwaite
    # ν = (5/3)² / ((1/3)²/2 + (4/3)²/2) = 2.94118.
    comparison = compare([1, 2, 3], [3, 5, 7])
    assert (comparison.candidate.mean, comparison.baseline.mean) == (2, 5)
    assert (comparison.candidate.std, comparison.baseline.std) == (1, 2)
    assert comparison.p == pytest.approx(2 * stats.t.sf(3 / (5 / 3) ** 0.5, 50 / 17), rel=1e-9)
    assert comparison.p == pytest.approx(0.1044, abs=1e-4)
    assert not comparison.significant()
    assert comparison.significant(alpha=0.2)


@pytest.mark.parametrize(("ours", "theirs"), [([50.0], [40.0]), ([50.0], [40.0, 41.0]), ([50.0, 51.0], [40.0])])
def test_one_seed_has_no_p_and_says_so(ours: list[float], theirs: list[float]) -> None:
    comparison = compare(ours, theirs)
    assert comparison.p is None
    assert "one seed" in comparison.untested
    assert not comparison.significant(alpha=1.0)


def test_arms_without_spread_are_handled_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same, different = compare([0.1] * 3, [0.1] * 3), compare([0.1] * 3, [0.7] * 3)
        one_constant = compare([33.3] * 3, [30.0, 31.0, 29.0])
    assert (same.p, same.candidate.std) == (1.0, 0.0)
    assert different.p is None
    assert "undefined" in different.untested
    assert one_constant.p is not None
    assert 0 < one_constant.p < 0.05


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([0.3] * 3, [0.1 + 0.2] * 3),  # which differ in the last bit
        ([0.3, 0.1 + 0.2, 0.3], [0.3] * 3),
        ([33.333332] * 4, [33.333334, 33.333334, 33.333332]),  # a third, rounded in float32
        ([0.0] * 2, [0.0] * 5),
    ],
)
def test_what_differs_by_rounding_alone_is_no_difference(ours: list[float], theirs: list[float]) -> None:
    for comparison in (compare(ours, theirs), compare(theirs, ours)):
        assert (comparison.p, comparison.candidate.std, comparison.baseline.std) == (1.0, 0.0, 0.0)


def test_one_image_of_a_million_is_a_difference() -> None:
    assert compare([50.0] * 3, [50.0001] * 3).p is None
    assert compare([50.0, 50.0001], [50.0001, 50.0002]).candidate.std == pytest.approx(0.0001 / 2**0.5)


def seeds(mean: float, std: float) -> list[float]:
    """Ten scores with this mean and this sample deviation."""
    return [mean + sign * std * 0.9**0.5 for sign in (-1, 1)] * 5


def compared(row: Printed) -> Comparison:
    return compare(seeds(*row.bissl), seeds(*row.baseline))


def test_table_1_has_its_27_cells() -> None:
    assert [row.metric for row in TABLE_1] == ["top1", "top5"] * 13 + ["map"]
    assert (len(DATASETS), sum(row.bold for row in TABLE_1)) == (14, 14)
    # Section 4.3: significantly better in one of the accuracies, or in mAP, on 10 of the sets, and worse on none.
    assert len({row.dataset for row in TABLE_1 if row.bold}) == 10
    tenths = [3, 1, 14, 0, -3, -2, 7, -8, 28, 4, 26, 12, 2, 0, 0, 1, -2, 9, 26, 6, 1, 1, 10, 11, -1, 45, 18]
    assert [round(10 * row.difference) for row in TABLE_1] == tenths  # the column "Avg Diff"


@pytest.mark.parametrize("row", TABLE_1, ids=lambda row: f"{row.dataset}-{row.metric}")
def test_intervals_lie_apart_where_table_1_is_bold(row: Printed) -> None:
    assert compared(row).apart == row.bold


def test_welchs_test_finds_a_difference_in_more_cells_than_table_1_prints_in_bold() -> None:
    tested = [(row, p) for row in TABLE_1 if (p := compared(row).p) is not None]  # two print ± 0.0
    found = {(row.dataset, row.metric): round(p, 4) for row, p in tested if (p < 0.05) != row.bold}
    assert found == {
        ("aircraft", "top5"): 0.008,
        ("dtd", "top5"): 0.0218,
        ("fashionmnist", "top1"): 0.0003,
        ("cifar100", "top1"): 0.0382,
        ("food101", "top5"): 0.0382,
    }


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [float("inf")]])
def test_absent_or_infinite_scores_are_refused(scores: list[float]) -> None:
    with pytest.raises(UserError):
        compare([50.0, 51.0], scores)


def test_holm_equals_its_definition_and_never_changes_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.2, rng.integers(2, 9))
        rejected, remaining = set(), sorted(range(len(p)), key=p.__getitem__)
        while remaining and p[remaining[0]] < 0.05 / len(remaining):  # step by step, as Holm has it
            rejected.add(remaining.pop(0))
        assert {index for index, value in enumerate(holm(list(p))) if value < 0.05} == rejected


def test_one_comparison_is_left_as_it_is() -> None:
    assert compare_all([[3.0, 4.0, 5.0]], [1.0, 2.0, 3.0]) == [compare([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])]
