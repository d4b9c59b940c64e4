"""The one-step accuracy of a stage of a run (GeSSL, Table 14)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.evaluation.one_step import OneStep, one_step_accuracy
from bissl_fast.methods.checks import require
from bissl_fast.methods.config import PretextConfig, load_config
from bissl_fast.methods.embed import WEIGHTS, config_beside
from bissl_fast.methods.run import Run
from bissl_fast.pretext.instances import Instances
from bissl_fast.training.files import load_weights


@dataclass(frozen=True)
class OneStepSettings:
    """The tasks, and the step.

    Attributes:
        tasks: how many are drawn from the run's unlabelled images.
        batch_size: images of each [B].
        inner_rate: of the step [α].
    """

    tasks: int = 50
    batch_size: int = 16
    inner_rate: float = 0.05

    def __post_init__(self) -> None:
        require(self.tasks >= 1, "tasks", self.tasks, "at least 1")
        require(self.batch_size >= 2, "batch-size", self.batch_size, "at least 2: one class is no task")
        require(self.inner_rate > 0, "inner-rate", self.inner_rate, "positive")


def one_step(stage: Path, settings: OneStepSettings, console: Console, tell: Callable[[str], None]) -> OneStep:
    """Of a finished stage that has a pretext head: `gessl`, `bissl`, `pretext-…`.

    Raises:
        UserError: if there is no such stage, or its network is not that of the run's pretext task.
    """
    config_file = config_beside(stage)
    if config_file is None or not (stage / WEIGHTS).is_file():
        raise UserError(f"{stage} is no finished stage of a run: give its folder, as runs/demo/gessl.")
    config = load_config(config_file, PretextConfig)
    config.pretext.require_batch(settings.batch_size, "batch-size")
    run = Run(config, config.views, console, tested=False)
    images = len(run.data.unlabelled)
    require(settings.batch_size <= images, "batch-size", settings.batch_size, f"at most the {images} images of the set")
    learner = run.learner(config.pretext)
    wanted, found = learner.state_dict(), load_weights(stage / WEIGHTS)
    if missing := sorted(wanted.keys() - found.keys()):
        raise UserError(
            f"{stage} holds no {missing[0]} of --pretext {config.pretext.name}: give a stage that trains the pretext "
            "task, as gessl, bissl or pretext-baseline."
        )
    learner.load_state_dict({name: found[name] for name in wanted})
    instances = Instances(learner, "similarity", None, settings.batch_size, run.features)
    tell(f"{stage}: {settings.tasks} tasks of {settings.batch_size} images, step of {settings.inner_rate}")
    with run.data.loader(run.data.unlabelled, run.views, settings.batch_size, "one-step") as loader:
        batches = (loader.load(number).views for number in range(settings.tasks))
        return one_step_accuracy(instances, batches, settings.inner_rate, run.seed("one-step"))
