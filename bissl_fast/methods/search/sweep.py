"""Searches of runs that another process has begun: help with their trials, or tell how far they are."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import listed
from bissl_fast.evaluation.grid import Cell, Grid
from bissl_fast.evaluation.plan import is_comparison
from bissl_fast.evaluation.run_folder import read_json
from bissl_fast.methods.config import TrainConfig, load_config
from bissl_fast.methods.run import Run
from bissl_fast.methods.search.settings import choose, counted
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.search import ANNOUNCED, Search
from bissl_fast.methods.train import methods_of
from bissl_fast.training.stage import finished_stage

WAIT_SECONDS = 2.0


def searching(folder: Path) -> list[TrainConfig]:
    """The runs in a folder that search rates: the run itself, or those of a comparison.

    Args:
        folder: of `bissl-fast train`, `compare` or `ablate`; it may have been moved or copied.

    Raises:
        UserError: if there is no run, or none that searches.
    """
    folder = folder.expanduser().resolve()
    runs = [file.parent for file in sorted(folder.glob("*/config.yaml"))] if is_comparison(folder) else [folder]
    configs = [replace(load_config(run / "config.yaml", TrainConfig), output=run.parent, name=run.name) for run in runs]
    found = [config for config in configs if config.search.trials and config.search.rates_of is None]
    if not found:
        raise UserError(f"{folder} searches no rates: begin it with `bissl-fast train --search.trials N`.")
    return found


def sweep(config: TrainConfig, arms: Sequence[str], console: Console) -> None:
    """Make trials of a run's searches, with whoever else is at them, until all are finished.

    A search can be helped with as soon as the run has come to its searches, which is waited for.

    Args:
        config: of the run.
        arms: whose searches; none: all.
        console: terminal.

    Raises:
        UserError: for an arm that the run does not have, data that are not there, or a database that does not serve.
    """
    left = list(arms or config.methods)
    if unknown := [arm for arm in left if arm not in config.methods]:
        raise UserError(f"{config.run_folder} has no arm {unknown[0]!r}; it has {listed(list(config.methods))}.")
    run, told = Run(config, config.views, console), False
    while left:
        ready = [search for arm in left if (search := _search(run, config, arm)) is not None]
        for search in ready:
            search.make()
            left.remove(search.arm)
        if left and not ready:
            if not told:
                run.say(
                    f"{run.folder.name}: waits for the backbones of {listed(left)}, which `bissl-fast train` makes by "
                    "the settings and from the images that are here; Ctrl-C ends it"
                )
                told = True
            time.sleep(WAIT_SECONDS)


def state_of(configs: Sequence[TrainConfig]) -> Grid:
    """How far the searches of runs are, a row for each arm.

    Raises:
        UserError: if a database does not serve.
    """
    rows = [row for config in configs for row in _rows(config)]
    columns = ("Search", "Trials", "Rate", "Decay", "Score", "Loss")
    return Grid(columns, tuple(rows), "Rate and decay: what --search.rule would choose now. Score, loss: validation.")


def _search(run: Run, config: TrainConfig, arm: str) -> Search | None:
    """The search of an arm, if the run has come to it with these settings and images."""
    told = _announced(run.folder).get("arms", {}).get(arm)
    backbone = None if told is None else finished_stage(run.folder / told["backbone"])
    if told is None or backbone is None:
        return None
    search = Search(run, arm, Downstream(config.finetune), backbone, methods_of(config)[arm][1], config.search)
    return search if search.study_name == told["study"] else None


def _announced(folder: Path) -> dict[str, Any]:
    return read_json(folder / ANNOUNCED) if (folder / ANNOUNCED).is_file() else {}


def _rows(config: TrainConfig) -> list[tuple[Cell, ...]]:
    from bissl_fast.methods.search.study import SearchStudy

    rows, announced = [], _announced(config.run_folder)
    for arm in config.methods:
        name, total = f"{config.run_folder.name}, {arm}", config.search.trials
        told = announced.get("arms", {}).get(arm)
        if told is None:
            rows.append((Cell(name), Cell(f"0 of {total}"), *[Cell("—")] * 4))
            continue
        study = SearchStudy(config.search.database(config.run_folder), told["study"], config.search, 0, 1)
        trials = [trial for number, trial in study.trials().items() if number < total]
        states, best = counted(trials), ["—"] * 4
        if states["finished"]:
            found, _ = choose(trials, config.search.rule, announced["validation_images"])
            best = [
                f"{found.learning_rate:.3g}",
                f"{found.weight_decay:.3g}",
                f"{found.score:.1f}",
                f"{found.loss:.3f}",
            ]
        other = "".join(f", {states[state]} {state}" for state in ("pruned", "diverged") if states[state])
        rows.append((Cell(name), Cell(f"{len(trials)} of {total}{other}"), *map(Cell, best)))
    return rows
