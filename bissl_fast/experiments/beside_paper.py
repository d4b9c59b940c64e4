"""Our scores beside the numbers that the paper prints: tables, JSON, and what they say in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bissl_fast.errors import UserError
from bissl_fast.evaluation.grid import Cell, Grid, ResultTable
from bissl_fast.evaluation.metrics import METRICS, Metric
from bissl_fast.evaluation.results import Results
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.statistics import Comparison, difference_words, p_cell, signed
from bissl_fast.evaluation.table import INTERVAL
from bissl_fast.experiments.paper_results import Printed, printed
from bissl_fast.experiments.paper_runs import Asked, PaperRun
from bissl_fast.methods.config import is_of

MARKS = (
    "Bold, in the paper's columns as printed and in ours by the same rule: the intervals mean ± standard deviation do "
    "not overlap. *: significantly different by Welch's t-test at 5 %, each cell tested by itself."
)
TITLES = {"bissl": "BiSSL", "baseline": "Only FT"}


@dataclass(frozen=True)
class Beside:
    """One cell of Table 1.

    Attributes:
        run: that it is of.
        metric: of the score.
        ours: BiSSL beside the baseline; None where the run has not ended.
        paper: as printed; None where the paper prints no number.
    """

    run: PaperRun
    metric: Metric
    ours: Comparison | None
    paper: Printed | None

    def told(self) -> dict[str, Any]:
        """As the JSON has it."""
        told: dict[str, Any] = {"dataset": self.run.dataset, "metric": self.metric.key, "epochs": self.run.epochs}
        if self.ours is not None:
            arms = {"bissl": self.ours.candidate, "baseline": self.ours.baseline}
            told["ours"] = {
                **{
                    arm: {"scores": list(found.scores), "mean": found.mean, "std": found.std}
                    for arm, found in arms.items()
                },
                "difference": self.ours.difference,
                "interval": self.ours.interval,
                "p": self.ours.p,
                "significant": self.ours.significant(),
                "apart": self.ours.apart,
            }
        if self.paper is not None:
            told["paper"] = {"bissl": self.paper.bissl, "baseline": self.paper.baseline, "bold": self.paper.bold}
        return told


def beside(folder: Path, asked: Asked, runs: Sequence[PaperRun]) -> tuple[Beside, ...]:
    """Every cell of the runs, those too that have not come to their end.

    Args:
        folder: of all runs.
        asked: what is reproduced; only Table 1 has numbers in the paper.
        runs: all of them.
    """
    cells = []
    for run in runs:
        results = results_of(folder, run)
        for metric in _metrics(run, results):
            ours = None if results is None else results.comparisons(metric).get("bissl")
            paper = printed(run.dataset, metric.key) if asked.what == "table1" else None
            cells.append(Beside(run, metric, ours, paper))
    return tuple(cells)


def results_of(folder: Path, run: PaperRun) -> Results | None:
    """What a run has found; None where it has not ended with these settings."""
    place = folder / str(run.config.name)
    with suppress(UserError):
        return RunFolder(place).results() if is_of(place, run.config) else None
    return None


def beside_table(cells: Sequence[Beside], asked: Asked, note: str) -> ResultTable:
    """Table 1 with the paper's numbers beside ours, or for Figure 2 a row for each of its points.

    Args:
        cells: all of them.
        asked: what is reproduced.
        note: closes each caption.
    """
    first = [cell for cell in cells if cell.metric.key != "top5"]
    fifth = [cell for cell in cells if cell.metric.key == "top5"]
    grids = [_grid(part, asked, head, note) for part, head in ((first, "Top-1, or mAP"), (fifth, "Top-5")) if part]
    return ResultTable(tuple(grids))


def claim(cells: Sequence[Beside], comparable: bool = True) -> str:
    """What the cells say together.

    Args:
        cells: all of them.
        comparable: whether our settings are the paper's, so that its marks say something about ours.

    Example:
        >>> claim([])
        'No run has ended yet.'
    """
    ended = [(cell, cell.ours) for cell in cells if cell.ours is not None]
    if not ended:
        return "No run has ended yet."
    signs = [1 if ours.difference > 0 else -1 for _, ours in ended]
    apart, welch = (
        [sum(mark and sign == side for mark, sign in zip(marks, signs, strict=True)) for side in (1, -1)]
        for marks in ([ours.apart for _, ours in ended], [ours.significant() for _, ours in ended])
    )
    found = (
        f"Of {len(ended)} cells BiSSL is better than fine-tuning only in {apart[0]} and worse in {apart[1]} by the "
        f"paper's mark (mean ± standard deviation do not overlap), and in {welch[0]} and {welch[1]} by Welch's t-test "
        "at 5 %"
    )
    known = [cell.paper for cell, _ in ended if cell.paper is not None]
    if not known or not comparable:
        return f"{found}."
    bold = sum(row.bold for row in known)
    same = sum(
        cell.paper is not None and cell.paper.bold == (ours.apart and ours.difference > 0) for cell, ours in ended
    )
    return f"{found}; the paper prints {bold} of them in bold, and {same} of the {len(known)} marks agree."


def _grid(cells: Sequence[Beside], asked: Asked, head: str, note: str) -> Grid:
    by_epochs = asked.what == "figure2"
    columns: tuple[str, ...] = (
        "Pretext epochs" if by_epochs else "Data set",
        "BiSSL",
        "Only FT",
        "Avg diff",
        "Welch's p",
    )
    if not by_epochs:
        columns = (*columns, "Paper: BiSSL", "Paper: Only FT", "Paper: diff")
    rows = tuple(_row(cell, by_epochs) for cell in cells)
    sentences = (f"{head} on the test split (%).", f"Avg diff: BiSSL minus Only FT; {INTERVAL}", MARKS, note)
    return Grid(columns, rows, " ".join(filter(None, sentences)))


def _row(cell: Beside, by_epochs: bool) -> tuple[Cell, ...]:
    name = f"{cell.run.epochs:g}" if by_epochs else cell.run.dataset
    name += f" ({cell.metric.row})" if cell.metric.key == "map" else ""
    row = (Cell(name), *(_ours(cell.ours)))
    return row if by_epochs else (*row, *_paper(cell.paper))


def _ours(found: Comparison | None) -> tuple[Cell, ...]:
    if found is None:
        return tuple(map(Cell, "————"))
    better = found.difference > 0
    arms = (Cell(str(found.candidate), found.apart and better), Cell(str(found.baseline), found.apart and not better))
    return (*arms, Cell(difference_words(found)), Cell(p_cell(found, found.p)))


def _paper(row: Printed | None) -> tuple[Cell, ...]:
    if row is None:
        return tuple(map(Cell, "———"))
    bissl, baseline = (f"{mean:.1f} ± {std:.1f}" for mean, std in (row.bissl, row.baseline))
    return Cell(bissl, row.bold), Cell(baseline), Cell(signed(row.difference))


def _metrics(run: PaperRun, results: Results | None) -> list[Metric]:
    """Those of the paper for a set."""
    keys = {metric.key for metric in results.metrics} if results is not None else set()
    wanted = [metric for metric in METRICS if metric.key in ("top1", "top5", "map")]
    named = [metric for metric in wanted if printed(run.dataset, metric.key) is not None]
    return [metric for metric in wanted if metric.key in keys] or named
