"""The trackers of a run: what they are told of its settings and results."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.evaluation.plan import is_comparison, require_one_run
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.methods.config import PretextConfig, load_config, save_config
from bissl_fast.methods.run import Run
from bissl_fast.plain import parse_yaml
from bissl_fast.training.console import say
from bissl_fast.training.files import exclusive
from bissl_fast.training.ranks.lead import is_lead
from bissl_fast.training.trackers.following import Follower, Following, reason
from bissl_fast.training.trackers.to_mlflow import MlflowRun
from bissl_fast.training.trackers.to_wandb import WandbRun
from bissl_fast.training.trackers.tracker import About, Tracker, TrackerName, TrackingSettings, require_installed

KINDS: Mapping[TrackerName, type[Tracker]] = {"wandb": WandbRun, "mlflow": MlflowRun}
KEPT = ("report.html", "table.md", "results.json")
"""Files of a finished run that trackers keep, too."""

ELSEWHERE = ("version", "name", "output", "cache_dir", "data_root", "loop")
"""Settings without which a run is still the same."""


def following(run: Run, config: PretextConfig) -> Following:
    """What tells the trackers of a run while it goes on: the first of its ranks.

    Args:
        run: that is about to begin.
        config: its settings.
    """
    if not is_lead(run.ranks):
        return Following()
    followers = _followers(run.folder, config, config.track)
    return Following(followers, run.say, lambda name: _again(run.folder, name), lambda: outcome(run.folder))


def track(folder: Path, names: Sequence[TrackerName], where: TrackingSettings, console: Console) -> None:
    """Tell trackers of a run that was made without them, or what they lack of one.

    Args:
        folder: of the run.
        names: of the trackers.
        where: they keep it.
        console: terminal.

    Raises:
        UserError: if a tracker is not installed or fails, or there is no such run, or it is going on.
    """
    require_installed(names)
    require_one_run(folder)
    run, config = RunFolder(folder), load_config(folder / "config.yaml", PretextConfig)
    stages = [folder / stage for stage in run.stages()]
    finished = run.pretext_only or (folder / "results.json").exists()
    with exclusive(folder):
        for follower in _followers(folder, config, names, where):
            try:
                follower.send(stages)
                say(console, f"{follower.name}: {follower.place}")
                follower.end("finished" if finished else "killed", *(outcome(folder) if finished else ({}, ())))
            except Exception as error:  # whatever their libraries raise
                raise UserError(
                    f"{follower.name} could not be told: {reason(error)}; what it has been told stays."
                ) from None


def outcome(folder: Path) -> tuple[dict[str, float], list[Path]]:
    """Results by `results/ARM/METRIC`, the means over seeds with their deviations, and the files that tell them."""
    summary: dict[str, float] = {}
    if (folder / "results.json").exists():
        for arm in RunFolder(folder).results().arms:
            for metric, score in arm.scores.items():
                summary[f"results/{arm.name}/{metric}"] = score.mean
                if score.std is not None:
                    summary[f"results/{arm.name}/{metric}_std"] = score.std
    return summary, [folder / name for name in KEPT if (folder / name).is_file()]


def _followers(
    folder: Path, config: PretextConfig, names: Sequence[TrackerName], where: TrackingSettings | None = None
) -> list[Follower]:
    where = config.tracking if where is None else where
    settings: dict[str, Any] = parse_yaml(save_config(config))
    del settings["track"], settings["tracking"]  # whose address may hold a password
    group = folder.parent.name if is_comparison(folder.parent) else None
    about = About(folder.name, folder, settings, where, group)
    deciding = {name: value for name, value in settings.items() if name not in ELSEWHERE}
    words = json.dumps([deciding, where.project, where.uri], sort_keys=True)
    identity = hashlib.sha256(words.encode()).hexdigest()
    return [Follower(name, KINDS[name](), about, identity) for name in names]


def _again(folder: Path, name: str) -> str:
    return shlex.join(["bissl-fast", "track", str(folder), "--to", name])
