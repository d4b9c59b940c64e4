"""How often a bootstrap interval of a difference of means holds it, by the number of seeds.

    python -m benchmarks.bootstrap_coverage --output docs/results/bootstrap_coverage    # a minute on one core

Two arms of the same normal distribution, so that the true difference is 0, drawn many times. The percentile interval is
the one that tables show; the bias-corrected one (BCa) and Welch's interval stand beside it. All are meant to hold the
truth in 95 of 100 cases.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bissl_fast.evaluation.statistics import bootstrap_interval
from bissl_fast.training.files import make_folder_of, write_atomic, write_json

Scores = NDArray[np.float64]
Ends = tuple[float, float]
PAGE = """# Intervals of a difference of means, by the number of seeds

Share of {draws:,} pairs of arms, both of one normal distribution (seed {seed}), whose 95 % interval held the true
difference, and the mean width of the interval in standard deviations of a score.

| seeds | percentile | width | BCa | width | Welch | width |
|---:|---:|---:|---:|---:|---:|---:|
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="writes .json and .md")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5, 10, 20])
    parser.add_argument("--draws", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    measured = {seeds: coverage(seeds, arguments.draws, arguments.seed) for seeds in arguments.seeds}
    rows = "\n".join(
        f"| {seeds} | " + " | ".join(f"{100 * held:.1f} % | {width:.2f}" for held, width in found.values()) + " |"
        for seeds, found in measured.items()
    )
    page = PAGE.format(draws=arguments.draws, seed=arguments.seed, rows=rows)
    print(page)
    if arguments.output is not None:
        make_folder_of(arguments.output)
        write_atomic(arguments.output.with_suffix(".md"), page.encode())
        write_json(arguments.output.with_suffix(".json"), {"draws": arguments.draws, "held and width": measured})


def coverage(seeds: int, draws: int, seed: int) -> dict[str, tuple[float, float]]:
    """Share that held the truth and mean width, by the kind of interval."""
    arms = np.random.default_rng((seed, seeds)).normal(size=(draws, 2, seeds))
    found = {}
    for kind, interval in KINDS.items():
        low, high = np.array([interval(ours, theirs) for ours, theirs in arms]).T
        found[kind] = (float(((low <= 0) & (high >= 0)).mean()), float((high - low).mean()))
    return found


def percentile(ours: Scores, theirs: Scores) -> Ends:
    found = bootstrap_interval(list(ours), list(theirs))
    assert found is not None
    return found


def bias_corrected(ours: Scores, theirs: Scores) -> Ends:
    def difference(first: Scores, second: Scores, axis: int) -> Scores:
        value: Scores = first.mean(axis=axis) - second.mean(axis=axis)
        return value

    draws = {"n_resamples": 9_999, "rng": np.random.default_rng(0)}
    found = stats.bootstrap((ours, theirs), difference, vectorized=True, method="BCa", **draws).confidence_interval
    return float(found.low), float(found.high)


def welch(ours: Scores, theirs: Scores) -> Ends:
    found = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    return float(found.low), float(found.high)


KINDS: dict[str, Callable[[Scores, Scores], Ends]] = {"percentile": percentile, "BCa": bias_corrected, "Welch": welch}


if __name__ == "__main__":
    main()
