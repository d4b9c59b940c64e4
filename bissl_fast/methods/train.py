"""The main job: the arms of a run, each a method's backbone, all judged alike (BiSSL, Figure 1)."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.evaluation.plan import is_comparison
from bissl_fast.methods.abrl.method import ABRL
from bissl_fast.methods.baseline import Baseline
from bissl_fast.methods.bissl.method import BiSSL
from bissl_fast.methods.config import MethodName, PretextConfig, TrainConfig, is_of, save_config
from bissl_fast.methods.costs.cost import Cost
from bissl_fast.methods.fussl.method import FUSSL
from bissl_fast.methods.gessl.method import GeSSL
from bissl_fast.methods.judging import Found, judge_of
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.features import features
from bissl_fast.methods.stages.pretrain import Pretext
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.methods.stages.untrained import untrained
from bissl_fast.methods.tracking import following
from bissl_fast.training.files import disk_told, make_folder, write_atomic, write_json
from bissl_fast.training.memory import memory_told
from bissl_fast.training.ranks.agreement import held
from bissl_fast.training.ranks.lead import is_lead
from bissl_fast.training.stage import StageOutput

UNTRAINED, PRETEXT, WARMUP = "untrained", "pretext", "pretext-warmup"
"""Controls, and the stage that has left the second."""


class Method(Protocol):
    """What an arm of a run is made by.

    Attributes:
        title: what people call it.
        supervised: whether it uses labels of the downstream set.
    """

    title: str
    supervised: bool

    def prepare(self, run: Run) -> "Method":
        """The method as the run will have it; whatever cannot work is refused here, before the first stage."""

    def cost(self, run: Run) -> Cost:
        """Work up to the backbone."""

    def within(self, run: Run, images: int) -> "Method":
        """The longest version whose ``cost(run).images`` is at most ``images``; asked before :meth:`prepare`.

        Raises:
            UserError: if not even the shortest fits.
        """

    def backbone(self, run: Run) -> StageOutput:
        """All of its stages; the last one's weights hold the backbone."""


def methods_of(config: TrainConfig) -> dict[str, tuple[Method, SGDSettings]]:
    """The arms of a config, with the SGD that their backbones are fine-tuned by."""
    pretext, downstream = Pretext(config.pretext, config.pretrain), Downstream(config.finetune)
    bissl = BiSSL(config.bissl, config.bilevel, pretext, downstream, config.head, config.upper)
    baseline = Baseline(pretext, config.bissl.alternations * config.bissl.lower_steps)
    known: dict[MethodName, tuple[Method, SGDSettings]] = {
        "bissl": (bissl, config.finetune_bissl),
        "baseline": (baseline, config.finetune_baseline),
        "gessl": (GeSSL(config.gessl, config.bilevel, pretext), config.finetune_baseline),
        "fussl": (FUSSL(config.fussl, pretext), config.finetune_baseline),
        "abrl": (ABRL(config.abrl, pretext, downstream), config.finetune_baseline),
    }
    return {name: known[name] for name in config.methods}


class Training:
    """One run of `bissl-fast train`.

    Args:
        config: the run's settings.
        console: terminal.
        kind: of the run that its stages are made in.

    Attributes:
        arms: by name, each ready to run, with the SGD that its backbone is fine-tuned by.
        titles: what people call them.
        judge: of their backbones: fine-tuning, or few-shot tasks where the test has other classes than training.
        configured: what each would cost as its settings are, without a budget.

    Raises:
        UserError: for settings, data or folders that cannot be used.
    """

    def __init__(self, config: TrainConfig, console: Console, kind: type[Run] = Run) -> None:
        self.config = config
        self.arms = methods_of(config)
        self.context = kind(config, config.views, console)
        self.context.data.load_both()
        self.judge = judge_of(self.context, Downstream(config.finetune), config.protocols, config.search)
        self.judge.require(self.context, [name for name, (method, _) in self.arms.items() if method.supervised])
        self.titles = {name: self.judge.title(name, method.title) for name, (method, _) in self.arms.items()}
        self.configured = {name: method.cost(self.context) for name, (method, _) in self.arms.items()}
        if config.budget is not None:
            images = round(config.budget * len(self.context.data.unlabelled))
            self.arms = {name: (method.within(self.context, images), sgd) for name, (method, sgd) in self.arms.items()}
        self.arms = {name: (method.prepare(self.context), sgd) for name, (method, sgd) in self.arms.items()}
        self._tell_shards()
        self.stages: dict[str, list[str]] = {}

    def run(self) -> Path:
        """All stages; returns the run's folder, which then holds ``results.json``."""
        run = self.context
        self.judge.begin(run, list(self.arms))
        describe(run, self.config)
        backbones = {name: self._backbone(name) for name in self.arms}
        found = self.judge.scores(run, backbones, {name: sgd for name, (_, sgd) in self.arms.items()})
        results = self._results(found)
        if self.config.controls:
            results["controls"] = self._controls(found)
        write_json(run.folder / "results.json", results)
        return run.folder

    def features(self) -> Path:
        """The stages up to the backbones, and their features; returns the run's folder."""
        run = self.context
        describe(run, self.config)
        features(run, Downstream(self.config.finetune), {name: self._backbone(name) for name in self.arms})
        return run.folder

    def _tell_shards(self) -> None:
        """Say which stages ranks do not share the weights of."""
        run, whole = self.context, [name for name in self.arms if name != "baseline"]
        if run.settings.distributed.shard and run.ranks is not None and whole:
            with torch.device("meta"):
                size = 4e-6 * sum(parameter.numel() for parameter in run.backbone().parameters())
            run.say(
                f"--distributed.shard: pretext training and fine-tuning are sharded. What else {', '.join(whole)} does "
                f"takes plain networks, as second-order products are made of no others: {size:.0f} MB for each copy of "
                "the backbone on each rank. `bissl-fast plan` tells the memory of these stages"
            )

    def _controls(self, found: Found) -> dict[str, Any]:
        """Scores of the backbones that the arms' have come from, fine-tuned by the rates that served the baseline."""
        run, sgd = self.context, self.config.finetune_baseline
        if searched := found.get("baseline", {}).get("search"):
            sgd = replace(sgd, **{name: searched[name] for name in ("learning_rate", "weight_decay")})
        backbones, titles = {UNTRAINED: untrained(run)}, {UNTRAINED: "Untrained" if run.weights is None else "As given"}
        if WARMUP in run.done:
            backbones[PRETEXT], titles[PRETEXT] = run.done[WARMUP], "Pretext warm-up"
        judged = self.judge.controls(run, backbones, sgd)
        return {name: {"title": titles[name], **scores} for name, scores in judged.items()}

    def _backbone(self, name: str) -> StageOutput:
        """An arm's backbone; the stages that it took are noted."""
        before = len(self.context.stages)
        backbone = self.arms[name][0].backbone(self.context)
        self.stages[name] = self.context.stages[before:]
        return backbone

    def _results(self, found: Found) -> dict[str, Any]:
        """Scores and costs of the arms."""
        run = self.context
        arms = {
            name: {
                "title": self.titles[name],
                **found[name],
                "cost": method.cost(run).told(len(run.data.unlabelled)),
                "stages": self.stages[name],
            }
            for name, (method, _) in self.arms.items()
        }
        return {"dataset": self.config.dataset, **self.judge.about(run), "arms": arms}


def describe(run: Run, config: PretextConfig) -> None:
    """Leave settings and machine in the run's folder; results of other settings are no results of these."""
    if not is_lead(run.ranks):
        return
    if not is_of(run.folder, config):
        (run.folder / "results.json").unlink(missing_ok=True)
    write_atomic(run.folder / "config.yaml", save_config(config).encode())
    write_json(run.folder / "environment.json", run.environment)


def require_no_comparison(folder: Path) -> None:
    """Raises UserError: where a comparison has its folder."""
    if is_comparison(folder):
        raise UserError(f"{folder} holds a comparison of `bissl-fast compare`: choose another --name for the run.")


def train(config: TrainConfig, console: Console, then: Callable[[Path], object] = str) -> Path:
    """Run or resume everything that a config stands for.

    Args:
        config: the run's settings.
        console: terminal.
        then: what is done with the finished run's folder before trackers have their last word.

    Returns:
        The run's folder.
    """
    return _worked(config, console, Training.run, then)


def train_backbones(config: TrainConfig, console: Console) -> Path:
    """The same up to the backbones and their features, without fine-tuning; returns the run's folder."""
    return _worked(config, console, Training.features)


def _worked(
    config: TrainConfig, console: Console, work: Callable[[Training], Path], then: Callable[[Path], object] = str
) -> Path:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorBoard's writer may pull in a talkative TensorFlow
    with memory_told(), disk_told(config.run_folder):
        require_no_comparison(config.run_folder)
        training = Training(config, console)
        make_folder(training.context.folder)
        run = training.context
        run.following = following(run, config)
        with held(run.folder, run.ranks), run.following:
            folder = work(training)
            if is_lead(run.ranks):
                then(folder)
        return run.folder


def pretrain(config: PretextConfig, console: Console) -> Path:
    """Train a pretext task alone, or resume it; returns the folder of its stage, with the backbone in its weights."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with memory_told(), disk_told(config.run_folder):
        run = Run(config, config.views, console, tested=config.exclude_test)
        pretext = Pretext(config.pretext, config.pretrain)
        steps = pretext.steps(run, config.pretrain.epochs)
        make_folder(run.folder)
        run.following = following(run, config)
        with held(run.folder, run.ranks), run.following:
            describe(run, config)
            return pretext.train(run, "pretext", steps).folder
