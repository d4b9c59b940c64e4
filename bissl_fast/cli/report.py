"""`bissl-fast report`, and the end of `bissl-fast train`."""

from contextlib import suppress
from pathlib import Path

import tyro
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.evaluation.comparison import comparison_table, read_comparison
from bissl_fast.evaluation.comparison_report import write_comparison
from bissl_fast.evaluation.plan import is_comparison
from bissl_fast.evaluation.report import write_report
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import verdict
from bissl_fast.training.tracking import say


def report_command(arguments: list[str]) -> None:
    """Write the report of a run folder anew."""

    def report(run: tyro.conf.Positional[Path]) -> None:
        """Write report.html and figures of a run or a comparison, finished or not, and print its table.

        Args:
            run: the folder, e.g. runs/textures-quick-0.
        """
        (print_comparison if is_comparison(run) else print_results)(run, Console())

    tyro.cli(report, prog="bissl-fast report", args=arguments)


def print_results(folder: Path, console: Console) -> None:
    """Print the closing table and write the report."""
    run = RunFolder(folder)
    if (folder / "results.json").exists():
        results = run.results()
        console.print(results_table(results).to_rich())
        say(console, verdict(results))
    say(console, f"Report: {write_report(folder)}")


def print_comparison(folder: Path, console: Console) -> None:
    """The same of a comparison."""
    report = write_comparison(folder)
    with suppress(UserError):  # no pretext seed finished yet, which the report tells
        compared = read_comparison(folder)
        console.print(comparison_table(compared).to_rich())
        say(console, verdict(compared.over_pretext_seeds))
    say(console, f"Report: {report}")
