"""Arms compared over pretext seeds and fine-tuning seeds, at one budget where there is one: what `compare` runs."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import reference_of
from bissl_fast.evaluation.cost import Cost
from bissl_fast.evaluation.plan import Plan, Row, is_comparison, read_plan
from bissl_fast.evaluation.report.comparison import write_comparison
from bissl_fast.evaluation.report.run import write_report
from bissl_fast.methods.config import ComparisonConfig, MethodName, TrainConfig, is_of, save_config
from bissl_fast.methods.run import Run
from bissl_fast.methods.train import Training, methods_of, train
from bissl_fast.ops.collectives import Ranks
from bissl_fast.training.console import say
from bissl_fast.training.files import make_folder, write_atomic, write_json
from bissl_fast.training.memory import memory_told
from bissl_fast.training.ranks.agreement import held
from bissl_fast.training.ranks.lead import is_lead

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison.

    Attributes:
        label: its name, unlike that of all others.
        title: what people call it; empty: as its run calls the method.
        method: by which it is made.
        settings: laid over the comparison's, by their names in a config, e.g. ``{"bissl.damping": 1.0}``.
    """

    label: str
    title: str
    method: MethodName
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What a comparison asks.

    Attributes:
        subject: in a word.
        arms: in the order of the table.
        reference: label of the arm that the others are measured against.
        together: whether all arms are of one run per seed, as methods with the same settings; else each has its own.
        equal: whether arms have one budget also where --budget gives none: the reference's cost.
    """

    subject: str
    arms: tuple[Arm, ...]
    reference: str
    together: bool = False
    equal: bool = False


class Experiment:
    """One call of `bissl-fast compare` or `bissl-fast ablate`.

    Args:
        config: settings of all runs.
        question: what is compared.
        console: terminal.

    Raises:
        UserError: for settings, data or folders that cannot be used.
    """

    def __init__(self, config: ComparisonConfig, question: Question, console: Console) -> None:
        self.config, self.question, self.console = config, question, console
        self.folder, self.ranks = config.run_folder, Ranks.present()
        if (self.folder / "config.yaml").exists() and not is_comparison(self.folder):
            raise UserError(f"{self.folder} holds a run: choose another --name for the comparison.")

    @property
    def seeds(self) -> range:
        """The pretext seeds."""
        return range(self.config.seed, self.config.seed + self.config.seeds)

    def run(self) -> Path:
        """Tell what everything will cost, make all runs, and leave their report; returns the comparison's folder."""
        self.console.print(self.plan.grid().to_rich())
        for sentence in self.plan.sentences():
            say(self.console, sentence, "yellow")
        make_folder(self.folder)
        with held(self.folder, self.ranks):
            self._begin()
            for seed in self.seeds:
                for name, config in self._runs(seed, self._fitted).items():
                    say(self.console, f"{self.folder.name}/{name}, pretext seed {seed} of {list(self.seeds)}", "bold")
                    train(config, self.console, write_report)
                if is_lead(self.ranks):
                    write_comparison(self.folder)
        return self.folder

    @cached_property
    def plan(self) -> Plan:
        """What is to be done; whatever cannot work in any arm is refused here, before the first stage."""
        question, seed = self.question, self.config.seed
        tried = {name: self._tried(name, config) for name, config in self._runs(seed, self._fitted).items()}
        rows = tuple(self._row(arm, tried[self._folder(arm, seed)]) for arm in question.arms)
        unlabelled = len(next(iter(tried.values())).context.data.unlabelled)
        epochs, dataset = self.epochs, self.config.dataset
        reference = next(row.title for row in rows if row.label == question.reference)
        budget = None if epochs is None else Cost(images=round(epochs * unlabelled), model_epochs=epochs)
        whose = "as --budget says" if self.config.budget else f"the cost of {reference} as configured"
        kept, seeds = self.config.keep_schedules, tuple(self.seeds)
        tuned = not any(training.context.data.splits.disjoint for training in tried.values())
        search = search_words(self.config) if tuned else ""
        return Plan(question.subject, dataset, seeds, question.reference, rows, budget, whose, kept, search)

    def _tried(self, name: str, config: TrainConfig) -> Training:
        """A run before its first stage; a refusal says which it was, where there are several."""
        try:
            return Training(config, Console(quiet=True))
        except UserError as error:
            raise error if self.question.together else UserError(f"{name}: {error}") from None

    @cached_property
    def epochs(self) -> float | None:
        """The budget in model-epochs, if there is one. The data are read for it, and told."""
        arm = self._reference
        config = self._config(arm, self.config.seed, None)
        run = Run(config, config.views, self.console)
        run.data.load_both()
        if self.config.budget is not None or not self.question.equal:
            return self.config.budget
        return methods_of(config)[arm.method][0].cost(run).images / len(run.data.unlabelled)

    @property
    def _fitted(self) -> float | None:
        """What the schedules of the runs are fitted to."""
        return None if self.config.keep_schedules else self.epochs

    @property
    def _reference(self) -> Arm:
        return next(arm for arm in self.question.arms if arm.label == self.question.reference)

    def _row(self, arm: Arm, training: Training) -> Row:
        """What an arm costs as its settings are, and as it will run."""
        unlabelled = len(training.context.data.unlabelled)
        costs = (training.configured[arm.method], training.arms[arm.method][0].cost(training.context))
        configured, planned = (Cost.from_json(cost.told(unlabelled)) for cost in costs)
        runs = {seed: self._folder(arm, seed) for seed in self.seeds}
        title = arm.title or training.titles[arm.method]
        return Row(arm.label, title, arm.method, runs, configured, planned, arm.settings)

    def _begin(self) -> None:
        """Leave settings and plan; results of other ones are no results of these."""
        if not is_lead(self.ranks):
            return
        earlier = None
        with suppress(UserError):  # none, or none that can be read
            earlier = read_plan(self.folder)
        if earlier != self.plan or not is_of(self.folder, self.config):
            runs = (f"{run}/results.json" for row in self.plan.rows for run in row.runs.values())
            for name in ("compare.json", *runs):
                (self.folder / name).unlink(missing_ok=True)
        write_atomic(self.folder / "config.yaml", save_config(self.config).encode())
        write_json(self.folder / "plan.json", self.plan.told())

    def _runs(self, seed: int, budget: float | None) -> dict[str, TrainConfig]:
        """The runs of a seed by their folders."""
        return {self._folder(arm, seed): self._config(arm, seed, budget) for arm in self.question.arms}

    def _folder(self, arm: Arm, seed: int) -> str:
        return f"seed-{seed}" if self.question.together else f"{arm.label}-seed-{seed}"

    def _config(self, arm: Arm, seed: int, budget: float | None) -> TrainConfig:
        """The config of an arm's run."""
        methods, search = self.config.methods if self.question.together else (arm.method,), self.config.search
        if search.trials and seed != self.seeds[0] and not self.config.search_each:
            search = replace(search, trials=0, rates_of=self.folder / self._folder(arm, self.seeds[0]))
        changes = {"methods": methods, "budget": budget, "search": search}
        return laid_over(self.config.of_run(self._folder(arm, seed), seed, **changes), arm.settings)


def compare(config: ComparisonConfig, question: Question, console: Console) -> Path:
    """Run or resume everything that a comparison stands for; returns its folder, which then holds ``compare.json``."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with memory_told():
        return Experiment(config, question, console).run()


def of_methods(config: ComparisonConfig) -> Question:
    """The methods of a config, each as it is, at equal budget."""
    arms = tuple(Arm(name, "", name) for name in config.methods)
    return Question("methods", arms, reference_of(config.methods), together=True, equal=True)


def search_words(config: ComparisonConfig) -> str:
    """How the rates of fine-tuning are found, in a sentence; empty where they are given."""
    search, first = config.search, config.seed
    if not search.searched:
        return ""
    if search.rates_of is not None:
        return f"Rates of fine-tuning are those that {search.rates_of} has searched."
    whose = "the backbone of every pretext seed"
    if not config.search_each and config.seeds > 1:
        whose = f"its backbone of pretext seed {first} alone, and those found serve all seeds"
    return f"Rates of fine-tuning are searched, {search.trials} trials for each arm on {whose}."


def laid_over(config: Settings, settings: Mapping[str, Any]) -> Settings:
    """A config with other values of some settings.

    Args:
        config: or a group of its settings.
        settings: by their names, with a dot between a group's and its setting's.

    Raises:
        UserError: for a setting that is not there, or cannot be meant.

    Example:
        >>> laid_over(TrainConfig(), {"bissl.damping": 1.0}).bissl.damping
        1.0
    """
    for name, value in settings.items():
        group, dot, rest = name.partition(".")
        if not hasattr(config, group):
            raise UserError(f"There is no setting {name!r} in {type(config).__name__}.")
        inner = laid_over(getattr(config, group), {rest: value}) if dot else value
        config = replace(config, **{group: inner})  # type: ignore[type-var]
    return config
