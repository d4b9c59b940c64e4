"""`bissl-fast report`, and the end of `bissl-fast train`."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import tyro
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.evaluation.comparison import comparison_table, read_comparison
from bissl_fast.evaluation.plan import is_comparison
from bissl_fast.evaluation.report.comparison import write_comparison
from bissl_fast.evaluation.report.run import write_report
from bissl_fast.evaluation.report.runs import claim, members_of, scores_table, write_runs
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import sentences
from bissl_fast.training.console import say


def report_command(arguments: list[str]) -> None:
    """Write the report of a run folder anew, or one of several runs."""

    def report(runs: tyro.conf.Positional[tuple[Path, ...]], output: Path | None = None) -> None:
        """Write report.html and figures of a run or a comparison, finished or not, and print its table.

        Of several runs one page is written that sets them beside each other.

        Args:
            runs: the folder, e.g. runs/textures-quick-0, or those of several runs.
            output: the page of several runs; left out: runs.html in the folder that holds them.
        """
        if len(runs) > 1:
            print_runs(runs, output, Console())
            return
        if not runs or output is not None:
            wanted = "--output is for the page of several runs" if runs else "none is given"
            raise UserError(f"bissl-fast report takes the folder of a run, or those of several: {wanted}.")
        (print_comparison if is_comparison(runs[0]) else print_results)(runs[0], Console())

    tyro.cli(report, prog="bissl-fast report", args=arguments)


def print_results(folder: Path, console: Console) -> None:
    """Print the closing table and write the report."""
    run = RunFolder(folder)
    if (folder / "results.json").exists():
        results = run.results()
        console.print(results_table(results).to_rich())
        for sentence in sentences(results):
            say(console, sentence)
    say(console, f"Report: {write_report(folder)}")


def print_comparison(folder: Path, console: Console) -> None:
    """The same of a comparison."""
    report = write_comparison(folder)
    with suppress(UserError):  # no pretext seed finished yet, which the report tells
        compared = read_comparison(folder)
        console.print(comparison_table(compared).to_rich())
        for sentence in sentences(compared.over_pretext_seeds):
            say(console, sentence)
    say(console, f"Report: {report}")


def print_runs(folders: Sequence[Path], output: Path | None, console: Console) -> None:
    """Write the page of several runs and print their scores."""
    page, members = write_runs(folders, output), members_of(folders)
    console.print(scores_table(members).to_rich())
    say(console, claim(members))
    say(console, f"Report: {page}")
