"""A pretext task at work: the network that it trains, and the state that it moves and no product does."""

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from bissl_fast.bilevel import CompositeLoss, frozen_buffers
from bissl_fast.errors import UserError
from bissl_fast.models import Network, forward_each, sharded
from bissl_fast.models.together import in_chunks, joined
from bissl_fast.ops.batch_norm import (
    average_statistics,
    share_statistics,
    statistics_at_once,
    unshared_statistics,
)
from bissl_fast.ops.captured import Captured
from bissl_fast.ops.collectives import Ranks, all_reduce, gradients_of_all
from bissl_fast.ops.spread import local
from bissl_fast.pretext.collapse import diagnose
from bissl_fast.pretext.drawing import drawing
from bissl_fast.pretext.recipe import half_cosine
from bissl_fast.pretext.store import Store
from bissl_fast.pretext.task import Constants, Output, PretextTask, gathered

Views = Sequence[torch.Tensor]
Seen = tuple[tuple[torch.Tensor, ...], Constants]
"""What one loss is made of: the views that the trained network sees, and what the task takes as given."""

Made = tuple[Sequence[Output], Constants]
"""What a loss was taken of: the trained network's outputs, without their graph, and what the task takes as given."""

NOT_CAPTURED = (
    "the step cannot be captured as one CUDA graph ({reason}): all that comes before the optimiser must do the same "
    "work in every step and wait for nothing, and this network or pretext task does not; leave out --pretrain.capture."
)


class Learner:
    """The trained network with the momentum copy, queue and centre that the task needs.

    Each step is :meth:`begin_step`, :meth:`backward`, :meth:`hold`, the optimiser's step and :meth:`advance`, which
    alone moves the state. In products (:attr:`product_loss`) all of it stands still.

    With ``chunk``, L^P is one loss over all images of a batch whose batch-norm statistics are those of a chunk, in each
    view: in :meth:`loss`, :meth:`backward` and products alike.

    With ``ranks``, L^P is that of the images of all of them, and so are batch-norm statistics, gradients, momentum
    copy, queue and centre: a step is that of one process with the whole batch. :meth:`loss` gives a rank's share. Where
    they have ``own_statistics``, those of a batch norm are of one rank's images, as of a chunk, and :meth:`advance`
    makes the running ones the same.

    With ``shard``, weights of network and copy are spread over the ranks, and gradients with them; optimisers are made
    for the network's parameters as they are then. Products take no such network.

    With ``capture``, the second :meth:`backward` is captured as one CUDA graph that serves the rest
    (:class:`bissl_fast.ops.captured.Captured`): views, momentum copy, loss and gradients, with the same bits. All that
    follows a schedule or counts steps stays outside of it.

    Args:
        task: the pretext task.
        network: backbone and head, trained in place.
        forward: the context of a forward pass, as autocast. Products have one of their own.
        seed: of the state's first values.
        chunk: images, in all their views, that :meth:`backward` passes at once; the last chunk of a batch may be
            smaller. Left out: all. Batch-norm statistics are then those of a chunk of each rank.
        ranks: each has as many images of a batch as this one; left out: there is this process alone.
        shard: whether ranks hold a part of each weight and not all of them.
        capture: whether :meth:`backward` is one launch, on CUDA, with the memory of a step for its own.

    Raises:
        UserError: for a chunk without an image, a batch norm that cannot take statistics over ranks, weights that
            cannot be spread, or a capture with chunks or ranks.
    """

    def __init__(
        self,
        task: PretextTask,
        network: Network,
        forward: Callable[[], AbstractContextManager[Any]] = nullcontext,
        seed: int = 0,
        chunk: int | None = None,
        ranks: Ranks | None = None,
        shard: bool = False,
        capture: bool = False,
    ) -> None:
        if capture and (chunk is not None or ranks is not None):
            raise UserError(f"A step {'in chunks' if ranks is None else 'over ranks'} cannot be captured.")
        if chunk is not None and chunk < 1:
            raise UserError(f"A chunk has 1 image or more, found {chunk}; left out, a whole batch passes at once.")
        self.task, self.network, self.forward, self.chunk, self.ranks = task, network, forward, chunk, ranks
        if ranks is not None:
            share_statistics(network, ranks)
        like = next(network.parameters())
        self.store = Store(task.needs, seed).to(like)
        self.momentum: Network | None = None
        if task.needs.target:
            backbone, head = copy.deepcopy((network.backbone, task.target_head(network.head)))
            self.momentum = Network(backbone, head).requires_grad_(False)
        if shard and ranks is not None:
            for part in (network, *([] if self.momentum is None else [self.momentum])):
                sharded.shard(part, ranks)
        self._reduced = None if sharded.is_sharded(network) else ranks
        self._last: Made | None = None
        self._captured = Captured(self._afresh, self._memory, refusal) if capture else None

    def see(self, views: Views) -> Seen:
        """The part of the views that is trained on, and the momentum copy's outputs for the others, as constants.

        The copy's batch-norm buffers move.
        """
        return self._online(views), {**self.store.constants(), **self._targets(views)}

    def given(self, stored: Sequence[Views]) -> list[Seen]:
        """Stored batches as products take them: targets of the present copy, and no buffer moves."""
        with frozen_buffers(*([] if self.momentum is None else [self.momentum])):
            return [self.see(views) for views in stored]

    def loss(self, views: Views) -> torch.Tensor:
        """L^P of one batch, or a rank's share of it; batch-norm statistics are a view's own, or those of a chunk."""
        return share_of(self.task, *self._pass(views), self.ranks)

    def backward(self, views: Views) -> torch.Tensor:
        """L^P of one batch, whose gradient is added to that of the network's parameters.

        With ``chunk`` as :meth:`backward_in_chunks`, but that the views of the whole batch are at hand. With
        ``capture`` gradients lie, where there were none, in memory that the next call writes over.

        Raises:
            UserError: if it cannot be captured.
            ValueError: for views of another size than those before, which a graph does not take.
        """
        if self.chunk is not None:
            parts = in_chunks(views, self.chunk)
            return self.backward_in_chunks(parts, parts)
        if self._captured is None:
            return self._called(views)
        earlier = [None if p.grad is None else p.grad.clone() for p in self.network.parameters()]
        loss, self._last, gradients = self._captured(*views)
        for p, before, gradient in zip(self.network.parameters(), earlier, gradients, strict=True):
            p.grad = gradient if before is None else before if gradient is None else before.add_(gradient)
        return loss.clone()

    def _called(self, views: Views) -> torch.Tensor:
        """:meth:`backward` of whole batches, without a graph."""
        with gradients_of_all(self.network.parameters(), self._reduced):
            loss = self.loss(views)
            loss.backward()  # type: ignore[no-untyped-call]
        return all_reduce(loss.detach(), self.ranks)

    def _afresh(self, *views: torch.Tensor) -> tuple[torch.Tensor, Made | None, list[torch.Tensor | None]]:
        """Loss, what it was taken of, and its gradient alone: all that a step leaves in memory that it has made."""
        self.network.zero_grad(set_to_none=True)
        return self._called(views), self._last, [p.grad for p in self.network.parameters()]

    def _memory(self) -> Hashable:
        """Where all that a step reads and writes lies, and what else decides about its work."""
        tensors = (t for _, part in self._parts() for t in (*part.parameters(), *part.buffers()))
        return self.network.training, tuple((t.data_ptr(), t.requires_grad) for t in tensors)

    def backward_in_chunks(self, first: Iterable[Views], again: Iterable[Views]) -> torch.Tensor:
        """L^P of all chunks together, whose gradient is added as by :meth:`backward`, in the memory of one chunk.

        The chunks pass without a graph, the loss of all outputs gives their cotangents, and the chunks pass again with
        a graph each (Gao et al., 2021, "Scaling deep contrastive learning batch size under memory limited setup",
        section 3.2): a forward pass more. What the head gives is kept for all images. Of the buffers those of the
        momentum copy move in the first pass and the network's in the second, and layers draw the same random numbers in
        both.

        Args:
            first: the views of each chunk.
            again: the same once more.
        """
        seeds, outputs, targets = [], [], []
        with torch.no_grad(), frozen_buffers(self.network):  # so that the second pass meets what the first one has met
            for views in first:
                seeds.append(int(torch.randint(2**62, (1,))))
                targets.append(self._targets(views))
                outputs.append(self._embed(views, seeds[-1]))
        constants: Constants = {**self.store.constants(), **joined(targets)}
        made = tree_map(lambda output: output.requires_grad_(), joined(outputs))
        images = [len(tree_leaves(output)[0]) for output in outputs]
        del outputs, targets
        loss = share_of(self.task, made, constants, self.ranks)
        cotangents = torch.autograd.grad(loss, tree_leaves(made), allow_unused=True)
        self._keep(made, constants)
        parts = [repeat(None) if c is None else torch.split(c, images) for c in cotangents]
        with gradients_of_all(self.network.parameters(), self._reduced):
            for seed, views, *part in zip(seeds, again, *parts, strict=False):
                found = zip(tree_leaves(self._embed(views, seed)), part, strict=True)
                pulled = {output: part for output, part in found if output.requires_grad and part is not None}
                torch.autograd.backward(list(pulled), list(pulled.values()))
        return all_reduce(loss.detach(), self.ranks)

    @torch.no_grad()
    def observe(self, views: Views) -> None:
        """A step's pass without its loss: buffers move; :meth:`advance` and :meth:`diagnostics` are of this batch."""
        self._pass(views)

    def apart(self) -> AbstractContextManager[None]:
        """A block in which batch norms, the momentum copy's too, take this process's statistics, whatever the ranks."""
        return unshared_statistics(self.network, *([] if self.momentum is None else [self.momentum]))

    def _online(self, views: Views) -> tuple[torch.Tensor, ...]:
        """The views that the trained network sees."""
        needs = self.task.needs
        return (*(views[k] for k in needs.online), *views[needs.large : needs.large + needs.local])

    def _targets(self, views: Views) -> dict[str, Any]:
        """What the momentum copy, if there is one, gives for the views that it sees."""
        if self.momentum is None:
            return {}
        self.momentum.train(self.network.training)
        with torch.no_grad(), self.forward(), statistics_at_once():
            return {"targets": forward_each(self.momentum, [views[k] for k in self.task.needs.target], self.chunk)}

    def _embed(self, views: Views, seed: int) -> tuple[Output, ...]:
        """The network's outputs for a chunk; its layers draw a seed's random numbers."""
        with drawing(seed, views[0].device), self.forward():
            return forward_each(self.network, self._online(views))

    def _pass(self, views: Views) -> tuple[Sequence[Output], Constants]:
        seen, constants = self.see(views)
        with self.forward(), statistics_at_once():
            outputs = forward_each(self.network, seen, self.chunk)
        self._keep(outputs, constants)
        return outputs, constants

    def _keep(self, outputs: Sequence[Output], constants: Constants) -> None:
        """For the end of the step: without the graph, whose nodes belong to the stream that it was made on."""
        self._last = tree_map(torch.Tensor.detach, outputs), constants

    def compare(self, outputs: Sequence[Output], constants: Constants) -> torch.Tensor:
        """As :meth:`loss`, of the outputs for what :meth:`see` gave, wherever they were made."""
        self._keep(outputs, constants)
        return share_of(self.task, outputs, constants, self.ranks)

    @property
    def product_loss(self) -> CompositeLoss:
        """``loss(network, batches)``: L^P, its mean over batches of :data:`Seen`, in one pass where that can be."""
        return product_loss(self.task, self.chunk, self.ranks)

    def begin_step(self) -> None:
        """Before a step's forward pass."""
        with torch.no_grad():
            self.task.begin_step(self.network.head)

    def hold(self, step: int) -> None:
        """After a step's backward pass, the ``step``-th of the stage from 0."""
        self.task.hold(self.network.head, step)

    @torch.no_grad()
    def advance(self, progress: float) -> None:
        """After a step: the state moves, once.

        Args:
            progress: share of the stage's steps that were done before this one.
        """
        assert self._last is not None, "a step has a loss before its end"
        average_statistics(self.ranks, *(part for _, part in self._parts()))
        if self.momentum is None:
            return
        kept = half_cosine(*self.task.needs.momentum, progress)
        online = (self.network.backbone, self.task.target_head(self.network.head))
        old = [local(p) for p in self.momentum.parameters()]
        torch._foreach_lerp_(old, [local(p) for part in online for p in part.parameters()], 1 - kept)
        self.store.move(gathered(self._last[1]["targets"], self.ranks))

    def diagnostics(self) -> dict[str, torch.Tensor]:
        """Spread and effective rank of the last step's embeddings of the first view."""
        assert self._last is not None, "nothing has been embedded yet"
        return diagnose(gathered(self.task.embedding(self._last[0][0]).detach(), self.ranks))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything by name, whole: ``backbone.``, ``head.``, ``momentum.`` and ``store.``."""
        parts = [(prefix, sharded.full_tensors(dict(part.state_dict()))) for prefix, part in self._parts()]
        return {f"{prefix}{name}": value for prefix, state in parts for name, value in state.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            RuntimeError: if it is another learner's.
        """
        left = dict(state)
        for prefix, part in reversed(list(self._parts())):  # the network, which has no prefix, takes what is left
            names = [name for name in left if name.startswith(prefix)]
            own = {name.removeprefix(prefix): left.pop(name) for name in names}
            part.load_state_dict(sharded.spread_state(part, own))

    def _parts(self) -> Iterator[tuple[str, nn.Module]]:
        yield "", self.network
        if self.momentum is not None:
            yield "momentum.", self.momentum
        yield "store.", self.store


def refusal(reason: str) -> UserError:
    """The error of a step that cannot be captured."""
    return UserError(NOT_CAPTURED.format(reason=reason))


def share_of(task: PretextTask, outputs: Sequence[Output], constants: Constants, ranks: Ranks | None) -> torch.Tensor:
    """The loss of a task, or a rank's share of it."""
    return task.loss(outputs, constants) if ranks is None else task.share(outputs, constants, ranks)


def product_loss(task: PretextTask, chunk: int | None = None, ranks: Ranks | None = None) -> CompositeLoss:
    """``loss(network, batches)`` of a task: the mean over batches of :data:`Seen`, in one pass where that can be.

    Args:
        task: the pretext task.
        chunk: images that share batch-norm statistics; ``None``: those of a batch.
        ranks: then it is a rank's share of that, as a :class:`HessianOperator` of these ranks takes it.
    """

    def outputs(network: Network, batches: Sequence[Seen]) -> list[tuple[Sequence[Output], Constants]]:
        made = list(forward_each(network, [view for views, _ in batches for view in views], chunk))
        return [([made.pop(0) for _ in views], constants) for views, constants in batches]

    def mean(outputs: Sequence[tuple[Sequence[Output], Constants]]) -> torch.Tensor:
        return torch.stack([share_of(task, made, constants, ranks) for made, constants in outputs]).mean()

    return CompositeLoss(outputs, mean)
