"""What a comparison has found: arms over pretext seeds, and within each seed over fine-tuning seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bissl_fast.errors import UserError
from bissl_fast.evaluation.grid import Cell, Grid, ResultTable
from bissl_fast.evaluation.metrics import Metric
from bissl_fast.evaluation.plan import Plan, Row, read_plan
from bissl_fast.evaluation.results import ArmResult, Results, metrics_of
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.statistics import Sample
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import verdict


@dataclass(frozen=True)
class Compared:
    """The results of a comparison, as far as it has come.

    Attributes:
        plan: what it is to do.
        by_seed: for each pretext seed whose runs are all finished, the results of the arms, on fine-tuning seeds where
            there are any.
    """

    plan: Plan
    by_seed: Mapping[int, Results]

    @property
    def over_pretext_seeds(self) -> Results:
        """One number per pretext seed and arm: the mean over its fine-tuning seeds, if it has any."""
        every = list(self.by_seed.values())
        arms = tuple(_over_seeds(self.of(arm.name)) for arm in every[0].arms)
        found = {control.name: self.of(control.name) for control in every[0].controls}
        controls = tuple(_over_seeds(alike) for alike in found.values() if len(alike) == len(every))
        return replace(every[0], metrics=metrics_of(arms), arms=arms, controls=controls, seeds="pretext")

    def of(self, name: str) -> list[ArmResult]:
        """An arm, or a control, in each finished pretext seed that has it."""
        backbones = [(*results.arms, *results.controls) for results in self.by_seed.values()]
        return [backbone for seed in backbones for backbone in seed if backbone.name == name]

    def to_json(self) -> dict[str, Any]:
        """As `compare.json` has it."""
        over = self.over_pretext_seeds
        return {
            **self.plan.told(),
            "classes": over.classes,
            "judged_by": over.judged_by,
            "finished": list(self.by_seed),
            "verdict": verdict(over),
            "arms": {arm.name: self._arm_told(arm) for arm in over.arms},
            **({"controls": {arm.name: self._arm_told(arm) for arm in over.controls}} if over.controls else {}),
            "over_pretext_seeds": _tests_told(over),
            "within_pretext_seeds": {seed: _tests_told(results) for seed, results in self.by_seed.items()},
        }

    def _arm_told(self, over: ArmResult) -> dict[str, Any]:
        scores = {}
        for metric, arm in over.scores.items():
            told: dict[str, Any] = {"means": list(arm.scores), "between": arm.std}
            found = self.of(over.name)
            if self.over_pretext_seeds.fine_tuned:
                told["fine_tuned"] = [list(result.scores[metric].scores) for result in found]
                told["within"] = within(self, over.name, metric)
            if all(metric in result.intervals for result in found):
                told["intervals"] = [result.intervals[metric] for result in found]
            scores[metric] = told
        searched = {"rates": [asdict(rates) for rates in over.rates]} if over.rates else {}
        return {"title": over.title, "scores": scores, "cost": over.cost.told(), **searched}


def read_comparison(folder: Path) -> Compared:
    """The results of the comparison in a folder.

    Raises:
        UserError: if there is none, or no pretext seed is finished.
    """
    plan = read_plan(folder)
    by_seed = {}
    for seed in plan.seeds:
        with suppress(UserError):  # a run that is not finished, or not there
            by_seed[seed] = _of_seed(folder, plan, seed)
    if not by_seed:
        raise UserError(f"No pretext seed of {folder} has all of its runs finished yet.")
    return Compared(plan, by_seed)


def within(compared: Compared, arm: str, metric: str) -> float | None:
    """Standard deviation over the fine-tuning seeds of one backbone, pooled over the pretext seeds."""
    arms = [found.scores[metric] for found in compared.of(arm)]
    freedom = sum(len(scores.scores) - 1 for scores in arms)
    squares = math.fsum((len(scores.scores) - 1) * scores.std**2 for scores in arms if scores.std is not None)
    return math.sqrt(squares / freedom) if freedom else None


def comparison_table(compared: Compared) -> ResultTable:
    """The scores over pretext seeds, what they cost, and where there are two kinds of seeds, how either scatters."""
    over = compared.over_pretext_seeds
    grids = results_table(over).grids
    return ResultTable((*grids, spread_grid(compared)) if over.fine_tuned else grids)


def spread_grid(compared: Compared) -> Grid:
    """How far scores scatter over pretext seeds and within them, and in how many of them an arm differs."""
    over, every = compared.over_pretext_seeds, list(compared.by_seed.values())
    metric, title = over.metrics[0], over.reference.title
    rows = [_spread(compared, arm, metric) for arm in over.arms]
    sentences = (
        f"{metric.row}, standard deviations in percentage points.",
        "Between: of the means of the pretext seeds. Within: over the fine-tuning seeds of one backbone, pooled.",
        f"Better in, worse in: of the {len(every)} pretext seeds, in how many the arm differs from {title} over the "
        "fine-tuning seeds alone, by Welch's t-test at 5 % after Holm's correction. Such a difference may be the luck "
        "of one pre-training; the first table is about what remains over all of them.",
    )
    return Grid(("Seeds", "Between", "Within", "Better in", "Worse in"), tuple(rows), " ".join(sentences))


def _spread(compared: Compared, arm: ArmResult, metric: Metric) -> tuple[Cell, ...]:
    deviations = (arm.scores[metric.key].std, within(compared, arm.name, metric.key))
    cells = ["—" if value is None else f"{value:.1f}" for value in deviations]
    if arm.name == compared.over_pretext_seeds.reference.name:
        return Cell(arm.title), *map(Cell, cells), Cell(""), Cell("")
    every = [results.comparisons(metric)[arm.name] for results in compared.by_seed.values()]
    if all(test.p is None for test in every):
        return Cell(arm.title), *map(Cell, cells), Cell("—"), Cell("—")
    signs = [test.difference for test in every if test.significant()]
    counts = (sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs))
    return Cell(arm.title), *map(Cell, cells), *(Cell(f"{count} of {len(every)}") for count in counts)


def _of_seed(folder: Path, plan: Plan, seed: int) -> Results:
    """The arms of one pretext seed."""
    read = {name: RunFolder(folder / name).results() for name in {row.runs[seed] for row in plan.rows}}
    arms = tuple(_arm(plan, row, read[row.runs[seed]]) for row in plan.rows)
    first = read[plan.rows[0].runs[seed]]
    controls = tuple(_common(first.controls, list(read.values())))
    try:
        return replace(first, metrics=metrics_of(arms), arms=arms, against=plan.reference, controls=controls)
    except KeyError as error:
        raise UserError(f"The arms of pretext seed {seed} have no metric in common ({error}).") from None


def _common(controls: Sequence[ArmResult], runs: Sequence[Results]) -> Iterator[ArmResult]:
    """The controls that are the same backbones in all runs of a seed: arms of an ablation may have their own."""
    for control in controls:
        scores = [found.scores for run in runs for found in run.controls if found.name == control.name]
        if scores == [control.scores] * len(runs):
            yield control


def _arm(plan: Plan, row: Row, results: Results) -> ArmResult:
    """A row's arm of a run.

    Raises:
        UserError: if the run has no such arm.
    """
    arm = next((arm for arm in results.arms if arm.name == row.method), None)
    if arm is None:
        raise UserError(f"The run of {row.title} has no arm {row.method}: run the same command again.")
    return replace(arm, name=row.label, title=plan.title(row))


def _over_seeds(arms: Sequence[ArmResult]) -> ArmResult:
    """One arm's means of the pretext seeds, for the metrics that it has in all; the time is the mean of
    theirs, the memory the largest."""
    keys = [key for key in arms[0].scores if all(key in arm.scores for arm in arms)]
    scores = {key: Sample(tuple(arm.scores[key].mean for arm in arms)) for key in keys}
    times = [arm.cost.seconds for arm in arms if arm.cost.seconds is not None]
    seconds = math.fsum(times) / len(times) if len(times) == len(arms) else None
    peaks = [arm.cost.memory for arm in arms if arm.cost.memory is not None]
    cost = replace(arms[0].cost, seconds=seconds, memory=max(peaks, default=None))
    rates = tuple(dict.fromkeys(found for arm in arms for found in arm.rates))  # of one search, for all seeds: once
    return replace(arms[0], scores=scores, intervals={}, cost=cost, rates=rates)


def _tests_told(results: Results) -> dict[str, Any]:
    """Every comparison with the reference, by metric and arm."""
    return {
        metric.key: {
            name: {
                "difference": test.difference,
                "interval": test.interval,
                "p": test.p,
                "p_corrected": test.corrected if test.corrected is not None else test.p,
                "significant": test.significant(),
                "untested": test.untested,
            }
            for name, test in results.comparisons(metric).items()
        }
        for metric in results.metrics
    }
