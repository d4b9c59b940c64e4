"""What GeSSL asks of a pretext task: of a batch as a task of B classes the loss ℓ and the distribution π."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

from bissl_fast.bilevel import CompositeLoss, ParameterVector, frozen_buffers
from bissl_fast.models import Network, build_classifier, forward_each
from bissl_fast.ops.schemas import wide_dtype
from bissl_fast.pretext.drawing import drawing
from bissl_fast.pretext.instance_classes import log_merged, log_similarities, positives
from bissl_fast.pretext.learner import Learner, Seen, Views, product_loss
from bissl_fast.pretext.task import Output, PretextTask
from bissl_fast.pretext.wide import is_float

Probabilities = Literal["similarity", "merged", "head", "native"]

TEMPERATURE = 0.5
"""τ where the pretext task has none: SimCLR's here."""


class Classified(nn.Module):
    """A network, and the head c of GeSSL if there is one: f = c∘h∘g."""

    def __init__(self, network: Network, classifier: nn.Linear | None) -> None:
        super().__init__()
        self.network, self.classifier = network, classifier


@dataclass(frozen=True)
class InstanceTask:
    """D^l: a batch whose images are its classes.

    Attributes:
        seen: what ℓ takes: views, and targets of the momentum copy, which stand still.
        views: V large ones (B, …), which π is of.
        labels: (B,) int64, the images' own, permuted.
        seed: of the random numbers that layers draw, the same in every pass and product.
    """

    seen: Seen
    views: Views
    labels: torch.Tensor
    seed: int

    @property
    def given(self) -> tuple[Seen, torch.Tensor]:
        """The batch as :attr:`Instances.loss` takes it."""
        return self.seen, self.labels


class Instances:
    """ℓ and π of instance tasks, as functions of all parameters of a learner's network; no pass moves a buffer.

    ℓ is the pretext task's own loss. With ``head`` it has the head's cross-entropy on the permuted labels beside it
    (Eq. 4), without which the head would learn nothing in the inner steps.

    Args:
        learner: the pretext task with its network.
        kind: of π. ``similarity``: the softmax over the other views; ``merged``: over images; ``head``: of a linear
            head c with a class per image; ``native``: over the task's own prototypes.
        temperature: τ of the first two; ``None``: the pretext task's, if it has one, else .5.
        images: B.
        features: F, of the backbone, which ``head`` needs to know.
        seed: of the head's first weights.

    Attributes:
        parameters: all of the network and of the head.
    """

    def __init__(
        self,
        learner: Learner,
        kind: Probabilities,
        temperature: float | None,
        images: int,
        features: int,
        seed: int = 0,
    ) -> None:
        self.learner, self.kind, self.images = learner, kind, images
        own = getattr(learner.task, "temperature", TEMPERATURE)
        self.temperature = float(own if temperature is None else temperature)
        self.model = Classified(learner.network, self._classifier(features, seed) if kind == "head" else None)
        self.parameters = ParameterVector(self.model)
        self.loss = inner_loss(learner.task)

    def tasks(self, views: Views, count: int, seed: int, first: int = 0) -> list[InstanceTask]:
        """The tasks of an outer step, or those of a rank, whose labels and random numbers are the same there.

        Args:
            views: each (nB, …).
            count: n.
            seed: of labels and of layers that draw random numbers.
            first: number of the first of them in the outer step.
        """
        parts = list(zip(*(view.chunk(count) for view in views), strict=True))
        generator = torch.Generator().manual_seed(seed)
        large = self.learner.task.needs.large
        drawn = [
            (torch.randperm(self.images, generator=generator), int(torch.randint(2**62, (1,), generator=generator)))
            for _ in range(first + count)
        ]
        return [
            InstanceTask(seen, part[:large], labels.to(part[0].device), number)
            for seen, part, (labels, number) in zip(self.learner.given(parts), parts, drawn[first:], strict=True)
        ]

    def gradient(self, task: InstanceTask) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """ℓ and ∇ℓ, a tensor per parameter, at the parameters' present values."""
        with self._passing(task):
            outputs = self.loss.outputs(self.model, task.given)
        loss = self.loss.criterion(outputs)
        return loss.detach(), torch.autograd.grad(loss, self.parameters.tensors, materialize_grads=True)

    def log_pi(self, task: InstanceTask) -> torch.Tensor:
        """log π of a task at the parameters' present values: rows view by view."""
        pretext, network = self.learner.task, self.model.network
        with self._passing(task):
            outputs = forward_each(network, task.views)
            embeddings = [pretext.embedding(output) for output in outputs]
            if self.model.classifier is not None:
                return torch.cat([wide(self.model.classifier(rows)).log_softmax(1) for rows in embeddings])
        if self.kind == "native":
            found = [pretext.log_prototypes(wide(output)) for output in outputs]
            return torch.cat([rows for rows in found if rows is not None])
        log_pi = log_similarities([wide(rows) for rows in embeddings], self.temperature)
        return log_pi if self.kind == "similarity" else log_merged(log_pi, len(embeddings))

    def accuracy(self, task: InstanceTask, log_pi: torch.Tensor) -> torch.Tensor | None:
        """Share of rows whose likeliest class is that of their image; ``None``: prototypes are no images."""
        if self.kind == "native":
            return None
        rows, views = log_pi.argmax(1, keepdim=True), len(task.views)
        if self.kind == "similarity":
            return positives(self.images, views, log_pi.device).gather(1, rows).float().mean()
        labels = task.labels if self.kind == "head" else torch.arange(self.images, device=log_pi.device)
        return (rows[:, 0] == labels.repeat(views)).float().mean()

    @torch.no_grad()
    def _classifier(self, features: int, seed: int) -> nn.Linear:
        """c, from embeddings, whose width a pass tells, to B classes."""
        head = self.learner.network.head
        like = next(self.learner.network.parameters())
        with frozen_buffers(head):
            embeddings = self.learner.task.embedding(head(like.new_zeros(2, features)))
        return build_classifier(embeddings.shape[1], self.images, seed).to(like)

    @contextmanager
    def _passing(self, task: InstanceTask) -> Iterator[None]:
        """What every pass of a task runs in: copies of the buffers, the same random numbers, the run's precision."""
        device = self.parameters.tensors[0].device
        with ExitStack() as stack:
            stack.enter_context(frozen_buffers(self.model))
            stack.enter_context(drawing(task.seed, device))
            torch.manual_seed(int(torch.randint(2**62, (1,))))  # as an operator that is built inside of `drawing` does
            stack.enter_context(self.learner.forward())
            yield


def inner_loss(task: PretextTask) -> CompositeLoss:
    """``ℓ(model, given)`` of a :class:`Classified` and of :attr:`InstanceTask.given`, as products take it."""
    own = product_loss(task)
    online = len(task.needs.online)

    def outputs(model: Classified, given: tuple[Seen, torch.Tensor]) -> tuple[Any, list[torch.Tensor], torch.Tensor]:
        seen, labels = given
        made = own.outputs(model.network, (seen,))
        if model.classifier is None:
            return made, [], labels
        return made, [model.classifier(task.embedding(output)) for output in made[0][0][:online]], labels

    def criterion(found: tuple[Any, list[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        made, scores, labels = found
        value: torch.Tensor = own.criterion(made)
        if scores:
            value = value + torch.stack([F.cross_entropy(wide(rows), labels) for rows in scores]).mean()  # Eq. 4
        return value

    return CompositeLoss(outputs, criterion)


def has_prototypes(task: PretextTask) -> bool:
    """Whether a task has a π of its own, as ``native`` needs."""
    return type(task).log_prototypes is not PretextTask.log_prototypes


def wide(output: Output) -> Any:
    """Floats in float32 or better."""
    return tree_map(lambda leaf: leaf.to(wide_dtype(leaf.dtype)) if is_float(leaf) else leaf, output)
