"""Small MoCo, BYOL, SimSiam and DINO, with networks and views for them."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from bissl_fast.models import Network, fuse_batch_norm
from bissl_fast.pretext import BYOL, DINO, Learner, MoCo, PretextTask, SimSiam

TASKS: dict[str, PretextTask] = {
    "moco": MoCo(queue=20, projector=(5, 4)),
    "moco, symmetric": MoCo(queue=20, projector=(5, 4), symmetric=True, momentum=0.9),
    "moco, no queue": MoCo(queue=0, projector=(5, 4)),
    "byol": BYOL(projector=(5, 4), predictor=6, momentum=0.9),
    "simsiam": SimSiam(projector=(5, 6, 4), predictor=3),
    "dino": DINO(prototypes=7, projector=(5, 6, 4), momentum=0.9, freeze_last_layer=1, local_views=2),
    "dino, batch norm and lengths": DINO(
        prototypes=7, projector=(5, 6, 4), batch_norm=True, trained_norm=True, freeze_last_layer=0, local_views=0
    ),
}
for_each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
Views = Sequence[torch.Tensor]


def small_network(task: PretextTask) -> Network:
    """Two convolutions with batch norms and means over pixels, 75 parameters, and the task's head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Conv2d(1, 2, 3, bias=False),
            nn.BatchNorm2d(2),
            nn.Tanh(),
            nn.Conv2d(2, 3, 3, bias=False),
            nn.BatchNorm2d(3),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    head = task.head(3, seed=0)
    with torch.no_grad():  # DINO starts with weights that are close to nothing
        for parameter in head.parameters():
            parameter.mul_(20 if 0 < parameter.std() < 0.05 else 1)
    return Network(fuse_batch_norm(backbone), head).double()


def views_of(task: PretextTask, seed: int, images: int = 6) -> Views:
    """Noise: two large views, and what small ones the task has."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [8] * 2 + [6] * (task.local_views if isinstance(task, DINO) else 0)
    return [torch.randn(images, 1, size, size, generator=generator, dtype=torch.float64) for size in sizes]


def train(learner: Learner, steps: Sequence[int], total: int = 3, rate: float = 0.1) -> None:
    """Steps by plain SGD, in the order that a stage has."""
    optimizer = torch.optim.SGD(learner.network.parameters(), rate)
    for step in steps:
        learner.begin_step()
        optimizer.zero_grad()
        learner.loss(views_of(learner.task, step)).backward()
        learner.hold(step)
        optimizer.step()
        learner.advance(step / total)


def trained(task: PretextTask, steps: int = 2) -> Learner:
    """A learner whose copy, queue and centre are no longer those of the start."""
    learner = Learner(task, small_network(task))
    train(learner, range(steps))
    return learner


def derivatives(
    loss: Callable[[list[torch.Tensor]], torch.Tensor], inputs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Value, gradient, and the Hessian's product with a fixed direction, by two backward passes."""
    generator = torch.Generator().manual_seed(5)
    leaves = [z.detach().clone().requires_grad_() for z in inputs]
    value = loss(leaves)
    gradients = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
    along = [torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z.dtype) for z in inputs]
    total = torch.stack([(g * v).sum() for g, v in zip(gradients, along, strict=True)]).sum()
    products = torch.autograd.grad(total, leaves, materialize_grads=True)
    return value.detach(), [g.detach() for g in gradients], list(products)
