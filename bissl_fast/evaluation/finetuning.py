"""Fine-tuning of a whole network on labelled images, in a run and in the protocols of its evaluation alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bissl_fast.data.pipelines.loader import Loader
from bissl_fast.evaluation.metrics import Evaluation
from bissl_fast.models import Network
from bissl_fast.models.sharded import full_tensors, is_sharded, spread_state
from bissl_fast.ops.batch_norm import average_statistics, share_statistics
from bissl_fast.ops.collectives import Ranks, all_reduce, gradients_of_all, share_of_mean
from bissl_fast.training.loop import Values
from bissl_fast.training.optimizers import restore, state_of
from bissl_fast.training.precision import Forward
from bissl_fast.training.schedules import warmup_cosine
from bissl_fast.training.supervised import DownstreamLoss, downstream_loss


class FineTuneTask:
    """One step of SGD on the downstream loss; after each epoch the validation set, keeping the best weights so far.

    Args:
        network: backbone and linear head, trained in place; ranks may share its weights.
        loader: labelled training batches.
        validate: evaluates a network on the validation set; left out: the last epoch counts.
        optimizer: of its parameters; each group's rate falls from the one that it has by a half cosine.
        epochs: length.
        steps_per_epoch: batches between two validations.
        forward: precision context of a forward pass.
        loss: of scores and targets.
        final_share: the last rate as a share of the first.
        ranks: processes that share each batch, or have all of one that has no equal parts.

    Attributes:
        validated: what the last validation has found.
    """

    remedy = "Lower the learning rate of this fine-tuning, or take --precision fp32."
    validated: Evaluation

    def __init__(
        self,
        network: Network,
        loader: Loader,
        validate: Callable[[Network], Evaluation] | None,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        steps_per_epoch: int,
        forward: Forward,
        loss: DownstreamLoss = downstream_loss,
        final_share: float = 0.0,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks
        self.network, self.loader, self.forward, self.loss = network, loader, forward, loss
        self.steps, self.log_every = epochs * steps_per_epoch, steps_per_epoch
        self.images_per_step = loader.batch_size * (1 if ranks is None else ranks.size)
        self.best: dict[str, torch.Tensor] = {}
        self.best_score = -1.0
        self._validate, self._optimizer, self._final_share = validate, optimizer, final_share
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]

    def step(self, index: int) -> Values:
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = warmup_cosine(index, self.steps, peak, floor=self._final_share)
        if self.ranks is not None:
            share_statistics(self.network, self.ranks if self.loader.shared(index) else None)
        batch = self.loader.load(index)
        self.network.train()
        self._optimizer.zero_grad(set_to_none=True)
        with gradients_of_all(self.network.parameters(), None if is_sharded(self.network) else self.ranks):
            with self.forward():
                loss = self.loss(self.network(batch.views[0]), batch.target)
            loss = share_of_mean(loss, self.ranks)
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        average_statistics(self.ranks, self.network)
        loss = all_reduce(loss.detach(), self.ranks)
        values: dict[str, torch.Tensor | float] = {"loss": loss, "lr": self._optimizer.param_groups[0]["lr"]}
        if (index + 1) % self.log_every == 0:
            values |= self._end_epoch((index + 1) // self.log_every)
        return values

    def _end_epoch(self, epoch: int) -> dict[str, float]:
        if self._validate is None:
            self.best = self.network.state_dict()
            return {"epoch": epoch}
        self.validated = result = self._validate(self.network)
        if result.score > self.best_score:
            self.best_score = result.score
            self.best = {name: value.clone() for name, value in self.network.state_dict().items()}
        return {"epoch": epoch, f"val_{result.key}": result.score, "val_loss": result.loss}

    def state(self) -> dict[str, Any]:
        return {
            "network": full_tensors(dict(self.network.state_dict())),
            "optimizer": state_of(self._optimizer),
            "best": self.best_weights(),
            "best_score": self.best_score,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(spread_state(self.network, state["network"]))
        restore(self._optimizer, state["optimizer"])
        self.best, self.best_score = spread_state(self.network, state["best"]), state["best_score"]

    def best_weights(self) -> dict[str, torch.Tensor]:
        """The best weights so far, whole."""
        found: dict[str, torch.Tensor] = full_tensors(dict(self.best))
        return found
