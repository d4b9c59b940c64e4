"""The interval beside a difference: percentiles of what drawing the seeds anew gives, and too narrow for few seeds."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats

from bissl_fast.evaluation.statistics import bootstrap_interval, compare

OURS, THEIRS = [52.0, 52.6, 51.7], [49.1, 49.9, 48.9]


def test_of_three_seeds_it_is_that_of_all_resamples_there_are() -> None:
    means = [np.array([np.mean(draw) for draw in itertools.product(arm, repeat=3)]) for arm in (OURS, THEIRS)]
    every = np.subtract.outer(*means).ravel()  # (729,), equally likely
    low, high = bootstrap_interval(OURS, THEIRS) or (0.0, 0.0)
    spread = every.std()
    assert low == pytest.approx(np.quantile(every, 0.025), abs=0.05 * spread)
    assert high == pytest.approx(np.quantile(every, 0.975), abs=0.05 * spread)


def test_of_many_seeds_it_is_that_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.exponential(2, 400), rng.normal(1, 1, 300)
    error = (ours.var(ddof=1) / 400 + theirs.var(ddof=1) / 300) ** 0.5
    normal = stats.norm(ours.mean() - theirs.mean(), error).interval(0.95)
    assert bootstrap_interval(list(ours), list(theirs)) == pytest.approx(normal, abs=0.1 * error)


def test_it_is_the_same_whenever_it_is_asked_and_stands_in_the_comparison() -> None:
    first = bootstrap_interval(OURS, THEIRS)
    assert compare(OURS, THEIRS).interval == first == bootstrap_interval(OURS, THEIRS)
    low, high = first or (0.0, 0.0)
    assert compare(THEIRS, OURS).interval == pytest.approx((-high, -low), abs=0.05)


@pytest.mark.parametrize(("ours", "theirs"), [([50.0], OURS), (OURS, [50.0, 51.0]), ([50.0] * 3, [40.0] * 3)])
def test_fewer_than_three_seeds_or_none_that_differ_have_none(ours: list[float], theirs: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare(ours, theirs).interval is None


def test_three_seeds_make_it_too_narrow_and_ten_nearly_do_not() -> None:
    held = {}
    for seeds in (3, 10):
        rng = np.random.default_rng(seeds)
        drawn = rng.normal(0, 1, (300, 2, seeds))
        found = [bootstrap_interval(list(ours), list(theirs)) or (np.nan, np.nan) for ours, theirs in drawn]
        held[seeds] = sum(low <= 0 <= high for low, high in found) / len(found)
    assert 0.7 < held[3] < 0.87
    assert 0.9 < held[10] < 0.96
