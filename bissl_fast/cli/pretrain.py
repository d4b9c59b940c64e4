"""`bissl-fast pretrain`."""

import shlex
from dataclasses import replace

from rich.console import Console

from bissl_fast.cli.arguments import resumable
from bissl_fast.cli.train import given_config, laid_over
from bissl_fast.methods.config import PretextConfig
from bissl_fast.pretext import TASKS
from bissl_fast.training.console import say

DESCRIPTION = f"""Train a pretext task alone and leave its backbone.

--pretext NAME is one of {", ".join(task.name for task in TASKS)}, with the views of its
paper, and but for --preset quick its optimiser and rate;
batch size and epochs are those of --preset. The images of --dataset are used without their labels, or those of
--pretext-dataset. A finished stage is skipped, a broken one goes on.
"""


def pretrain_command(arguments: list[str]) -> None:
    """Parse the settings, train, and tell where the backbone is and how to go on with it."""
    default, rest = given_config(arguments, PretextConfig, "bissl-fast pretrain")
    config = laid_over(default, rest, "bissl-fast pretrain", DESCRIPTION)
    config = replace(
        config,
        pretext_dataset=config.pretext_dataset or config.dataset,
        name=config.name or f"{config.run_folder.name}-{config.pretext.name}",
    ).located()
    console = Console()
    task, images = config.pretext.name, config.pretext_dataset
    say(console, f"bissl-fast pretrain  {task} on {images} → {config.run_folder}", "bold")
    from bissl_fast.methods.train import pretrain

    with resumable("pretrain", *arguments):
        folder = pretrain(config, console)
    say(console, f"Backbone: {folder / 'weights.safetensors'}")
    run = shlex.quote(str(folder))
    say(console, f"Go on with `bissl-fast train --weights {run}` or `bissl-fast embed {run} IMAGES`.")
