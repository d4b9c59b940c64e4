"""The model card: README.md of an export, from what the run itself has written down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from bissl_fast.data.sets.catalogue import FOLDER_PREFIX
from bissl_fast.data.sets.entries import ENTRIES
from bissl_fast.errors import UserError
from bissl_fast.evaluation.results import ArmResult, Results
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import verdict
from bissl_fast.export.choice import Choice
from bissl_fast.export.loading import TrainedModel
from bissl_fast.export.usage import Usage, preprocessing
from bissl_fast.plain import parse_yaml, shown
from bissl_fast.version import __version__

OF_A_MACHINE = ("output", "name", "cache_dir", "data_root", "device", "threads", "loop")
"""Settings that say nothing of the recipe, and would tell where it was made."""


def card(model: TrainedModel, usage: Usage) -> str:
    """README.md in GitHub-flavoured Markdown, with the head that the Hugging Face Hub reads."""
    task = "image-classification" if model.classes else "image-feature-extraction"
    head = {"library_name": usage.library, "pipeline_tag": task, "tags": ["bissl-fast", "self-supervised-learning"]}
    settings = _settings(model.choice.run)
    parts = (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        f"# {_title(model, settings)}\n",
        _about(model),
        f"## Use\n\n```python\n{usage.python}```\n",
        _images(model),
        f"## Data\n\n{_data(model.choice.run, settings)}",
        f"## Results\n\n{_results(model.choice)}",
        f"## Recipe\n\n{_recipe(model, settings)}",
    )
    return "\n".join(parts)


def _title(model: TrainedModel, settings: Mapping[str, Any]) -> str:
    arm = model.choice.arm
    method = model.choice.run.titles().get(arm, arm) if arm else settings["pretext"]["task"]
    return f"{model.architecture}, {escape(method, quote=False)} on {_called(settings['dataset'])}"


def _about(model: TrainedModel) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    what = f"a classifier of {len(model.classes)} classes" if model.classes else "a backbone, images to features"
    text = f"{what[0].upper()}{what[1:]}; {count / 1e6:,.1f} million parameters, float32. "
    text += f"Trained by bissl-fast {__version__}; stage `{model.choice.stage}` of its run.\n"
    if model.classes:
        each = "Each score has a probability of its own (sigmoid). " if model.multilabel else ""
        text += f"\n{each}Classes, in the order of the scores: {', '.join(map(code, model.classes))}.\n"
    return text


def _images(model: TrainedModel) -> str:
    shown, channels, size = preprocessing(model), len(model.view.mean), model.view.size
    kind = {1: "gray", 3: "RGB"}.get(channels, f"{channels} channels")
    resized = f"{round(size / shown['crop_pct'])} px ({shown['interpolation']}, antialiased)"
    normalised = f"minus {_numbers(shown['mean'])}, divided by {_numbers(shown['std'])}"
    return (
        f"`images` is (N, {channels}, {size}, {size}) float32: {kind} in 0 to 1, short side resized to {resized}, the "
        f"{size} px in the middle, {normalised}. The run itself first reduced files to a short side of "
        f"{model.of_folders.decoded_size} px (bicubic), which moves pixels a little; so does `bissl_fast.load`.\n"
    )


def _numbers(values: list[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _data(run: RunFolder, settings: Mapping[str, Any]) -> str:
    """The sets, and the licence of each."""
    sets = {"Pretext task": _pretext_set(run, settings)}
    if not run.pretext_only:
        sets["Downstream task"] = settings["dataset"]
    lines = []
    for use, spec in sets.items():
        entry = next((entry for entry in ENTRIES if entry.name == spec), None)
        if entry is None:
            lines.append(f"- {use}: {_called(spec)}. The licence of its images is not known.")
            continue
        place = f" ({entry.page})" if entry.page else ""
        known = f"Its images are {entry.licence}" if entry.licence else "The licence of its images is not known here"
        lines.append(f"- {use}: {entry.title}{place}. {known}.")
    return "\n".join(lines) + "\n"


def _pretext_set(run: RunFolder, settings: Mapping[str, Any]) -> str:
    """What the pretext task was trained on: the set that is named, or the downstream set's own, or STL-10's."""
    dataset = str(settings["dataset"])
    own = any(entry.name == dataset and entry.unlabelled for entry in ENTRIES) or not run.fine_tuned
    return str(settings.get("pretext_dataset") or (dataset if own else "stl10"))


def _called(spec: str) -> str:
    """A set's name, of a folder only its own."""
    return f"the folder {code(Path(spec).name)}" if spec.startswith(FOLDER_PREFIX) else code(spec)


def code(text: str) -> str:
    """Text as Markdown shows code, whatever is in it: between more backticks than it has in a row, on one line."""
    text = shown(" ".join(text.split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if fence == "`" else f"{fence} {text} {fence}"


def _results(choice: Choice) -> str:
    if choice.run.pretext_only:
        return "The pretext task alone was trained; no task was tested.\n"
    try:
        results = choice.run.results()
    except UserError as error:
        return f"None: {error}\n"
    results = replace(results, dataset=Path(results.dataset).name)  # of a folder
    lines = [results_table(results).to_markdown(), f"\n{escape(verdict(results), quote=False)}\n"]
    arm = next((arm for arm in results.arms if arm.name == choice.arm), None)
    if arm is not None:
        lines.append(f"\nThis is a network of the arm {escape(arm.title, quote=False)}. {_intervals(arm, results)}\n")
    return "".join(lines)


def _intervals(arm: ArmResult, results: Results) -> str:
    """95 % intervals of an arm's mean scores, over its seeds or over episodes."""
    told = []
    for metric in results.metrics:
        if metric.key in arm.intervals:
            told.append(f"{metric.words} {arm.words(metric)} (over episodes)")
        elif metric.key in arm.scores and (score := arm.scores[metric.key]).std is not None:
            count = len(score.scores)
            half = stats.t.ppf(0.975, count - 1) * score.std / count**0.5
            told.append(f"{metric.words} {score.mean:.1f} ± {half:.1f} (Student's t, {count} {results.seeds} seeds)")
    return f"95 % intervals of its means, in percent: {'; '.join(told)}." if told else "One seed has no interval."


def _settings(run: RunFolder) -> dict[str, Any]:
    """config.yaml as it is written, but for what is of the machine."""
    with suppress(ValueError):
        settings = parse_yaml(run.text("config.yaml"))
        if isinstance(settings, dict) and "dataset" in settings:
            return {name: value for name, value in settings.items() if name not in OF_A_MACHINE}
    raise UserError(f"{run.path / 'config.yaml'} is not as `bissl-fast train` writes it.")


def _recipe(model: TrainedModel, settings: Mapping[str, Any]) -> str:
    """The settings of the run, with folders by their names alone."""
    shown = dict(settings)
    for name in ("dataset", "pretext_dataset"):
        if str(shown.get(name)).startswith(FOLDER_PREFIX):
            shown[name] = f"{FOLDER_PREFIX}{Path(shown[name]).name}"
    for name in ("weights", "labels"):
        if shown.get(name) and not str(shown[name]).startswith("timm:"):
            shown[name] = Path(shown[name]).name
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"Settings of the run (`bissl-fast train --config`), without its folders:\n\n{fence}yaml\n{text}{fence}\n"
