"""Training on pseudo-labels of the images as they are: first whole, then the end of the network alone."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from bissl_fast.data.pipelines.loader import Loader
from bissl_fast.methods.fussl.fuzzy_labels import soft_cross_entropy
from bissl_fast.methods.fussl.settings import FUSSLSettings
from bissl_fast.models import Network
from bissl_fast.models.last_stage import before_last_stage
from bissl_fast.models.together import in_chunks
from bissl_fast.ops.batch_norm import average_statistics, share_statistics
from bissl_fast.ops.collectives import Ranks, all_gather, all_mean, all_reduce, gradients_of_all
from bissl_fast.pretext.collapse import diagnose
from bissl_fast.training.loop import Values, is_logged
from bissl_fast.training.optimizers import build_optimizer, set_rate
from bissl_fast.training.precision import Forward


class PseudoLabelTask:
    """Phase 2 (section 3.3): the chosen block learns the labels of the images as they are, first whole, then its end.

    What stands still has no gradient, which the optimiser passes over, momentum, decay and all; its modules are in eval
    mode, so that no batch norm among them moves a buffer.

    Args:
        network: backbone and projector, trained in place.
        loader: batches with one view.
        votes: (N, m), of the whole set.
        memberships: (N, m).
        settings: optimiser, rate, and when weights begin to stand still.
        steps: length.
        forward: precision context of a forward pass.
        chunk: images, of all ranks, that pass at once, with batch-norm statistics of their own; ``None``: all of a
            batch.
        ranks: if there are several; the loader then gives this rank's part of each batch, and all that a step moves is
            what one process with the whole batches moves.
    """

    remedy = "Lower --pretrain.learning-rate, or take --precision fp32."

    def __init__(
        self,
        network: Network,
        loader: Loader,
        votes: torch.Tensor,
        memberships: torch.Tensor,
        settings: FUSSLSettings,
        steps: int,
        forward: Forward = nullcontext,
        chunk: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.network, self.loader, self.settings, self.forward = network, loader, settings, forward
        self.ranks, self.size = ranks, 1 if ranks is None else ranks.size
        self.chunk = None if chunk is None else chunk // self.size
        if ranks is not None:
            share_statistics(network, ranks)
        self.votes, self.memberships = votes, memberships
        self.steps, self.images_per_step = steps, self.size * loader.batch_size
        self.log_every = max(1, min(50, steps // 50))
        self.whole = round(settings.frozen_from * steps)
        self._early: tuple[list[nn.Module], list[nn.Parameter]] = ([], [])
        if self.whole < steps:
            self._early = before_last_stage(network.backbone)
        self._optimizer = build_optimizer(settings.optimizer, network.named_parameters())

    def step(self, index: int) -> Values:
        rate = self.settings.learning_rate
        set_rate(self._optimizer, rate, rate, self.settings.weight_decay)
        self._train(whole=index < self.whole)
        self._optimizer.zero_grad(set_to_none=True)
        batch = self.loader.load(index)
        votes, memberships = self.votes[batch.samples], self.memberships[batch.samples]
        scores, loss = self._backward(batch.views[0], votes, memberships)
        self._optimizer.step()
        average_statistics(self.ranks, *self._moving())
        logged = is_logged(self, index)
        met = all_mean(share_met(scores, votes, memberships), self.ranks)
        spread = diagnose(all_gather(scores, self.ranks)) if logged else {}
        return {"label_loss": loss, "lr": rate, "labels_met": met, **spread}

    def _backward(
        self, images: torch.Tensor, votes: torch.Tensor, memberships: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B, D), and the mean soft cross-entropy of all ranks', whose gradient is left with the parameters.

        Each image has a loss of its own, so that chunks come one after the other.
        """
        found, losses = [], []
        size, images_of_all = self.chunk or len(images), self.size * len(images)
        with gradients_of_all(self.network.parameters(), self.ranks):
            for seen, *labels in in_chunks((images, votes, memberships), size):
                with self.forward():
                    scores: torch.Tensor = self.network(seen)
                loss = soft_cross_entropy(scores, *labels).mean() * (len(seen) / images_of_all)
                loss.backward()  # type: ignore[no-untyped-call]
                found.append(scores.detach())
                losses.append(loss.detach())
        return torch.cat(found), all_reduce(torch.stack(losses).sum(), self.ranks)

    def _train(self, whole: bool) -> None:
        self.network.train()
        modules, parameters = self._early
        for module in modules:
            module.training = whole
        for parameter in parameters:
            parameter.requires_grad_(whole)

    def _moving(self) -> list[nn.Module]:
        """The layers, made of no others, that do not stand still."""
        return [layer for layer in self.network.modules() if layer.training and next(layer.children(), None) is None]

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


@torch.no_grad()
def share_met(scores: torch.Tensor, votes: torch.Tensor, memberships: torch.Tensor) -> torch.Tensor:
    """Of the images whose highest score is that of a class of their label."""
    members = (votes == scores.argmax(1, keepdim=True)) & (memberships > 0)
    return members.any(1).double().mean()
