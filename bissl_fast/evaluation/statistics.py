"""Comparison of two arms of an experiment from their scores per seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bissl_fast.errors import UserError

ROUNDING = 1e-6  # of float32 scores; an image more or less moves an accuracy by more


def equal(first: float, second: float) -> bool:
    """Whether two scores differ by rounding at most."""
    return abs(first - second) <= ROUNDING * max(abs(first), abs(second))


@dataclass(frozen=True)
class Arm:
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


@dataclass(frozen=True)
class Comparison:
    """A candidate beside its baseline.

    Attributes:
        candidate: scores of the method in question.
        baseline: scores of the method that it is measured against.
        p: two-sided p-value of Welch's t-test, or None where the test cannot be made.
        untested: why `p` is None, in words; empty where it is not.
    """

    candidate: Arm
    baseline: Arm
    p: float | None
    untested: str = ""

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
        """Whether the means differ at level `alpha`. Never true where no test could be made."""
        return self.p is not None and self.p < alpha


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
    ours, theirs = Arm(tuple(map(float, candidate))), Arm(tuple(map(float, baseline)))
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
    return Comparison(ours, theirs, float(test.pvalue))
