"""`bissl-fast evaluate`."""

import tyro
from rich.console import Console

from bissl_fast.cli.arguments import spread
from bissl_fast.evaluation.protocols import PROTOCOLS
from bissl_fast.evaluation.table import scores_grid
from bissl_fast.methods.config import METHODS
from bissl_fast.methods.evaluate import EvaluateConfig, evaluate
from bissl_fast.training.console import say
from bissl_fast.training.interruption import interruptible
from bissl_fast.training.memory import memory_told

DESCRIPTION = """Score the backbones of a run, or any other weights, on a labelled set.

Each protocol's scores are kept in a file of their own and read from it when they are asked for again.
docs/evaluation.md says what each does.
"""


def parse_evaluation(arguments: list[str]) -> EvaluateConfig:
    """The settings that a command line stands for."""
    words = [part for argument in arguments for part in spread(argument, (*PROTOCOLS, "all", *METHODS))]
    return tyro.cli(EvaluateConfig, prog="bissl-fast evaluate", description=DESCRIPTION, args=words)


def evaluate_command(arguments: list[str]) -> None:
    """Parse the settings, run the protocols, print the table."""
    config, console = parse_evaluation(arguments), Console()
    with interruptible(), memory_told():
        found = evaluate(config, console)
    console.print(scores_grid(found.dataset, found.shown).to_rich())
    say(console, f"Scores: {found.folder}")
