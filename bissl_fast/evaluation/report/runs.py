"""Many runs in one page, complete in itself: their scores and costs beside each other, and in what they differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import listed
from bissl_fast.evaluation.grid import Cell, Grid, ResultTable
from bissl_fast.evaluation.plan import is_comparison
from bissl_fast.evaluation.report import drawing
from bissl_fast.evaluation.report.drawing import INK, looks, plain
from bissl_fast.evaluation.report.facts import command, differing, facts
from bissl_fast.evaluation.report.page import Section, document, missing, plate, scrolling, section, tables
from bissl_fast.evaluation.report.svg import svg
from bissl_fast.evaluation.results import ArmResult, Results
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.statistics import Comparison, difference_words, p_cell
from bissl_fast.evaluation.table import INTERVAL
from bissl_fast.evaluation.verdict import verdict
from bissl_fast.training.files import make_folder_of, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "runs.html"
COSTS = ("Images", "Products", "Model-epochs", "Time", "Peak memory")
CAPTION = (
    "Test score of every arm of every run. Dots: the seeds. Bars: mean and one standard deviation. Scores of different "
    "data sets, or of runs that saw different numbers of images, cannot be compared; the tables tell."
)
SCORES = (
    f"Diff: the arm minus the reference of its own run, in percentage points; {INTERVAL} p: Welch's, over the seeds of "
    "that run, corrected by Holm for the arms of the run and for nothing else; *: below 0.05."
)


@dataclass(frozen=True)
class Member:
    """A run in the page.

    Attributes:
        name: unlike those of the others.
        folder: of the run.
    """

    name: str
    folder: RunFolder

    @cached_property
    def results(self) -> Results | None:
        """What it has reached; None where it has not ended, or never has results."""
        with suppress(UserError):
            return self.folder.results()
        return None

    def compared(self) -> list[tuple[ArmResult, Comparison | None]]:
        """Its arms, those but the reference with their comparison by the first metric."""
        if self.results is None:
            return []
        found = self.results.comparisons(self.results.metrics[0])
        return [(arm, found.get(arm.name)) for arm in self.results.arms]


def write_runs(runs: Sequence[Path], file: Path | None = None) -> Path:
    """Write one page of several runs, finished or not.

    Args:
        runs: folders of `bissl-fast train` or `bissl-fast pretrain`.
        file: the page; left out: `runs.html` in the folder that holds all of them.

    Returns:
        The path of the page.

    Raises:
        UserError: if one of `runs` is no run, or the page cannot be written.

    Example:
        >>> write_runs([Path("runs/a"), Path("runs/b")])  # doctest: +SKIP
        PosixPath('runs/runs.html')
    """
    members = members_of(runs)
    page = file or Path(os.path.commonpath([run.resolve().parent for run in runs])) / NAME
    make_folder_of(page)
    write_atomic(page, _page(members, page.resolve().parent).encode())
    return page


def claim(members: Sequence[Member]) -> str:
    """What the runs have found, in a sentence."""
    tests = [found for member in members for _, found in member.compared() if found is not None]
    ended = sum(member.results is not None for member in members)
    some = "" if ended == len(members) else f", {ended} of them with results"
    if not tests:
        return f"{len(members)} runs{some}, none with two arms to compare."
    better, worse = (sum(found.significant() and sign * found.difference > 0 for found in tests) for sign in (1, -1))
    return (
        f"{len(members)} runs{some}: of {len(tests)} comparisons with the reference of the same run, the arm is "
        f"significantly better in {better or 'none'} and worse in {worse or 'none'}, each tested by itself."
    )


def scores(members: Sequence[Member]) -> Figure:
    """The scores of every arm of every run by its first metric, a row each.

    Raises:
        UserError: if no run has results yet.
    """
    found = [(member, arm) for member in members for arm, _ in member.compared()]
    if not found:
        raise UserError("No run has results yet.")
    drawn = looks({arm.name: arm.title for _, arm in found})
    figure, axes = drawing.rows(0.9 + 0.34 * len(found), "test score (%)")
    for place, (member, arm) in enumerate(found):
        assert member.results is not None
        score, colour = arm.scores[member.results.metrics[0].key], drawn[arm.name].colour
        axes.scatter(score.scores, [place] * len(score.scores), s=20, color=colour, alpha=0.8, linewidths=0, zorder=3)
        axes.errorbar(score.mean, place, xerr=score.std, color=INK, marker="|", markersize=12, capsize=3, linewidth=1.2)
    names = [f"{plain(member.name)}: {drawn[arm.name].title}" for member, arm in found]
    axes.set_yticks(range(len(found)), names, fontsize=8)
    return figure


def scores_table(members: Sequence[Member]) -> ResultTable:
    """The scores of every arm of every run, and what they cost."""
    scores, costs = [], []
    for member in members:
        if member.results is None:
            scores.append((Cell(member.name), *map(Cell, "—————")))
            continue
        metric = member.results.metrics[0]
        for arm, found in member.compared():
            name, words = Cell(f"{member.name}: {arm.title}"), arm.cost.words()
            texts = (member.results.dataset, metric.row, arm.words(metric), *_compared(found))
            scores.append((name, *map(Cell, texts)))
            costs.append((name, *(Cell(words[column]) for column in COSTS)))
    grids = [Grid(("Run", "Data set", "Metric", "Test score (%)", "Diff", "p"), tuple(scores), SCORES)]
    if costs:
        grids.append(Grid(("Cost", *COSTS), tuple(costs), "Of a backbone, before fine-tuning."))
    return ResultTable(tuple(grids))


def settings_grid(members: Sequence[Member]) -> Grid | None:
    """The settings in which the runs differ; none where they differ in nothing."""
    found = differing({member.name: member.folder.settings() for member in members})
    if not found:
        return None
    rows = tuple((Cell(key), *(Cell(values[member.name]) for member in members)) for key, values in found.items())
    return Grid(
        ("Setting", *(member.name for member in members)),
        rows,
        "Of those that all of them have; all others are the same.",
    )


def members_of(runs: Sequence[Path]) -> list[Member]:
    """The runs, each once and with a name of its own.

    Raises:
        UserError: if one of them is no run, but a comparison or nothing that this package wrote.
    """
    for run in runs:
        if is_comparison(run):
            raise UserError(f"{run} is a comparison: give `bissl-fast report` it alone, or the runs that lie in it.")
    runs = list({run.resolve(): run for run in runs}.values())  # twice given it is no second run
    names = [run.resolve().name for run in runs]
    unique = len(set(names)) == len(names)
    return [Member(name if unique else str(run), RunFolder(run)) for name, run in zip(names, runs, strict=True)]


def _compared(found: Comparison | None) -> tuple[str, str]:
    if found is None:
        return ("", "")
    return difference_words(found), p_cell(found, found.p if found.corrected is None else found.corrected)


def _page(members: Sequence[Member], beside: Path) -> str:
    sets = dict.fromkeys(member.results.dataset for member in members if member.results is not None)
    where = f" on {listed(list(sets))}" if sets else ""
    outcome = f'<p class="lead">{escape(claim(members))}</p>\n{tables(scores_table(members))}'
    grid = settings_grid(members)
    same = missing("No setting that all of them have differs, but for names and folders.")
    settings = same if grid is None else scrolling(grid.to_html(), "Settings that differ")
    body = f"{_scores(members)}<section><h2>In what the runs differ</h2>\n{settings}</section>\n"
    every = "".join(_member(member, beside) for member in members)
    return document(f"{len(members)} runs{where}", outcome, f"{body}<section><h2>The runs</h2>\n{every}</section>\n")


def _scores(members: Sequence[Member]) -> str:
    title = "Scores of all runs"
    try:
        drawn = scores(members)
    except UserError as error:
        return section(Section("scores", title, CAPTION, missing=str(error)))
    means = [
        f"{member.name}, {arm.title} {arm.scores[member.results.metrics[0].key]}"
        for member in members
        for arm, _ in member.compared()
        if member.results is not None
    ]
    told = f"{'; '.join(means)}."
    return section(Section("scores", title, CAPTION, plate(svg(drawn, "scores", f"{title}. {told}")), told))


def _member(member: Member, beside: Path) -> str:
    """A run's own words: its claim, what it was, how it is repeated, where its report lies."""
    folder, results = member.folder.path, member.results
    said = f"<p>{escape(verdict(results))}</p>" if results is not None else missing("It has no results.")
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>" for term, words in facts(member.folder))
    place = os.path.relpath(folder.resolve(), beside)
    again = command("pretrain" if member.folder.pretext_only else "train", f"{place}/config.yaml")
    report = f"{place}/report.html"
    link = (
        f'<p><a href="{escape(quote(report))}">{escape(report)}</a></p>' if (folder / "report.html").is_file() else ""
    )
    return f"<h3>{escape(member.name)}</h3>\n{said}<dl>{rows}</dl>{link}<pre>{escape(again)}</pre>\n"
