"""Several networks trained alone by one pretext task, in one process and on views of the same images."""

from collections.abc import Sequence
from typing import Any

import torch

from bissl_fast.data.pipelines.loader import Loader
from bissl_fast.methods.stages.pretrain import PretrainTask
from bissl_fast.models import forward_each
from bissl_fast.models.stacked import Stack
from bissl_fast.ops.collectives import all_reduce, gradients_of_all
from bissl_fast.pretext import Learner
from bissl_fast.pretext.learner import Views
from bissl_fast.training.loop import Values


class BlocksTask:
    """Phase 1 (section 3.1). One step is one of each block, alone, on its own views of the same images.

    Args:
        blocks: pretext training of each.
        loader: batches of the views of all blocks, in turn; or of one, which all see.
        first: steps of earlier rounds.
        steps: of this one.
        stack: of the backbones, if they pass side by side.
    """

    remedy = "Lower --pretrain.learning-rate, or take --precision fp32."

    def __init__(
        self, blocks: Sequence[PretrainTask], loader: Loader, first: int, steps: int, stack: Stack | None = None
    ) -> None:
        self.blocks, self.loader, self.first, self.steps, self.stack = blocks, loader, first, steps, stack
        self.images_per_step = len(blocks) * blocks[0].images_per_step
        self.log_every = blocks[0].log_every

    def step(self, index: int) -> Values:
        index += self.first
        views = self.loader.load(index).views
        needs = self.blocks[0].learner.task.needs
        each = needs.large + needs.local
        starts = [0 if len(views) == each else k * each for k in range(len(self.blocks))]  # 0: all see the same
        own = [views[start : start + each] for start in starts]
        if self.stack is None:
            done = [self._alone(block, index, seen) for block, seen in zip(self.blocks, own, strict=True)]
        else:
            done = self._together(index, own)
        losses = torch.stack([torch.as_tensor(values["loss"]) for values in done])
        worst = {name: min(values[name] for values in done) for name in done[0] if name not in ("loss", "lr")}  # type: ignore[type-var]
        return {"loss": losses.mean(), "lr": done[0]["lr"], "block_losses": losses, **worst}

    @staticmethod
    def _alone(block: PretrainTask, index: int, views: Views) -> Values:
        block.begin(index)
        return block.end(index, block.learner.backward(views))

    def _together(self, index: int, views: Sequence[Views]) -> list[Values]:
        assert self.stack is not None
        for block in self.blocks:
            block.begin(index)
        learners = [block.learner for block in self.blocks]
        ranks, parameters = learners[0].ranks, (p for learner in learners for p in learner.network.parameters())
        with gradients_of_all(parameters, ranks):
            losses = torch.stack(stacked_losses(self.stack, learners, views))
            losses.sum().backward()  # type: ignore[no-untyped-call]
        losses = all_reduce(losses.detach(), ranks)
        return [block.end(index, loss) for block, loss in zip(self.blocks, losses, strict=True)]

    def state(self) -> dict[str, Any]:
        return {"blocks": [block.state() for block in self.blocks]}

    def restore(self, state: dict[str, Any]) -> None:
        for block, kept in zip(self.blocks, state["blocks"], strict=True):
            block.restore(kept)


def stacked_losses(stack: Stack, learners: Sequence[Learner], views: Sequence[Views]) -> list[torch.Tensor]:
    """``learner.loss(views)`` of each, or a rank's share of them, with the backbones side by side."""
    seen = [learner.see(own) for learner, own in zip(learners, views, strict=True)]
    with learners[0].forward():
        backbones = [learner.network.backbone for learner in learners]
        features = stack.forward_each(backbones, [own for own, _ in seen])
        outputs = [forward_each(learner.network.head, own) for learner, own in zip(learners, features, strict=True)]
    return [
        learner.compare(made, constants) for learner, made, (_, constants) in zip(learners, outputs, seen, strict=True)
    ]
