"""`bissl-fast train`."""

import argparse
import shlex
from pathlib import Path

import tyro
from rich.console import Console

from bissl_fast.cli.report import print_results
from bissl_fast.errors import UserError
from bissl_fast.methods.checks import require
from bissl_fast.methods.config import TrainConfig, load_config
from bissl_fast.methods.presets import preset_config
from bissl_fast.training.interruption import Interrupted, interruptible
from bissl_fast.training.tracking import say

DESCRIPTION = """Run BiSSL beside its baseline, from pretext training to test.

Stages: pretext-warmup, head-warmup, bissl, pretext-baseline, finetune-bissl-*, finetune-baseline-*, test. Each is kept
in the run's folder: a finished one is skipped, a broken one goes on. Defaults below are those of --preset for
--dataset; --config FILE takes them from an earlier run's config.yaml instead.
"""


def train_command(arguments: list[str]) -> None:
    """Parse the settings, run the stages, print the table and write the report."""
    config = parse_config(arguments).located()
    console = Console()
    say(console, f"bissl-fast train  {config.dataset}, preset {config.preset} → {config.run_folder}", "bold")
    from bissl_fast.methods.train import train

    try:
        with interruptible():
            folder = train(config, console)
            print_results(folder, console)
    except Interrupted as error:
        command = shlex.join(["bissl-fast", "train", "--config", str(config.run_folder / "config.yaml")])
        raise Interrupted(f"{error} Go on with: {command}") from None


def parse_config(arguments: list[str]) -> TrainConfig:
    """The preset or config file named on the command line, with all other options laid over it.

    Raises:
        UserError: for a config file that cannot be used or settings that cannot be meant.
        SystemExit: for help and for options that do not exist.
    """
    usage = "%(prog)s [OPTIONS]     (%(prog)s --help tells more)"
    first = argparse.ArgumentParser("bissl-fast train", usage, add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--preset")
    first.add_argument("--dataset")
    found, rest = first.parse_known_args(arguments)
    known = found.preset in (None, "paper", "official", "quick")
    require(known, "preset", repr(found.preset), "paper, official or quick")
    if found.config is None:
        default = preset_config(found.preset or "quick", "textures" if found.dataset is None else found.dataset)
    elif found.preset or found.dataset is not None:
        raise UserError("--config names preset and data set, whose rates it holds: leave out --preset and --dataset.")
    else:
        default = load_config(found.config)
    return tyro.cli(
        TrainConfig,
        prog="bissl-fast train",
        description=DESCRIPTION,
        default=default,
        args=rest,
        config=(tyro.conf.AvoidSubcommands,),
    )
