"""The closing table, as Table 1 of BiSSL reads, and what stands below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bissl_fast.evaluation.arms import listed, title_of
from bissl_fast.evaluation.cost import uneven_budgets
from bissl_fast.evaluation.grid import Cell, Grid, ResultTable
from bissl_fast.evaluation.metrics import BESIDE, METRICS, Metric
from bissl_fast.evaluation.results import ArmResult, Results
from bissl_fast.evaluation.statistics import Comparison, difference_words, p_cell

if TYPE_CHECKING:
    from bissl_fast.evaluation.protocols.subject import Scores

SEEDS = "Of fine-tuning: mean ± sample standard deviation over its seeds."
CALIBRATION = "Calibration error: expected, of the top label in 15 equal bins; lower is better."
EPISODES = "Of few-shot tasks: mean ± 95 % interval over the episodes."
INTERVAL = (
    "in brackets its 95 % bootstrap interval (percentiles over the seeds, three at least), which with few seeds is too "
    "narrow."
)
RULES = {
    "balanced": "of the trials within one standard error of the highest score, the one with the lowest loss",
    "accuracy": "the highest score",
}
"""Of the choice among trials, by the names that ``--search.rule`` takes."""


def results_table(results: Results) -> ResultTable:
    """Table 1 for one data set: top-1 and top-5, or mAP, of every arm, and what the arms cost.

    Two arms stand side by side, as in the paper; of more, each has a row with its difference to the reference.

    Args:
        results: test metrics of all arms.

    Returns:
        The table with two marks. Bold, as in Table 1: the better arm where the intervals mean ± std do not
        overlap. An asterisk: Welch's p, of several comparisons after Holm's correction, is below 0.05. Either can
        stand without the other.

    Example:
        >>> rich.print(results_table(Results.from_json(json.loads(path.read_text()))).to_rich())  # doctest: +SKIP
    """
    layout = {1: _one_arm, 2: _two_arms}.get(len(results.arms), _many_arms)
    grids = (layout(results), _origins(results), _rates(results), _costs(results))
    return ResultTable(tuple(grid for grid in grids if grid is not None))


def scores_grid(dataset: str, scores: Mapping[str, Scores]) -> Grid:
    """Scores of protocols: a row for each, a column for each backbone.

    Args:
        dataset: that they are of.
        scores: by what the backbone is called, then by key; all have the same keys.

    Example:
        >>> rich.print(scores_grid("dtd", {"baseline": {"knn_top1": Score(41.5)}}).to_rich())  # doctest: +SKIP
    """
    rows = {metric.key: metric.row for metric in (*METRICS, *BESIDE)}
    keys = dict.fromkeys(key for found in scores.values() for key in found)
    lines = tuple(
        (Cell(rows.get(key, key.replace("_", " "))), *(Cell(str(found[key])) for found in scores.values()))
        for key in keys
    )
    every = [score for found in scores.values() for score in found.values()]
    sentences = (
        f"{dataset}.",
        SEEDS if any(len(score.seeds) > 1 for score in every) else "",
        EPISODES if any(score.interval is not None for score in every) else "",
        CALIBRATION if any(key.endswith("_ece") for key in keys) else "",
    )
    return Grid(("Test score (%)", *map(title_of, scores)), lines, " ".join(filter(None, sentences)))


def _one_arm(results: Results) -> Grid:
    arm = results.reference
    rows = tuple((Cell(metric.row), Cell(arm.words(metric))) for metric in results.metrics)
    return Grid((_quantity(results), arm.title), rows, " ".join((*_seeds(results), *_remarks(results))))


def _two_arms(results: Results) -> Grid:
    candidate, reference = results.candidates[0].title, results.reference.title
    rows = []
    for metric in results.metrics:
        if not (comparisons := results.comparisons(metric)):
            scores = (arm.words(metric) for arm in (results.candidates[0], results.reference))
            rows.append((Cell(metric.row), *map(Cell, scores), Cell("—"), Cell("—")))
            continue
        (comparison,) = comparisons.values()
        ours = Cell(results.candidates[0].words(metric), comparison.apart and comparison.difference > 0)
        theirs = Cell(results.reference.words(metric), comparison.apart and comparison.difference < 0)
        rows.append((Cell(metric.row), ours, theirs, *_difference(comparison)))
    sentences = (
        *_seeds(results),
        _bracketed(results, f"Avg diff is {candidate} minus {reference}, in percentage points"),
        "Bold, as in the paper's Table 1: the intervals mean ± standard deviation do not overlap.",
        "*: significantly different by Welch's t-test at 5 %.",
        *_untested(results),
        *_remarks(results),
    )
    return Grid((_quantity(results), candidate, reference, "Avg diff", "Welch's p"), tuple(rows), " ".join(sentences))


def _many_arms(results: Results) -> Grid:
    rows = [
        (Cell(arm.title), *(cell for metric in results.metrics for cell in _candidate(results, metric, arm)))
        for arm in results.candidates
    ]
    scores = (_reference(results.reference, metric, results.comparisons(metric)) for metric in results.metrics)
    reference = (Cell(results.reference.title), *(cell for cells in scores for cell in cells))
    rows.insert(results.arms.index(results.reference), reference)
    title, count = results.reference.title, len(results.candidates)
    sentences = (
        f"{_quantity(results)}:",
        *_seeds(results),
        _bracketed(results, f"Diff is the arm minus {title}, in percentage points"),
        "p is Welch's.",
        f"Bold: the interval mean ± standard deviation lies above that of {title}, or for {title} above all others.",
        f"*: significantly different from {title} at 5 %, by Welch's t-test after Holm's correction for the "
        f"{count} comparisons per metric.",
        *_untested(results),
        *_remarks(results),
    )
    heads = (head for m in results.metrics for head in (f"{m.row} (%)", f"{m.row} diff", f"{m.row} p"))
    return Grid(("Arm", *heads), tuple(rows), " ".join(sentences))


def _bracketed(results: Results, sentence: str) -> str:
    """A sentence about differences, and what the brackets behind them are, if there are any."""
    found = (comparison for metric in results.metrics for comparison in results.comparisons(metric).values())
    shown = any(comparison.interval is not None for comparison in found)
    return f"{sentence}; {INTERVAL}" if shown else f"{sentence}."


def _candidate(results: Results, metric: Metric, arm: ArmResult) -> tuple[Cell, ...]:
    comparison = results.comparisons(metric).get(arm.name)
    if comparison is None:
        return Cell(arm.words(metric)), Cell("—"), Cell("—")
    best = comparison.apart and comparison.difference > 0
    return (Cell(arm.words(metric), best), *_difference(comparison))


def _reference(arm: ArmResult, metric: Metric, comparisons: Mapping[str, Comparison]) -> tuple[Cell, ...]:
    best = bool(comparisons) and all(found.apart and found.difference < 0 for found in comparisons.values())
    return (Cell(arm.words(metric), best), Cell(""), Cell(""))


def _difference(comparison: Comparison) -> tuple[Cell, Cell]:
    return Cell(difference_words(comparison)), Cell(p_cell(comparison, comparison.p))


def _origins(results: Results) -> Grid | None:
    """Every backbone, from the untrained one on, as it is and fine-tuned; None where only the arms' were judged."""
    if not results.controls:
        return None
    arms = (results.reference, *results.candidates)
    frozen = [metric for metric in results.metrics if metric.frozen]
    tuned = [metric for metric in results.metrics if not metric.frozen][:1]
    columns = [f"{metric.row} (%)" for metric in frozen] + [f"Fine-tuned {metric.row} (%)" for metric in tuned]
    rows = tuple(
        (Cell(shown.title), *(Cell(shown.words(metric)) for metric in (*frozen, *tuned)))
        for shown in (*results.controls, *arms)
    )
    sentences = [f"{results.controls[0].title}: the weights that all training starts from."]
    if frozen:
        sentences.append("Batch-norm statistics of all are those of pretext images, and no weight has moved since.")
    if tuned:
        sentences.append("Those of no arm are fine-tuned with the rates of the baseline.")
    return Grid(("Backbone", *columns), rows, " ".join(sentences))


def _rates(results: Results) -> Grid | None:
    """What the searches have found, a row for each backbone that had one."""
    rows, told = [], set()
    for arm in results.arms:
        for rates in arm.rates:
            numbers = (f"{rates.learning_rate:.3g}", f"{rates.weight_decay:.3g}")
            found = (f"{rates.score:.1f}", f"{rates.loss:.3f}", str(rates.trials))
            rows.append((Cell(arm.title), *map(Cell, (*numbers, *found))))
            told.add(rates.rule)
    if not rows:
        return None
    columns = (
        "Searched rates",
        "Learning rate",
        "Weight decay",
        f"Val. {results.metrics[0].row}",
        "Val. loss",
        "Trials",
    )
    sentences = (
        "Rates of fine-tuning, chosen by validation images, which every arm had the same number of trials for.",
        f"Rule: {listed([RULES.get(rule, rule) for rule in sorted(told)])}.",
        "Score and loss are of the trial's one model, at its best epoch.",
    )
    return Grid(columns, tuple(rows), " ".join(sentences))


def _costs(results: Results) -> Grid | None:
    words = [arm.cost.words() for arm in results.arms]
    stated = [column for column in words[0] if any(row[column] != "—" for row in words)]
    if not stated:
        return None
    rows = tuple(
        (Cell(arm.title), *(Cell(row[column]) for column in stated))
        for arm, row in zip(results.arms, words, strict=True)
    )
    sentences = (
        uneven_budgets({arm.title: arm.cost for arm in results.arms}),
        "What a backbone cost before fine-tuning, which is the same for every arm."
        if results.fine_tuned
        else "What a backbone cost.",
        "Passes: one batch forward and backward. Images: through such passes, each once whatever its views.",
        "Products: of second order, counted apart.",
        "Model-epochs: images over the size of the unlabelled set.",
        "Time: in which its stages were at work; one that arms share counts for each." if "Time" in stated else "",
        "Peak memory: the most that one of these stages held, of the GPU where there is one, else of the process."
        if "Peak memory" in stated
        else "",
    )
    return Grid(("Cost", *stated), rows, " ".join(filter(None, sentences)))


def _quantity(results: Results) -> str:
    return f"Test {results.metrics[0].quantity} (%)"


def _seeds(results: Results) -> tuple[str, ...]:
    counts = {arm.title: len(arm.scores[results.metrics[0].key].scores) for arm in results.arms}
    few, many = min(counts.values()), max(counts.values())
    seeds = f"{few}" if few == many else listed([f"{count} ({title})" for title, count in counts.items()])
    spread = "Mean ± sample standard deviation over the seeds."
    over, classes = results.seeds == "pretext", f"{results.classes} classes"
    if not results.fine_tuned:
        classes += " to test, none of them trained on"
    return (
        f"{results.dataset}, {classes}, {results.seeds} seeds per arm: {seeds}.",
        *(["Each score is the mean over a backbone's fine-tuning seeds."] if over and results.fine_tuned else []),
        spread if few > 1 else "A single seed has no standard deviation.",
    )


def _untested(results: Results) -> list[str]:
    """Why there is no p where there is none, once for all rows and arms that share the reason."""
    rows: dict[str, list[str]] = {}
    for metric in results.metrics:
        comparisons = results.comparisons(metric)
        for reason in dict.fromkeys(found.untested for found in comparisons.values() if found.untested):
            titles = {arm.name: arm.title for arm in results.candidates}
            arms = [titles[name] for name, found in comparisons.items() if found.untested == reason]
            where = metric.row if len(arms) == len(comparisons) else f"{metric.row} of {listed(arms)}"
            rows.setdefault(reason, []).append(where)
    return [f"{listed(where)}: {reason}." for reason, where in rows.items()]


def _remarks(results: Results) -> list[str]:
    keys, sentences = {metric.key for metric in results.metrics}, []
    if not results.fine_tuned:
        sentences.append("Frozen backbones, a new classifier in each episode; nothing is fine-tuned.")
    if any(arm.intervals for arm in results.arms):
        sentences.append(EPISODES)
    if "map" in keys:
        counted = " Difficult objects count as present, which VOC2007 leaves out." if results.difficult_present else ""
        sentences.append(f"mAP: mean over the classes of VOC2007's 11-point average precision.{counted}")
    if "top5" in keys and results.classes <= 5:
        sentences.append("With five classes or fewer, top-5 is 100 % by definition.")
    return sentences
