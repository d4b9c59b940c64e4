"""Comparison of arms of an experiment from their scores per seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bissl_fast.errors import UserError

ROUNDING = 1e-6  # of float32 scores; an image more or less moves an accuracy by more
Scores = NDArray[np.float64]
RESAMPLES = 9_999
FEWEST = 3  # seeds of an arm for an interval: two have three means to be drawn, and the interval is their ends


def equal(first: float, second: float) -> bool:
    """Whether two scores differ by rounding at most."""
    return abs(first - second) <= ROUNDING * max(abs(first), abs(second))


@dataclass(frozen=True)
class Sample:
    """Scores of one arm, one per seed.

    Raises:
        UserError: if there is no score, or one is not finite.
    """

    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.scores:
            raise UserError("An arm without scores cannot be compared: fine-tune at least one seed.")
        if not all(math.isfinite(score) for score in self.scores):
            raise UserError(f"Scores must be finite, found {self.scores}: a fine-tuning run diverged.")

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n − 1 in the denominator); None for a single seed."""
        if len(self.scores) == 1:
            return None
        if self.constant:  # exactly 0, where rounding of the mean would leave 1e-15
            return 0.0
        return float(np.std(self.scores, ddof=1))

    @property
    def constant(self) -> bool:
        """Whether all seeds scored the same, up to rounding."""
        return equal(min(self.scores), max(self.scores))

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} ± {self.std:.1f}"


@dataclass(frozen=True)
class Comparison:
    """A candidate beside its baseline.

    Attributes:
        candidate: scores of the method in question.
        baseline: scores of the method that it is measured against.
        p: two-sided p-value of Welch's t-test, or None where the test cannot be made.
        untested: why `p` is None, in words; empty where it is not.
        corrected: `p` after Holm's correction where this is one of several comparisons; else None.
        interval: 95 % bootstrap interval of `difference`, as :func:`bootstrap_interval` has it, or None.
    """

    candidate: Sample
    baseline: Sample
    p: float | None
    untested: str = ""
    corrected: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def difference(self) -> float:
        """Mean of the candidate minus mean of the baseline, in the unit of the scores."""
        return self.candidate.mean - self.baseline.mean

    @property
    def apart(self) -> bool:
        """Whether the intervals mean ± std do not overlap, which Table 1 prints in bold. Never true of single seeds."""
        ours, theirs = self.candidate, self.baseline
        if ours.std is None or theirs.std is None or equal(ours.mean, theirs.mean):
            return False
        both = ours.std + theirs.std
        return abs(self.difference) > both and not equal(abs(self.difference), both)

    def significant(self, alpha: float = 0.05) -> bool:
        """Whether the means differ at level `alpha`, over all comparisons that were made together.

        Never true where no test could be made.
        """
        p = self.p if self.corrected is None else self.corrected
        return p is not None and p < alpha


def compare(candidate: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """Compare two arms by Welch's t-test (unequal variances, seeds not paired).

    Two cases lie outside the test. An arm with a single seed has no variance: no test. Where every seed of
    each arm scored the same up to rounding, t is 0/0, infinite or a quotient of roundings: equal means give
    p = 1, and different means give no p, because a spread of zero over a few seeds says that scores are
    coarse, not that they are certain.

    Args:
        candidate: one score per seed.
        baseline: one score per seed; the number of seeds may differ.

    Returns:
        The comparison, with `untested` saying why where there is no p-value.

    Raises:
        UserError: if an arm is empty or has a score that is not finite.

    Example:
        >>> compare([52.0, 52.6, 51.7], [49.1, 49.9, 48.9]).significant()
        True
    """
    ours, theirs = Sample(tuple(map(float, candidate))), Sample(tuple(map(float, baseline)))
    if ours.std is None or theirs.std is None:
        return Comparison(ours, theirs, None, "one seed has no spread, so no test can be made")
    if ours.constant and theirs.constant:
        if equal(ours.scores[0], theirs.scores[0]):
            return Comparison(ours, theirs, 1.0)
        return Comparison(ours, theirs, None, "no arm varies over its seeds, so the test is undefined")
    # From the moments, because from the scores SciPy warns where just one arm is constant.
    test = stats.ttest_ind_from_stats(
        ours.mean, ours.std, len(ours.scores), theirs.mean, theirs.std, len(theirs.scores), equal_var=False
    )
    interval = bootstrap_interval(ours.scores, theirs.scores)
    return Comparison(ours, theirs, float(test.pvalue), interval=interval)


def bootstrap_interval(candidate: Sequence[float], baseline: Sequence[float]) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the difference of two means.

    Seeds are drawn anew with replacement, from each arm as many as it has, 9,999 times from one fixed seed; the
    interval lies between two percentiles of the differences of means. Drawing from few seeds shows less than their
    spread, a share of √(1 − 1/n), and has no tails: the interval is too narrow (docs/evaluation.md tells by how much).
    The bias-corrected form (BCa) holds the truth no more often, as `benchmarks/bootstrap_coverage.py` measures, and
    would take its correction from as few numbers.

    Args:
        candidate: one score per seed.
        baseline: one score per seed.

    Returns:
        Both ends, in the unit of the scores; None where an arm has fewer than three seeds.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.

    Example:
        >>> low, high = bootstrap_interval([52.0, 52.6, 51.7], [49.1, 49.9, 48.9])
        >>> 1.8 < low < 2.8 < high < 3.8
        True
    """
    if min(len(candidate), len(baseline)) < FEWEST:
        return None
    found = stats.bootstrap(
        (np.asarray(candidate), np.asarray(baseline)),
        _difference_of_means,
        n_resamples=RESAMPLES,
        confidence_level=0.95,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _difference_of_means(candidate: Scores, baseline: Scores, axis: int) -> Scores:
    difference: Scores = candidate.mean(axis=axis) - baseline.mean(axis=axis)
    return difference


def compare_all(candidates: Sequence[Sequence[float]], reference: Sequence[float]) -> list[Comparison]:
    """Compare several arms with one, as :func:`compare` does, and correct for how many tests were made.

    Args:
        candidates: for each arm one score per seed.
        reference: one score per seed.

    Returns:
        The comparisons in the order of the candidates. A single one is left uncorrected.

    Raises:
        UserError: if an arm is empty or has a score that is not finite.

    Example:
        >>> good, middling = compare_all([[52.0, 52.6, 51.7], [50.4, 50.9, 50.3]], [49.1, 49.9, 48.9])
        >>> round(middling.p, 3), round(good.p, 3), round(good.corrected, 3)
        (0.035, 0.002, 0.005)
    """
    comparisons = [compare(candidate, reference) for candidate in candidates]
    tested = [index for index, comparison in enumerate(comparisons) if comparison.p is not None]
    if len(tested) > 1:
        corrected = holm([p for comparison in comparisons if (p := comparison.p) is not None])
        for index, p in zip(tested, corrected, strict=True):
            comparisons[index] = replace(comparisons[index], corrected=p)
    return comparisons


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of tests made together, so that one below α is a false find with a chance of α at most.

    Args:
        p_values: of m tests, dependent or not.

    Returns:
        In the order given: the i-th smallest times m − i + 1, no less than a smaller one's and at most 1.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def p_words(p: float) -> str:
    """A p-value behind its "p": `= 0.023`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def p_cell(found: Comparison, p: float | None) -> str:
    """A p-value of a comparison in a table: with an asterisk where it is significant, a dash for none."""
    return "—" if p is None else p_words(p).removeprefix("= ") + " *" * found.significant()


def difference_words(comparison: Comparison) -> str:
    """A difference, and its interval where there is one.

    Example:
        >>> difference_words(compare([50.0, 51.0, 52.0], [50.0, 50.5, 50.0]))
        '+0.8 [−0.2, 1.8]'
    """
    difference = signed(comparison.difference)
    if comparison.interval is None:
        return difference
    low, high = (signed(end).removeprefix("+") for end in comparison.interval)
    return f"{difference} [{low}, {high}]"


def signed(value: float) -> str:
    """A difference as tables show it.

    Example:
        >>> signed(1.26), signed(-0.31), signed(-0.01)
        ('+1.3', '−0.3', '0.0')
    """
    text = f"{abs(value):.1f}"
    sign = "" if text == "0.0" else "+" if value > 0 else "−"
    return sign + text
