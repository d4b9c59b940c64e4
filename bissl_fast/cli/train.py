"""`bissl-fast train`."""

import argparse
import shlex
from dataclasses import fields
from functools import partial
from pathlib import Path

import tyro
from rich.console import Console

from bissl_fast.cli.arguments import resumable, spread
from bissl_fast.cli.report import print_results
from bissl_fast.errors import UserError
from bissl_fast.evaluation.protocols import PROTOCOLS
from bissl_fast.export.exporting import WRITERS, Format, export
from bissl_fast.export.loading import load
from bissl_fast.methods.checks import require
from bissl_fast.methods.config import METHODS, TrainConfig, load_config
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.settings import AnyRun
from bissl_fast.ops.collectives import Ranks
from bissl_fast.pretext import TASKS
from bissl_fast.training.console import say
from bissl_fast.training.ranks.lead import is_lead
from bissl_fast.training.trackers.tracker import TRACKERS

DESCRIPTION = f"""Run methods beside each other, from pretext training to test.

--methods names one or more of {", ".join(METHODS)}; docs/methods.md says which stages each has. Each stage is kept
in the run's folder: a finished one is skipped, a broken one goes on. Defaults below are those of --preset for
--dataset; --config FILE takes them from an earlier run's config.yaml instead. --pretext NAME takes another pretext
task, with the views of its paper, and but for --preset quick its optimiser and rate:
{", ".join(task.name for task in TASKS)}.
On a set with other classes to test than to train (omniglot-fewshot) nothing is fine-tuned: few-shot tasks judge the
backbones, in stages protocols-*; --methods baseline,gessl,fussl are those that need no label.
--export hf,onnx (or timm, torchvision) also leaves the first method's backbone for these libraries, in RUN/export.
"""


def train_command(given: list[str]) -> None:
    """Parse the settings, run the stages, print the table, write the report and export the backbone if asked to."""
    formats, arguments = wanted_exports(given)
    config = parse_config(arguments).located()
    for kind in formats:
        WRITERS[kind].require(config.backbone, config.images.channels)
    console = Console()
    say(console, f"bissl-fast train  {config.dataset}, preset {config.preset} → {config.run_folder}", "bold")
    from bissl_fast.methods.train import train

    with resumable("train", *given):
        folder = train(config, console, partial(print_results, console=console))
        for kind in formats if is_lead(Ranks.present()) else ():
            say(console, f"Export: {export(load(folder), kind)}")
    if any(folder.glob("finetune-*")):
        run = shlex.quote(str(folder))
        say(console, f"Go on with `bissl-fast predict {run} IMAGES` or `bissl-fast export {run} --format timm`.")


def wanted_exports(arguments: list[str]) -> tuple[list[Format], list[str]]:
    """The formats behind ``--export``, with commas, and the other arguments.

    Raises:
        UserError: if there is no such format.
    """
    parser = argparse.ArgumentParser("bissl-fast train", add_help=False, allow_abbrev=False)
    parser.add_argument("--export", default="")
    found, rest = parser.parse_known_args(arguments)
    words = [word for word in found.export.split(",") if word]
    for word in words:
        require(word in WRITERS, "export", repr(word), f"one or more of {', '.join(WRITERS)}")
    return [kind for kind in WRITERS if kind in words], rest


def parse_config(arguments: list[str]) -> TrainConfig:
    """The preset or config file named on the command line, with all other options laid over it.

    Raises:
        UserError: for a config file that cannot be used or settings that cannot be meant.
        SystemExit: for help and for options that do not exist.
    """
    default, rest = given_config(arguments, TrainConfig, "bissl-fast train")
    return laid_over(default, rest, "bissl-fast train", DESCRIPTION)


def given_config(arguments: list[str], kind: type[AnyRun], prog: str) -> tuple[AnyRun, list[str]]:
    """The preset, with its pretext task, or the config file that arguments name, and the other arguments.

    Raises:
        UserError: if there is none such.
    """
    usage = "%(prog)s [OPTIONS]     (%(prog)s --help tells more)"
    first = argparse.ArgumentParser(prog, usage, add_help=False, allow_abbrev=False)
    for option in ("--preset", "--dataset", "--pretext"):
        first.add_argument(option)
    first.add_argument("--config", type=Path)
    found, rest = first.parse_known_args(arguments)
    known = found.preset in (None, "paper", "official", "quick")
    require(known, "preset", repr(found.preset), "paper, official or quick")
    if found.config is not None:
        if found.preset or found.pretext or found.dataset is not None:
            raise UserError(
                "--config names preset, data set and pretext task, with all that follows from them: leave out "
                "--preset, --dataset and --pretext."
            )
        return load_config(found.config, kind), rest
    dataset = "textures" if found.dataset is None else found.dataset
    config = preset_config(found.preset or "quick", dataset, "simclr" if found.pretext is None else found.pretext)
    names = (field.name for field in fields(kind) if hasattr(config, field.name))
    return kind(**{name: getattr(config, name) for name in names}), rest


def laid_over(default: AnyRun, arguments: list[str], prog: str, description: str) -> AnyRun:
    """The config that arguments make of another."""
    arguments = [part for argument in arguments for part in spread(argument, (*METHODS, *PROTOCOLS, *TRACKERS))]
    return tyro.cli(
        type(default),
        prog=prog,
        description=description,
        default=default,
        args=arguments,
        config=(tyro.conf.AvoidSubcommands,),
    )
