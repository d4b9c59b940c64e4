"""How well a network tells the images of a task after one gradient step on it (GeSSL, Table 14).

The paper does not say what is classified. Here it is the task itself: the share of views whose likeliest other one, by
GeSSL's π, is of the same image, before a step on the pretext loss of those views and after it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from bissl_fast.bilevel.hypergradients.inner_steps import advance, restored
from bissl_fast.errors import UserError
from bissl_fast.methods.checks import require
from bissl_fast.methods.config import PretextConfig, load_config
from bissl_fast.methods.embed import WEIGHTS, config_beside
from bissl_fast.methods.run import Run
from bissl_fast.pretext.instances import Instances, InstanceTask
from bissl_fast.pretext.learner import Views
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


@dataclass(frozen=True)
class OneStep:
    """Accuracies in percent, mean over tasks.

    Attributes:
        before: at the network's weights.
        after: one gradient step on the task later.
        chance: of guessing.
    """

    before: float
    after: float
    chance: float

    def __str__(self) -> str:
        return f"accuracy {self.before:.1f} % → {self.after:.1f} % after one step (chance: {self.chance:.1f} %)"


def one_step(stage: Path, settings: OneStepSettings, console: Console) -> OneStep:
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
    run.say(f"{stage}: {settings.tasks} tasks of {settings.batch_size} images, step of {settings.inner_rate}", "")
    with run.data.loader(run.data.unlabelled, run.views, settings.batch_size, "one-step") as loader:
        batches = (loader.load(number).views for number in range(settings.tasks))
        return one_step_accuracy(instances, batches, settings.inner_rate, run.seed("one-step"))


def one_step_accuracy(instances: Instances, batches: Iterable[Views], rate: float, seed: int = 0) -> OneStep:
    """Accuracy on tasks before and after one plain gradient step on each; weights and buffers stay.

    Batch norms take the statistics of a task's views, as in training.

    Args:
        instances: of the learner that is measured, by ``similarity``.
        batches: a task's views each (B, …).
        rate: α of the step.
        seed: of layers that draw random numbers.
    """
    instances.model.train()
    found: list[tuple[float, float]] = []
    for number, views in enumerate(batches):
        (task,) = instances.tasks(views, 1, seed + number)
        with restored(instances.parameters):
            before = _accuracy(instances, task)
            advance(instances.parameters, instances.gradient(task)[1], -rate)
            found.append((before, _accuracy(instances, task)))
    others = len(task.views) - 1, len(task.views) * instances.images - 1
    before, after = (sum(column) / len(found) for column in zip(*found, strict=True))
    return OneStep(100 * before, 100 * after, 100 * others[0] / others[1])


@torch.no_grad()
def _accuracy(instances: Instances, task: InstanceTask) -> float:
    accuracy = instances.accuracy(task, instances.log_pi(task))
    assert accuracy is not None, "prototypes are no images"
    return float(accuracy)
