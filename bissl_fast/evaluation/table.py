"""The closing table, as Table 1 of BiSSL reads, for the terminal, Markdown and HTML from one structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from bissl_fast.errors import UserError
from bissl_fast.evaluation.metrics import METRICS, Metric
from bissl_fast.evaluation.statistics import Arm, Comparison, compare

if TYPE_CHECKING:
    from rich.table import Table

ALPHA = 0.05
ARMS = ("BiSSL", "Only FT", "Avg diff", "Welch's p")


@dataclass(frozen=True)
class Results:
    """Test metrics of both arms, in percent (`results.json` of a run folder).

    Attributes:
        dataset: its name.
        classes: how many it has.
        metrics: those that the data set has; the arms are judged by the first.
        difficult_present: whether mAP counts difficult objects as present.
    """

    dataset: str
    classes: int
    metrics: tuple[tuple[Metric, Comparison], ...]
    difficult_present: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Results:
        """Read the content of `results.json`.

        Raises:
            UserError: if a field is missing or of another type.
        """
        try:
            bissl, baseline = content["bissl"], content["baseline"]
            known = [metric for metric in METRICS if metric.key in bissl]
            if not known:
                raise KeyError(METRICS[0].key)
            metrics = tuple((metric, compare(bissl[metric.key], baseline[metric.key])) for metric in known)
            present = content.get("difficult") == "present"
            return cls(str(content["dataset"]), int(content["classes"]), metrics, present)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"results.json is not as the test stage writes it ({error!r}): "
                "delete the run's test folder and run the same command again."
            ) from None


@dataclass(frozen=True)
class Cell:
    """Text of one cell; `best` marks the arm whose interval lies above the other's."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class ResultTable:
    """Rows of cells under `columns`, with a caption that says how to read them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str

    def to_rich(self) -> Table:
        """The table for the terminal. Names are shown as they are, never read as rich markup."""
        from rich.table import Table
        from rich.text import Text

        table = Table(caption=Text(self.caption), caption_justify="left", min_width=72)
        for index, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if index else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in row))
        return table

    def to_markdown(self) -> str:
        """The table as GitHub-flavoured Markdown, ending in a newline."""

        def line(cells: list[str]) -> str:
            return "| " + " | ".join(cells) + " |\n"

        head = line(list(self.columns)) + line(["---"] + ["---:"] * (len(self.columns) - 1))
        rows = [line([f"**{cell.text}**" if cell.best else cell.text for cell in row]) for row in self.rows]
        return head + "".join(rows) + "\n" + escape(self.caption, quote=False) + "\n"

    def to_html(self) -> str:
        """The table as an HTML `<table>` with `<caption>`, every text escaped."""
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in self.columns)
        body = []
        for name, *cells in self.rows:
            texts = (f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text) for cell in cells)
            values = "".join(f"<td>{text}</td>" for text in texts)
            body.append(f'<tr><th scope="row">{escape(name.text)}</th>{values}</tr>')
        return (
            f"<table><caption>{escape(self.caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        )


def results_table(results: Results) -> ResultTable:
    """Table 1 for one data set: top-1 and top-5, or mAP, of BiSSL beside fine-tuning only.

    Args:
        results: test metrics of both arms.

    Returns:
        The table with two marks. Bold, as in Table 1: the better arm where the intervals mean ± std do not
        overlap. An asterisk: Welch's p is below 0.05. Either can stand without the other.

    Example:
        >>> rich.print(results_table(Results.from_json(json.loads(path.read_text()))).to_rich())  # doctest: +SKIP
    """
    rows = tuple(_row(metric.row, comparison) for metric, comparison in results.metrics)
    return ResultTable((f"Test {results.metrics[0][0].quantity} (%)", *ARMS), rows, _caption(results))


def verdict(results: Results) -> str:
    """One sentence that says whether BiSSL was better, worse or neither on the test split, by the first metric."""
    metric, score = results.metrics[0]
    if score.p is None:
        relation = "ahead of" if score.difference > 0 else "behind" if score.difference < 0 else "level with"
        opening, closing = f"BiSSL is {relation} fine-tuning only", f", but {score.untested}"
    elif score.significant(ALPHA):
        relation = "better" if score.difference > 0 else "worse"
        opening = f"BiSSL is significantly {relation} than fine-tuning only"
        closing = f" (Welch's t-test, p {_p_relation(score.p)})"
    else:
        opening = "BiSSL is not significantly different from fine-tuning only"
        closing = f" (Welch's t-test, p {_p_relation(score.p)})"
    ours, theirs = (_spread(arm) + "\u00a0%" for arm in (score.candidate, score.baseline))
    scores = f"{ours} against {theirs} {metric.words}"
    return f"{opening} on {results.dataset}: {scores}{closing}."


def _row(name: str, comparison: Comparison) -> tuple[Cell, ...]:
    mark = " *" if comparison.significant(ALPHA) else ""
    return (
        Cell(name),
        Cell(_spread(comparison.candidate), comparison.apart and comparison.difference > 0),
        Cell(_spread(comparison.baseline), comparison.apart and comparison.difference < 0),
        Cell(_signed(comparison.difference)),
        Cell("—" if comparison.p is None else _p_relation(comparison.p).removeprefix("= ") + mark),
    )


def _caption(results: Results) -> str:
    _, score = results.metrics[0]
    ours, theirs = len(score.candidate.scores), len(score.baseline.scores)
    seeds = f"{ours}" if ours == theirs else f"{ours} (BiSSL) and {theirs} (Only FT)"
    sentences = [
        f"{results.dataset}, {results.classes} classes, fine-tuning seeds per arm: {seeds}.",
        "Mean ± sample standard deviation over the seeds."
        if min(ours, theirs) > 1
        else "A single seed has no standard deviation.",
        "Avg diff is BiSSL minus Only FT, in percentage points.",
        "Bold, as in the paper's Table 1: the intervals mean ± standard deviation do not overlap.",
        "*: significantly different by Welch's t-test at 5 %.",
    ]
    for metric, comparison in results.metrics:
        if comparison.untested:
            sentences.append(f"{metric.row}: {comparison.untested}.")
    keys = {metric.key for metric, _ in results.metrics}
    if "map" in keys:
        counted = " Difficult objects count as present, which VOC2007 leaves out." if results.difficult_present else ""
        sentences.append(f"mAP: mean over the classes of VOC2007's 11-point average precision.{counted}")
    if "top5" in keys and results.classes <= 5:
        sentences.append("With five classes or fewer, top-5 is 100 % by definition.")
    return " ".join(sentences)


def _spread(arm: Arm) -> str:
    return f"{arm.mean:.1f}" if arm.std is None else f"{arm.mean:.1f} ± {arm.std:.1f}"


def _signed(value: float) -> str:
    text = f"{abs(value):.1f}"
    sign = "" if text == "0.0" else "+" if value > 0 else "−"
    return sign + text


def _p_relation(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
