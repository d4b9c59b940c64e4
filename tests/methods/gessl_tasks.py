"""GeSSL's outer step on networks of some hundred parameters, in float64, for every pretext task."""

from typing import Any

import numpy as np
import torch
from torch import nn

from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.gessl.algorithm import GeSSLTask
from bissl_fast.methods.gessl.settings import GeSSLSettings
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network, fuse_batch_norm
from bissl_fast.pretext import (
    BYOL,
    DINO,
    WMSE,
    BarlowTwins,
    Learner,
    MoCo,
    PretextTask,
    SimCLR,
    SimSiam,
    SwAV,
    VICReg,
)
from bissl_fast.pretext.instances import Instances, InstanceTask

TASKS: dict[str, PretextTask] = {
    "simclr": SimCLR(projector=(6, 4)),
    "moco": MoCo(queue=20, projector=(5, 4), momentum=0.9),
    "byol": BYOL(projector=(5, 4), predictor=6, momentum=0.9),
    "simsiam": SimSiam(projector=(5, 6, 4), predictor=3),
    "barlow": BarlowTwins(projector=(6, 5)),
    "vicreg": VICReg(projector=(6, 5)),
    "swav": SwAV(projector=(6, 5), prototypes=7, freeze_prototypes=1, epsilon=0.25, local_views=1),
    "dino": DINO(prototypes=7, projector=(5, 6, 4), momentum=0.9, freeze_last_layer=1, local_views=1),
    "wmse": WMSE(projector=(6, 3), slice_size=6),
}
IMAGES, FEATURES = 6, 3


def network(task: PretextTask, seed: int = 0) -> Network:
    """Two linear layers with batch norms and without kinks, 111 parameters, and the task's head."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(16, 5, bias=False),
            nn.BatchNorm1d(5),
            nn.Tanh(),
            nn.Linear(5, FEATURES, bias=False),
            nn.BatchNorm1d(FEATURES),
            nn.Tanh(),
        )
    head = task.head(FEATURES, seed=0)
    with torch.no_grad():  # DINO starts with weights that are close to nothing
        for parameter in head.parameters():
            parameter.mul_(20 if 0 < parameter.std() < 0.05 else 1)
    return Network(fuse_batch_norm(backbone), head).double()


def views_of(task: PretextTask, seed: int, images: int = IMAGES) -> list[torch.Tensor]:
    """Views of noise images; those of one image are alike."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(images, 1, 8, 8, generator=generator, dtype=torch.float64)
    sizes = [8] * task.needs.large + [6] * task.needs.local
    noise = torch.randn(len(sizes), *drawn.shape, generator=generator, dtype=torch.float64)
    return [(drawn + 0.3 * noise[k])[..., :size, :size] for k, size in enumerate(sizes)]


class Views:
    """A loader of views of noise: n tasks of six images per step."""

    def __init__(self, task: PretextTask, tasks: int) -> None:
        self.task, self.tasks = task, tasks

    def load(self, draw: int) -> Batch:
        views = views_of(self.task, 100 + draw, self.tasks * IMAGES)
        return Batch(tuple(views), None, np.arange(self.tasks * IMAGES), 0)


def settings_of(**changes: Any) -> GeSSLSettings:
    """Small ones: α of .05, so that a few steps lead somewhere and (I − αH) is no small change."""
    given = {"tasks": 2, "batch_size": IMAGES, "inner_rate": 0.05, "target_steps": 3, "outer": SGDSettings(0.1, 1e-4)}
    return GeSSLSettings(**(given | changes))


def gessl(task: PretextTask, steps: int = 4, bilevel: BilevelSettings | None = None, **changes: Any) -> GeSSLTask:
    """The task of a stage, at first weights that are always the same."""
    settings = settings_of(**changes)
    learner = Learner(task, network(task))
    instances = Instances(learner, settings.probabilities, settings.temperature, settings.batch_size, FEATURES)
    products = bilevel or BilevelSettings(mode="reverse")
    return GeSSLTask(instances, Views(task, settings.tasks), settings, products, steps, seed=3)  # type: ignore[arg-type]


def one(task: GeSSLTask, seed: int = 7) -> InstanceTask:
    """One of its instance tasks."""
    task.instances.model.train()
    return task.instances.tasks(views_of(task.learner.task, seed), 1, seed)[0]


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of what is not as it was, to the bit."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def copied(task: GeSSLTask) -> dict[str, torch.Tensor]:
    """Everything that a step may move, but the optimiser."""
    return {name: value.clone() for name, value in task.weights().items()}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())
