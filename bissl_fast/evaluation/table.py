"""The closing table, as Table 1 of BiSSL reads, for the terminal, Markdown and HTML from one structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from bissl_fast.errors import UserError
from bissl_fast.evaluation.statistics import Arm, Comparison, compare

if TYPE_CHECKING:
    from rich.table import Table

ALPHA = 0.05
COLUMNS = ("Test accuracy (%)", "BiSSL", "Only FT", "Avg diff", "Welch's p")


@dataclass(frozen=True)
class Results:
    """Test accuracies of both arms, in percent (`results.json` of a run folder)."""

    dataset: str
    classes: int
    top1: Comparison
    top5: Comparison

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Results:
        """Read the content of `results.json`.

        Raises:
            UserError: if a field is missing or of another type.
        """
        try:
            bissl, baseline = content["bissl"], content["baseline"]
            return cls(
                dataset=str(content["dataset"]),
                classes=int(content["classes"]),
                top1=compare(bissl["top1"], baseline["top1"]),
                top5=compare(bissl["top5"], baseline["top5"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"results.json is not as the test stage writes it ({error!r}): "
                "delete the run's test folder and run the same command again."
            ) from None


@dataclass(frozen=True)
class Cell:
    """Text of one cell; `best` marks the arm that is significantly better."""

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
    """Table 1 for one data set: top-1 and top-5 of BiSSL beside fine-tuning only.

    Args:
        results: test accuracies of both arms.

    Returns:
        The table. The better arm is marked where Welch's p is below 0.05.

    Example:
        >>> rich.print(results_table(Results.from_json(json.loads(path.read_text()))).to_rich())  # doctest: +SKIP
    """
    rows = (_row("Top-1", results.top1), _row("Top-5", results.top5))
    return ResultTable(COLUMNS, rows, _caption(results))


def verdict(results: Results) -> str:
    """One sentence that says whether BiSSL was better, worse or neither, in top-1 test accuracy."""
    top1 = results.top1
    if top1.p is None:
        relation = "ahead of" if top1.difference > 0 else "behind" if top1.difference < 0 else "level with"
        opening, closing = f"BiSSL is {relation} fine-tuning only", f", but {top1.untested}"
    elif top1.significant(ALPHA):
        relation = "better" if top1.difference > 0 else "worse"
        opening = f"BiSSL is significantly {relation} than fine-tuning only"
        closing = f" (Welch's t-test, p {_p_relation(top1.p)})"
    else:
        opening = "BiSSL is not significantly different from fine-tuning only"
        closing = f" (Welch's t-test, p {_p_relation(top1.p)})"
    ours, theirs = (_spread(arm) + "\u00a0%" for arm in (top1.candidate, top1.baseline))
    scores = f"{ours} against {theirs} top-1 accuracy"
    return f"{opening} on {results.dataset}: {scores}{closing}."


def _row(name: str, comparison: Comparison) -> tuple[Cell, ...]:
    significant = comparison.significant(ALPHA)
    return (
        Cell(name),
        Cell(_spread(comparison.candidate), significant and comparison.difference > 0),
        Cell(_spread(comparison.baseline), significant and comparison.difference < 0),
        Cell(_signed(comparison.difference)),
        Cell("—" if comparison.p is None else _p_relation(comparison.p).removeprefix("= ")),
    )


def _caption(results: Results) -> str:
    ours, theirs = len(results.top1.candidate.scores), len(results.top1.baseline.scores)
    seeds = f"{ours}" if ours == theirs else f"{ours} (BiSSL) and {theirs} (Only FT)"
    sentences = [
        f"{results.dataset}, {results.classes} classes, fine-tuning seeds per arm: {seeds}.",
        "Mean ± sample standard deviation over the seeds."
        if min(ours, theirs) > 1
        else "A single seed has no standard deviation.",
        "Avg diff is BiSSL minus Only FT, in percentage points.",
        "Bold: significantly better by Welch's t-test at 5 %.",
    ]
    for name, comparison in (("Top-1", results.top1), ("Top-5", results.top5)):
        if comparison.untested:
            sentences.append(f"{name}: {comparison.untested}.")
    if results.classes <= 5:
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
