"""Protocols run on the backbones of a run, or on any other weights."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from bissl_fast.data.sets.catalogue import load_downstream
from bissl_fast.data.sets.dataset import Splits
from bissl_fast.errors import UserError
from bissl_fast.evaluation import protocols
from bissl_fast.evaluation.plan import require_one_run
from bissl_fast.evaluation.protocols import (
    Outcome,
    ProtocolName,
    ProtocolSettings,
    Score,
    Scores,
    Subject,
    TuningSettings,
)
from bissl_fast.evaluation.run_folder import PRETEXT, RunFolder
from bissl_fast.methods.checks import require
from bissl_fast.methods.config import TrainConfig, load_config
from bissl_fast.methods.embed import Embedder, config_beside, embedder
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.settings import RunSettings
from bissl_fast.models import place
from bissl_fast.models.weights import TIMM_PREFIX, digest_of
from bissl_fast.plain import parse_json
from bissl_fast.training.console import say
from bissl_fast.training.environment import describe_environment
from bissl_fast.training.files import exclusive, make_folder, write_json
from bissl_fast.training.precision import apply_precision, find_device

FORMAT = 2
"""Raised when a protocol computes something else from the same settings: 2 has details."""

EVERY: tuple[ProtocolName, ...] = ("linear", "knn", "finetune", "semi", "fewshot")
"""What `--protocol all` stands for, of those that a set can serve."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ProtocolSettings):
    """What is scored, on what, and how.

    Attributes:
        model: A run's folder (all of its arms), one of its stages, a file of weights, or timm:NAME.
        dataset: Labelled set: a name that `bissl-fast data list` shows, or folder:PATH; left out: the run's.
        protocol: One or more, with commas: linear, knn, finetune, semi, fewshot, crossdomain; or all but the last.
        arm: Arms of the run, if not all of them.
        labels: Table of paths and classes of a folder:PATH whose sub-folders are no classes.
        data_root: Folder that holds the data sets; left out: the run's.
        cache_dir: Of decoded images; left out: the run's.
        output: Folder of the results; left out: `evaluation` in the run's folder, or here.
        backbone: timm name of the weights, or conv4; left out: the run's, or that of timm:NAME, else resnet18.
        size: Side of the images in pixels; left out: the run's, else 96.
        channels: Of the images: 3 is RGB, 1 gray; left out: the run's, else 3.
        seed: Of whatever a protocol draws.
        device: auto, cpu, cuda, cuda:1, ….
    """

    model: tyro.conf.Positional[str]
    dataset: str | None = None
    protocol: tuple[ProtocolName | Literal["all"], ...] = ("linear", "knn")
    arm: tuple[str, ...] = ()
    labels: Path | None = None
    data_root: Path | None = None
    cache_dir: Path | None = None
    output: Path | None = None
    backbone: str | None = None
    size: int | None = None
    channels: int | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(bool(self.protocol), "protocol", "none", f"one or more of {', '.join(protocols.PROTOCOLS)}, or all")


@dataclass(frozen=True)
class Evaluations:
    """What all protocols that were run have found.

    Attributes:
        dataset: that it is of.
        outcomes: by arm, of each protocol.
        folder: where they are kept.
    """

    dataset: str
    outcomes: Mapping[str, Sequence[Outcome]]
    folder: Path

    @property
    def shown(self) -> dict[str, Scores]:
        """What a table shows, by arm, then by key."""
        return {
            arm: {key: score for outcome in found for key, score in outcome.shown.items()}
            for arm, found in self.outcomes.items()
        }


def evaluate(config: EvaluateConfig, console: Console) -> Evaluations:
    """Score every backbone by every protocol; what was scored before with the same settings is read.

    Raises:
        UserError: for weights, sets and protocols that do not go together, before any protocol is run.
    """
    device = find_device(config.device)
    apply_precision("fp32", device)
    beside = None if config.model.startswith(TIMM_PREFIX) else config_beside(Path(config.model).expanduser())
    run = None if beside is None else load_config(beside, RunSettings)
    dataset = config.dataset or (run.dataset if run else None)
    models = {
        name: embedder(spec, config.backbone, config.size, partial(say, console), config.channels)
        for name, spec in backbones_of(config.model, config.arm).items()
    }
    if dataset is None:
        raise UserError(f"{config.model} is no run, which would name a set: say --dataset NAME or folder:PATH.")
    splits = _splits(config, run, dataset, next(iter(models.values())))
    for note in splits.notes:
        say(console, note, "yellow")
    names = _served(config, splits, console)
    if "crossdomain" in names and run is not None and dataset in (run.dataset, run.pretext_dataset):
        say(console, f"{config.model} was trained on {dataset} itself: this is no other domain", "yellow")
    folder = config.output or (beside.parent if beside else Path()) / "evaluation"
    make_folder(folder)
    outcomes: dict[str, list[Outcome]] = {}
    tell = _told_once(console)
    with exclusive(folder):
        for arm, model in models.items():
            own = replace(config, finetune=config.finetune.over(usual_tuning(beside, arm, dataset)))
            kept = _Kept(folder, arm, dataset, own, model, splits)
            backbone = place(model.backbone, device)
            shown = (model.view, model.training_view)
            subject = Subject(backbone, splits, *shown, device, config.seed, arm, console, tell)
            outcomes[arm] = [kept.outcome(name, subject) for name in names]
    return Evaluations(dataset, outcomes, folder)


def usual_tuning(beside: Path | None, arm: str, dataset: str) -> TuningSettings:
    """How an arm's backbone is fine-tuned where nothing else is said: as its run does, else as the paper's baseline.

    Args:
        beside: config of the run; ``None`` where there is none.
        arm: of the run.
        dataset: by which the paper's rates are looked up.
    """
    found = None if beside is None else load_config(beside, RunSettings)
    config = found if isinstance(found, TrainConfig) else preset_config("paper", dataset)
    sgd, settings = config.finetune_bissl if arm == "bissl" else config.finetune_baseline, config.finetune
    searched = None if beside is None else _searched(RunFolder(beside.parent), arm)
    return TuningSettings(
        settings.epochs,
        settings.batch_size,
        settings.seeds,
        *(searched or (sgd.learning_rate, sgd.weight_decay)),
        sgd.momentum,
        sgd.final_share,
        settings.multilabel_loss,
        settings.difficult,
    )


def _told_once(console: Console) -> Callable[[str], None]:
    """Tells each sentence once, and not for every backbone."""
    told = set[str]()

    def tell(sentence: str) -> None:
        if sentence not in told:
            say(console, sentence, "yellow")
        told.add(sentence)

    return tell


def backbones_of(model: str, arms: tuple[str, ...] = ()) -> dict[str, str]:
    """Where the weights of each backbone are that a model stands for.

    Args:
        model: a run's or a stage's folder, a file of weights, or ``timm:NAME``.
        arms: those of a run that are wanted; all if none is named.

    Returns:
        By arm, or what else the backbone is called, what :func:`embedder` takes.

    Raises:
        UserError: if the run has no such arm, or its backbone is not there yet.
    """
    path = Path(model).expanduser()
    if model.startswith(TIMM_PREFIX) or not (path / "config.yaml").is_file():
        if arms:
            raise UserError(f"--arm {','.join(arms)} names an arm of a run, and {model} is none: leave it out.")
        name = model.removeprefix(TIMM_PREFIX) if model.startswith(TIMM_PREFIX) else path.resolve().stem
        return {path.parent.name if path.name == "weights.safetensors" else name: model}
    require_one_run(path)
    run = RunFolder(path)
    if run.pretext_only:
        known = {PRETEXT: PRETEXT}
    else:
        known = {arm: run.backbone_stage(arm) for arm in run.arms() if not arms or arm in arms}
    if missing := [arm for arm in arms if arm not in known]:
        raise UserError(f"{path} has no arm {missing[0]}, only {', '.join(known or run.arms())}.")
    return {arm: str(path / stage) for arm, stage in known.items()}


def _splits(config: EvaluateConfig, run: RunSettings | None, dataset: str, model: Embedder) -> Splits:
    own = run is not None and dataset == run.dataset
    return load_downstream(
        dataset,
        config.data_root or (run.data_root if run else None),
        model.decoded_size,
        config.cache_dir or (run.cache_dir if run else None),
        whole=model.whole,
        labels=config.labels or (run.labels if run and own else None),
        channels=len(model.view.mean),
    )


def _served(config: EvaluateConfig, splits: Splits, console: Console) -> list[ProtocolName]:
    """The protocols to be run: each that was named, and of `all` those that the set can serve."""
    names: list[ProtocolName] = []
    for name in protocols.PROTOCOLS:
        if name not in config.protocol and not ("all" in config.protocol and name in EVERY):
            continue
        try:
            protocols.require(name, splits, config)
        except UserError as error:
            if name in config.protocol:
                raise
            say(console, f"left out: {error}", "yellow")
            continue
        names.append(name)
    if not names:
        raise UserError(f"{splits.test.name} can serve none of {', '.join(EVERY)}.")
    return names


def _searched(run: RunFolder, arm: str) -> tuple[float, float] | None:
    """Rate and decay that a run has searched for an arm, where it has."""
    try:
        found = next(found for found in run.results().arms if found.name == arm).rates
    except (UserError, StopIteration):  # a run that has not ended, or no arm of it
        return None
    return (found[0].learning_rate, found[0].weight_decay) if found else None


class _Kept:
    """What was found of one backbone on one set, a file for each protocol and its settings.

    Args:
        folder: of the files.
        arm: what the backbone is called.
        dataset: the set's name.
        config: with the settings.
        model: the backbone and its views.
        splits: of the set.
    """

    def __init__(
        self, folder: Path, arm: str, dataset: str, config: EvaluateConfig, model: Embedder, splits: Splits
    ) -> None:
        self.folder, self.config = folder, config
        self.about = {"arm": arm, "dataset": dataset}
        self.inputs = {
            "backbone": digest_of(model.backbone.state_dict()),
            "views": [asdict(model.view), asdict(model.training_view)],
            "train": splits.train.content_hash,
            "test": splits.test.content_hash,
            "seed": config.seed,
            "format": FORMAT,
        }

    def outcome(self, name: ProtocolName, subject: Subject) -> Outcome:
        """That of a protocol, read or made; what was begun goes on."""
        asked = json.loads(json.dumps({**self.inputs, "protocol": name, "settings": asdict(self.config.of(name))}))
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
        words = (self.about["arm"], Path(self.about["dataset"]).name, name, key)
        file = self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', '-'.join(words))}.json"
        found = _read(file, asked)
        if found is not None:
            say(subject.console, f"{file}: done before, read", "dim")
            return found
        work = file.with_suffix("")
        found = protocols.run(name, subject, self.config, work)
        told = {"scores": {key: asdict(score) for key, score in found.scores.items()}, "details": found.details}
        made_by = describe_environment(subject.device)
        write_json(file, {**self.about, "protocol": name, **told, "asked": asked, "environment": made_by})
        shutil.rmtree(work, ignore_errors=True)
        return found


def _read(file: Path, asked: Mapping[str, Any]) -> Outcome | None:
    """What a file tells, if it is whole and answers what is asked."""
    try:
        content = parse_json(file.read_bytes())
        if content["asked"] == asked:
            scores = {key: Score(**{**told, "seeds": tuple(told["seeds"])}) for key, told in content["scores"].items()}
            return Outcome(scores, content["details"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None
