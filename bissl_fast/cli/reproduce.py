"""`bissl-fast reproduce`: a table or a figure of BiSSL's paper, ours beside theirs."""

import argparse
from pathlib import Path

from rich.console import Console

from bissl_fast.cli.arguments import resumable
from bissl_fast.cli.train import laid_over
from bissl_fast.errors import UserError
from bissl_fast.experiments.paper_runs import EPOCHS, SETS, WHATS, Asked, folder_of
from bissl_fast.methods.config import TrainConfig
from bissl_fast.training.console import say

DESCRIPTION = """Make a table or a figure of BiSSL's paper again, and set the result beside what the paper prints.

First a probe of a minute or two measures what a step of each kind takes, and a table tells what all runs will cost on
this machine; --plan stops there, and counts sets that are not there as complete. Then every run is made: finished
stages are skipped, broken ones go on, and pretext stages are shared. Sets that are not there are named at the start and
left out. All other options are those of `bissl-fast train` and are laid over the paper's settings, e.g. --data-root DIR
--device cuda --backbone resnet34.
docs/reproducing.md tells what is done as in the paper and what departs.
"""
FIXED = ("--dataset", "--preset", "--config", "--name", "--pretext")


def reproduce_command(arguments: list[str]) -> None:
    """Parse what is asked for, tell what it costs, make the runs, print ours beside the paper's."""
    given, rest = parser().parse_known_args(arguments)
    for option in rest:
        if option.partition("=")[0] in FIXED:
            raise UserError(f"{option} is the paper's here: choose sets with --datasets, and leave it out.")
    datasets = tuple(name for name in (given.datasets or ",".join(SETS[given.what])).split(",") if name)
    asked = Asked(given.what, datasets, given.scale, given.rates, numbers(given.epochs))
    output = folder_of(given.output, asked.scale)

    def lay(config: TrainConfig) -> TrainConfig:
        options = [*rest, "--output", str(output)]
        return laid_over(config, options, f"bissl-fast reproduce {asked.what}", DESCRIPTION).located()

    console = Console()
    say(console, f"bissl-fast reproduce {asked.what}  {', '.join(datasets)} → {output}", "bold")
    from bissl_fast.experiments.reproduction import Reproduction

    with resumable("reproduce", *arguments):
        reproduction = Reproduction(asked, lay, console, given.plan, given.probe_seconds)
        reproduction.plan()
        if not given.plan:
            reproduction.run()


def parser() -> argparse.ArgumentParser:
    """Of the options that are not those of `bissl-fast train`."""
    found = argparse.ArgumentParser(
        "bissl-fast reproduce",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found.add_argument("what", choices=WHATS, help="what is made")
    found.add_argument("--datasets", metavar="A,B", help="some of its sets; left out: all of them")
    found.add_argument("--scale", type=float, default=1.0, help="of all lengths, above 0 and at most 1 (default: 1)")
    found.add_argument(
        "--rates",
        choices=("search", "paper"),
        default="search",
        help="of fine-tuning, for table1 and figure2: 200 trials for each arm, or those of Tables 2 and 4 "
        "(default: search)",
    )
    points = ",".join(f"{epochs:g}" for epochs in EPOCHS)
    found.add_argument("--epochs", metavar="A,B", default=points, help=f"points of figure2 (default: {points})")
    found.add_argument("--output", type=Path, help="folder of all runs (default: runs/reproduce, or with the scale)")
    found.add_argument("--plan", "--dry-run", action="store_true", help="tell what it costs, and stop")
    found.add_argument(
        "--probe-seconds", type=float, default=4.0, help="each kind of step is measured for (default: 4)"
    )
    return found


def numbers(words: str) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        UserError: if one is none.

    Example:
        >>> numbers("200,400")
        (200.0, 400.0)
    """
    try:
        return tuple(float(word) for word in words.split(",") if word)
    except ValueError:
        raise UserError(f"--epochs takes numbers with commas between them, as 200,400, found {words!r}.") from None
