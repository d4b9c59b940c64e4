"""`bissl-fast plan`: what a run needs, before it is made."""

import shutil

from rich.console import Console

from bissl_fast.cli.train import DESCRIPTION, given_config, laid_over
from bissl_fast.evaluation.cost import duration, memory_words
from bissl_fast.evaluation.grid import Cell, Grid
from bissl_fast.methods.config import TrainConfig
from bissl_fast.methods.costs.needs import RunNeeds, stage_needs
from bissl_fast.training.console import say
from bissl_fast.training.environment import available_memory
from bissl_fast.training.interruption import interruptible
from bissl_fast.training.precision import find_device

ABOUT = """Tell what a run of `bissl-fast train` with the same options needs: time, memory, disk and second-order
products, stage by stage. A few steps of each stage are made and measured, on the run's own data; the decoded images
stay in the cache. All is of one process: of many ranks each holds its part of a batch and all its networks. All options
are those of `bissl-fast train`:

"""


def plan_command(arguments: list[str]) -> None:
    """Parse the settings, measure, print the table and what there is too little of."""
    default, rest = given_config(arguments, TrainConfig, "bissl-fast plan")
    config = laid_over(default, rest, "bissl-fast plan", ABOUT + DESCRIPTION).located()
    console = Console()
    say(console, f"bissl-fast plan  {config.dataset}, preset {config.preset} → {config.run_folder}", "bold")
    with interruptible():
        found = stage_needs(config, console)
    console.print(grid(found).to_rich())
    for sentence in sentences(found, config):
        say(console, sentence)


def grid(found: RunNeeds) -> Grid:
    """The stages and their sum."""
    rows = [
        tuple(
            map(
                Cell,
                (
                    stage.stage,
                    f"{stage.steps:,}" if stage.steps else "",
                    duration(stage.seconds),
                    memory_words(stage.memory),
                    memory_words(stage.disk),
                    memory_words(stage.checkpoints) if stage.checkpoints else "",
                ),
            )
        )
        for stage in found.stages
    ]
    total = ("in all", "", duration(found.seconds), memory_words(found.memory), memory_words(found.disk), "")
    columns = ("Stage", "Steps", "Time", "Peak memory", "Disk", "Checkpoints")
    return Grid(columns, (*rows, tuple(map(Cell, total))), "Disk of all stages is with their largest checkpoints.")


def sentences(found: RunNeeds, config: TrainConfig) -> list[str]:
    """What stands below the table: products, cache, and what there is too little of."""
    told = [
        f"{found.titles[name]}: {cost.images:,} images through forward and backward passes, {cost.products:,} products "
        "of second order at most"
        for name, cost in found.costs.items()
    ]
    told.append(f"Decoded images: {memory_words(found.cache)} in the cache; {duration(found.preparation)} to prepare.")
    free = shutil.disk_usage(config.output).free
    if found.disk > free:
        told.append(f"{config.output} has {memory_words(free)} free, and the run needs {memory_words(found.disk)}.")
    device = find_device(config.device)
    there = available_memory(device)
    if found.memory > there:
        told.append(f"{device} has {memory_words(there)} free, and the run needs {memory_words(found.memory)}.")
    return told
