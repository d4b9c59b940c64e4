"""The units that BiSSL is made of, as one rank does them with its part of a batch of noise images."""

import copy
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.models import Network, build_backbone, build_classifier, place, probe_features
from bissl_fast.ops import Ranks
from bissl_fast.ops.batch_norm import share_statistics
from bissl_fast.ops.collectives import all_reduce, gradients_of_all, summed_together
from bissl_fast.pretext import Learner, SimCLR
from bissl_fast.training.lars import LARS

Unit = Literal["pretext step", "upper step", "linearisation", "product"]
UNITS: tuple[Unit, ...] = get_args(Unit)
"""An upper step is without its products, of which each is of one stored batch, linearised before."""
CLASSES = 47  # of the downstream task, as DTD has


class RankWork:
    """SimCLR's step by LARS, an upper step's two downstream gradients, and products of one stored batch; float32.

    Args:
        backbone: any timm CNN.
        size: side of the views in pixels.
        images: b, pretext images of this rank, in two views each.
        labelled: downstream images of this rank.
        ranks: of which this process is one; ``None``: it is alone.
    """

    def __init__(self, backbone: str, size: int, images: int, labelled: int, ranks: Ranks | None) -> None:
        task, features = SimCLR(), probe_features(backbone, size)
        network = place(Network(build_backbone(backbone, 0, size), task.head(features, 0)), "cpu")
        self.ranks, self.learner = ranks, Learner(task, network, ranks=ranks)
        self.downstream = Network(copy.deepcopy(network.backbone), build_classifier(features, CLASSES, 0))
        if ranks is not None:
            share_statistics(self.downstream, ranks)
        self.optimizer = LARS(list(network.parameters()), lr=1e-3)  # small, so that noise is trained on without end
        self.views = noise(images, size, 2)
        self.photographs = noise(labelled, size, 1)[0]
        self.targets = torch.arange(labelled) % CLASSES
        self.theta = ParameterVector(network, "backbone.")
        self.vector = torch.ones(len(self.theta))
        self._hessian: HessianOperator | None = None

    def calls(self) -> dict[Unit, Callable[[], object]]:
        """Each unit, in an order in which they can be called."""
        return {
            "pretext step": self.step,
            "upper step": self.upper,
            "linearisation": self.linearise,
            "product": self.product,
        }

    def step(self) -> None:
        """Forward, backward and LARS."""
        self.optimizer.zero_grad(set_to_none=True)
        self.learner.backward(self.views)
        self.optimizer.step()

    def upper(self) -> None:
        """The downstream loss and its gradients, at θ_P with the loss in one sum, at θ_D as in training."""
        backbone, head = self.learner.network.backbone, self.downstream.head
        loss = self._downstream_loss(backbone)
        own = torch.autograd.grad(loss, [*backbone.parameters(), *head.parameters()])
        summed_together([loss.detach(), *own], self.ranks)
        self.downstream.zero_grad(set_to_none=True)
        with gradients_of_all(self.downstream.parameters(), self.ranks):
            loss = self._downstream_loss(self.downstream.backbone)
            loss.backward()  # type: ignore[no-untyped-call]
        all_reduce(loss.detach(), self.ranks)

    def _downstream_loss(self, backbone: nn.Module) -> torch.Tensor:
        loss = cross_entropy(self.downstream.head(backbone(self.photographs)), self.targets)
        return loss if self.ranks is None else loss / self.ranks.size

    def linearise(self) -> None:
        """The primal half of one stored batch; traced the first time."""
        batches = [self.learner.given([self.views])]
        if self._hessian is None:
            loss, ranks = self.learner.product_loss, self.ranks
            self._hessian = HessianOperator(loss, self.theta, batches, mode="linearized", ranks=ranks)
        else:
            self._hessian.update(batches)

    def product(self) -> None:
        """H v."""
        assert self._hessian is not None, "a product comes after a linearisation"
        self._hessian.matvec(self.vector)


def noise(images: int, size: int, views: int) -> tuple[torch.Tensor, ...]:
    """Seeded, channels-last."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(images, 3, size, size, generator=generator) for _ in range(views))
    return tuple(view.contiguous(memory_format=torch.channels_last) for view in drawn)
