"""How well a network tells the images of a task after one gradient step on it (GeSSL, Table 14).

The paper does not say what is classified. Here it is the task itself: the share of views whose likeliest other one, by
GeSSL's π, is of the same image, before a step on the pretext loss of those views and after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from bissl_fast.bilevel.inner_steps import advance, restored
from bissl_fast.pretext.instances import Instances, InstanceTask
from bissl_fast.pretext.learner import Views


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
