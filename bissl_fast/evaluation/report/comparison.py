"""The report of a comparison: `report.html`, complete in itself, `compare.json`, `table.md` and a figure."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import listed
from bissl_fast.evaluation.comparison import Compared, comparison_table, read_comparison
from bissl_fast.evaluation.plan import Plan, read_plan
from bissl_fast.evaluation.report.drawing import INK, MUTED, looks, png, rows
from bissl_fast.evaluation.report.page import (
    Section,
    again,
    document,
    environment,
    missing,
    plate,
    scrolling,
    section,
    settings,
    tables,
)
from bissl_fast.evaluation.report.svg import svg
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.verdict import sentences
from bissl_fast.training.files import make_folder, write_atomic, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Test score of every arm. Large dots: one pretext seed each, the mean over its fine-tuning seeds, which are the "
    "small dots beside it. Bars: mean and one standard deviation of the large dots, which the tests are about. Where "
    "large dots scatter more than the small ones around each, one pre-training does not speak for its method."
)

FEW_SHOT_CAPTION = (
    "Test score of every arm. Dots: one pretext seed each, with the 95 % interval over its episodes as a thin line. "
    "Bars: mean and one standard deviation of the dots, which the tests are about. Nothing is fine-tuned."
)


def write_comparison(folder: Path) -> Path:
    """Write `report.html`, `compare.json`, `table.md` and `figures/scores.png` from what a comparison has so far.

    Args:
        folder: of `bissl-fast compare` or `bissl-fast ablate`, finished or not.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: if `folder` holds no comparison or cannot be written to.

    Example:
        >>> write_comparison(Path("runs/compare-textures-quick-0"))  # doctest: +SKIP
        PosixPath('runs/compare-textures-quick-0/report.html')
    """
    plan = read_plan(folder)
    try:
        compared = read_comparison(folder)
    except UserError as error:
        content = missing(f"No result yet: {error}")
    else:
        drawn = scores(compared)
        make_folder(folder / "figures")
        write_atomic(folder / "figures" / "scores.png", png(drawn))
        write_json(folder / "compare.json", compared.to_json())
        over, table = compared.over_pretext_seeds, comparison_table(compared)
        sentence = " ".join(sentences(over))
        write_atomic(folder / "table.md", f"{table.to_markdown()}\n{sentence}\n".encode())
        content = f'<p class="lead">{escape(sentence)}</p>\n{_progress(compared)}'
        caption = CAPTION if over.fine_tuned else FEW_SHOT_CAPTION
        told = _scores_told(compared)
        picture = plate(svg(drawn, "scores", f"Scores of all seeds. {told}"))
        content += tables(table) + section(Section("scores", "Scores of all seeds", caption, picture, told))
    report = folder / "report.html"
    write_atomic(report, document(_title(plan), content, _rest(folder, plan)).encode())
    return report


def scores(compared: Compared) -> Figure:
    """The test scores of every arm on one axis: its seeds or episodes' intervals, mean and standard deviation."""
    over = compared.over_pretext_seeds
    metric = over.metrics[0]
    drawn = looks({arm.name: arm.title for arm in over.arms})
    figure, axes = rows(1.1 + 0.45 * len(over.arms), f"test {metric.words} (%)")
    for place, arm in enumerate(over.arms):
        colour, mean = drawn[arm.name].colour, arm.scores[metric.key]
        seeds = len(mean.scores)
        for at, result in zip(place + 0.5 * _spaced(seeds), compared.of(arm.name), strict=True):
            fine = result.scores[metric.key]
            if len(fine.scores) > 1:
                axes.scatter(fine.scores, [at] * len(fine.scores), s=9, color=colour, alpha=0.35, linewidths=0)
            axes.scatter([fine.mean], [at], s=42, color=colour, alpha=0.9, linewidths=0)
            if interval := result.intervals.get(metric.key):
                axes.plot([fine.mean - interval, fine.mean + interval], [at, at], color=colour, alpha=0.5, linewidth=1)
        axes.errorbar(mean.mean, place, xerr=mean.std, color=INK, marker="|", markersize=16, capsize=4, linewidth=1.4)
    axes.set_yticks(range(len(over.arms)), [drawn[arm.name].title for arm in over.arms])
    axes.axvline(over.reference.scores[metric.key].mean, color=MUTED, linewidth=0.8, linestyle=":", zorder=0)
    return figure


def _scores_told(compared: Compared) -> str:
    """What the figure shows, in a sentence."""
    over = compared.over_pretext_seeds
    key = over.metrics[0].key
    means = {arm.title: arm.scores[key].scores for arm in over.arms}
    told = (f"{title} {listed([f'{score:.1f}' for score in scores])}" for title, scores in means.items())
    return f"Test {over.metrics[0].words} (%) of each pretext seed: {'; '.join(told)}."


def _spaced(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Places of so many dots around 0, within ±0.5."""
    return (np.arange(count) - (count - 1) / 2) / max(count, 3)


def _title(plan: Plan) -> str:
    what = "Methods compared" if plan.subject == "methods" else plan.subject
    return f"{what} on {plan.dataset}"


def _progress(compared: Compared) -> str:
    """A sentence where pretext seeds are still to come."""
    done, planned = len(compared.by_seed), len(compared.plan.seeds)
    return "" if done == planned else missing(f"Unfinished: {done} of {planned} pretext seeds have run.")


def _rest(folder: Path, plan: Plan) -> str:
    """What the arms may cost, settings, and where everything lies."""
    runs = dict.fromkeys(run for row in plan.rows for run in row.runs.values())
    reports = (f"{run}/report.html" for run in runs)
    names = [name for name in ("compare.json", "plan.json", *reports) if (folder / name).is_file()]
    links = " · ".join(f'<a href="{escape(quote(name))}">{escape(name)}</a>' for name in names)
    first = next((run for run in runs if (folder / run / "environment.json").is_file()), None)
    told = "" if first is None else environment(RunFolder(folder / first))
    said, budget = " ".join(plan.sentences()), scrolling(plan.grid().to_html(), "Budget")
    kind = "compare" if plan.subject == "methods" else f"ablate {plan.subject}"
    return (
        f"<section><h2>Budget</h2>\n<p>{escape(said)}</p>{budget}</section>\n{again(kind)}"
        f"<section><h2>Settings and files</h2>\n{settings(folder / 'config.yaml')}{told}"
        f"<details><summary>Runs and raw files</summary><p>{links}</p></details></section>\n"
    )
