"""What was run, and the command that runs it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import listed
from bissl_fast.evaluation.cost import duration, memory_words
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.training.clock import active_seconds, peak_memory

PLACES = ("name", "output", "version", "cache_dir", "data_root")
"""Settings that make no difference to what is run."""

Facts = list[tuple[str, str]]
"""Terms and what is to be said of each."""


def facts(run: RunFolder) -> Facts:
    """What was run, as far as settings, environment and stages tell.

    Args:
        run: a run folder, finished or not.
    """
    settings, machine = run.settings(), {}
    with suppress(UserError):  # which the page tells
        machine = run.json("environment.json")
    found = [
        (
            "Downstream task",
            "" if run.pretext_only else _words(settings, "{dataset}", "seed {seed}", "preset {preset}"),
        ),
        ("Pretext task", _pretext(settings)),
        ("Backbone", _words(settings, "{backbone}", "from {weights}", "{size} pixels", "channels: {channels}")),
        ("Arms", "" if run.pretext_only else listed(list(run.titles().values()))),
        ("Fine-tuning", _fine_tuning(run, settings)),
        (
            "Machine",
            _words(machine, "{device}", "{processor}", "threads: {threads}") + _words(settings, ", {precision}"),
        ),
        ("Begun", _words(machine, "{date}", "bissl-fast {bissl-fast}")),
        ("Cost of all stages", cost_of_all(run)),
    ]
    return [(term, words) for term, words in found if words.strip(", ")]


def cost_of_all(run: RunFolder) -> str:
    """How long all stages together were at work, and the most memory that one of them held; empty where none told."""
    folders = [run.path / stage for stage in run.stages()]
    times = [seconds for folder in folders if (seconds := active_seconds(folder)) is not None]
    peaks = [peak for folder in folders if (peak := peak_memory(folder)) is not None]
    parts = [f"{duration(sum(times))} at work"] if times else []
    return ", ".join(parts + ([f"{memory_words(max(peaks))} of memory at its peak"] if peaks else []))


def command(kind: str, config: str = "config.yaml") -> str:
    """The command that does everything again from its settings, in folders of its own.

    Args:
        kind: the command's name and what follows it: `train`, `pretrain`, `compare` or `ablate NAME`.
        config: the file with the settings.

    Example:
        >>> command("train")
        'bissl-fast train --config config.yaml --output again'
    """
    return shlex.join(["bissl-fast", *kind.split(), "--config", config, "--output", "again"])


def differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The settings in which runs differ, by setting, then by run, of those that all of them have.

    Args:
        settings: of each run, nested, by the run's name.

    Example:
        >>> differing({"a": {"seed": 0, "head": {"epochs": 5}}, "b": {"seed": 0, "head": {"epochs": 9}}})
        {'head.epochs': {'a': '5', 'b': '9'}}
    """
    flat = {run: _flat(nested) for run, nested in settings.items()}
    common = [key for key in next(iter(flat.values()), {}) if all(key in values for values in flat.values())]
    told = {key: {run: values[key] for run, values in flat.items()} for key in common if key not in PLACES}
    return {key: values for key, values in told.items() if len(set(values.values())) > 1}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)}
    return found


def _pretext(settings: Mapping[str, Any]) -> str:
    """The pretext task and its images; of a run whose settings cannot be read, nothing."""
    pretext = settings.get("pretext")
    task = pretext.get("task") if isinstance(pretext, Mapping) else pretext
    images = settings.get("pretext_dataset") or (f"the unlabelled images of {settings.get('dataset')}")
    return f"{task} on {images}" if task else ""


def _fine_tuning(run: RunFolder, settings: Mapping[str, Any]) -> str:
    if run.pretext_only or not run.fine_tuned:
        return ""
    tuned, search = settings.get("finetune"), settings.get("search")
    if not isinstance(tuned, dict):
        return ""
    told = _words(tuned, "seeds: {seeds}", "epochs: {epochs}", "batch size: {batch_size}")
    if not isinstance(search, dict) or not (search.get("trials") or search.get("rates_of")):
        return told
    return told + _words(
        search,
        ", rates as searched by {rates_of}"
        if search.get("rates_of")
        else ", rates searched by {trials} trials for each arm",
    )


def _words(values: Mapping[str, Any], *patterns: str) -> str:
    """Those of the patterns whose value is known, listed. `size` and `channels` are those of the images."""
    images = values.get("images")
    known = {**(images if isinstance(images, Mapping) else {}), **values}
    known = {key: value for key, value in known.items() if isinstance(value, str | int | float)}
    if known.get("channels") == 3:
        del known["channels"]  # which goes without saying
    told = []
    for pattern in patterns:
        with suppress(KeyError):
            told.append(pattern.format_map(known))
    return ", ".join(told)
