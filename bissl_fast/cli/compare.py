"""`bissl-fast compare` and `bissl-fast ablate`: many runs, one report."""

from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from bissl_fast.cli.arguments import resumable
from bissl_fast.cli.report import print_comparison
from bissl_fast.cli.train import given_config, laid_over
from bissl_fast.errors import UserError
from bissl_fast.experiments.comparison import Question, of_methods
from bissl_fast.experiments.studies import STUDIES, study_of
from bissl_fast.methods.config import METHODS, ComparisonConfig
from bissl_fast.ops.collectives import Ranks
from bissl_fast.training.console import say
from bissl_fast.training.ranks.lead import is_lead

COMPARE = f"""Compare methods over pretext seeds, at equal budget.

--methods names two or more of {", ".join(METHODS)}. Each of --seeds pretext seeds is a run of `bissl-fast train`
in a folder of its own, seed-0 and so on: finished stages are skipped, broken ones go on. The budget of a backbone,
--budget in epochs of the unlabelled images forward and backward through one model, is the cost of the baseline as
configured unless it is given; every method takes its longest schedule within. Before anything starts a table tells
what each costs. All other options are those of `bissl-fast train`.
"""
ABLATE = """Ablation {name}: {about}.

Each arm is a run of its own for each of --seeds pretext seeds. Without --budget arms run as configured, and the
table tells what they cost; with it each takes its longest schedule within. All other options are those of
`bissl-fast train`.
"""


def compare_command(arguments: list[str]) -> None:
    """Parse the settings, make the runs, print the tables and write the report."""
    config = parse_comparison(arguments, "bissl-fast compare", COMPARE, "compare")
    if len(config.methods) < 2:
        raise UserError(f"compare needs two or more --methods, found {config.methods[0]} alone.")
    _run(config, ["compare"], arguments, of_methods)


def ablate_command(arguments: list[str]) -> None:
    """The same for the arms of a study."""
    name, *rest = arguments or ["--help"]
    if name in ("--list", "--help", "-h"):
        print(listing(), end="")
        return
    study, prog = study_of(name), f"bissl-fast ablate {name}"
    config = parse_comparison(rest, prog, ABLATE.format(name=name, about=study.about), name)
    _run(config, ["ablate", name], rest, lambda config: study.question(name, config))


def listing() -> str:
    """The studies that there are."""
    width = max(map(len, STUDIES))
    lines = (f"  {name:<{width}}  {study.about}\n" for name, study in STUDIES.items())
    usage = "usage: bissl-fast ablate NAME [OPTIONS]     (bissl-fast ablate NAME --help tells more)"
    return f"{usage}\n\n{''.join(lines)}"


def parse_comparison(arguments: list[str], prog: str, description: str, kind: str) -> ComparisonConfig:
    """The settings of a comparison, with a name for its folder.

    Args:
        arguments: of the command line.
        prog: the command, as help names it.
        description: of the command.
        kind: of the comparison, for a folder that is given no name.

    Raises:
        UserError: for a config file that cannot be used or settings that cannot be meant.
    """
    default, rest = given_config(arguments, ComparisonConfig, prog)
    config = laid_over(default, rest, prog, description)
    return replace(config, name=config.name or f"{kind}-{config.run_folder.name}").located()


def _run(
    config: ComparisonConfig,
    command: list[str],
    arguments: list[str],
    asked: Callable[[ComparisonConfig], Question],
) -> None:
    console = Console()
    say(
        console,
        f"bissl-fast {' '.join(command)}  {config.dataset}, preset {config.preset} → {config.run_folder}",
        "bold",
    )
    from bissl_fast.experiments.comparison import compare

    with resumable(*command, *arguments):
        folder = compare(config, asked(config), console)
        if is_lead(Ranks.present()):
            print_comparison(folder, console)
