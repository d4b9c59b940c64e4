"""`bissl-fast report`, and the end of `bissl-fast train`."""

from pathlib import Path

import tyro
from rich.console import Console

from bissl_fast.evaluation.report import write_report
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import verdict
from bissl_fast.training.tracking import say


def report_command(arguments: list[str]) -> None:
    """Write the report of a run folder anew."""

    def report(run: tyro.conf.Positional[Path]) -> None:
        """Write report.html and figures of a run, finished or not, and print its table.

        Args:
            run: the run's folder, e.g. runs/textures-quick-0.
        """
        print_results(run, Console())

    tyro.cli(report, prog="bissl-fast report", args=arguments)


def print_results(folder: Path, console: Console) -> None:
    """Print the closing table and write the report."""
    run = RunFolder(folder)
    if (folder / "results.json").exists():
        results = run.results()
        console.print(results_table(results).to_rich())
        say(console, verdict(results))
    say(console, f"Report: {write_report(folder)}")
