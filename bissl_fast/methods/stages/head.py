"""The warm-up of the downstream head (BiSSL, section 4.2)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bissl_fast.bilevel import frozen_buffers
from bissl_fast.data.pipelines.loader import Loader
from bissl_fast.methods.checks import require
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network
from bissl_fast.ops.batch_norm import average_statistics, share_statistics
from bissl_fast.ops.collectives import Ranks, all_reduce, gradients_of_all, share_of_mean
from bissl_fast.training.files import load_weights, save_weights
from bissl_fast.training.loop import Values
from bissl_fast.training.precision import Forward
from bissl_fast.training.stage import StageOutput
from bissl_fast.training.supervised import DownstreamLoss, downstream_loss


@dataclass(frozen=True)
class HeadSettings:
    """Warm-up of the downstream head on the frozen backbone, at a constant rate.

    Its rate and decay are those of the upper level (Table 3).

    Attributes:
        epochs: length.
        leak_statistics: let downstream images move the backbone's batch-norm statistics, which θ_D then starts from, as
            the released code.
    """

    epochs: int = 20
    leak_statistics: bool = False

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "head.epochs", self.epochs, "at least 1")


def warm_head(
    run: Run, downstream: Downstream, backbone: StageOutput, settings: HeadSettings, sgd: SGDSettings
) -> StageOutput:
    """The stage ``head-warmup``: fit the linear head on the frozen backbone."""
    leak = settings.leak_statistics

    def body(folder: Path) -> None:
        network = downstream.network(run, backbone, "head")
        steps = settings.epochs * downstream.epoch_steps(run)
        with downstream.loader(run, "head", keep_last=True) as loader:
            task = HeadWarmupTask(network, loader, sgd, steps, run.forward, downstream.loss, leak, run.ranks)
            run.loop(task, folder)
        moved = {f"backbone.{name}": buffer for name, buffer in network.backbone.named_buffers()} if leak else {}
        save_weights(folder / "weights.safetensors", network.head.state_dict() | moved)

    key = {
        "head": settings,
        "sgd": sgd,
        "batch_size": downstream.settings.batch_size,
        "view": run.settings.images.finetune_view,
        **downstream.loss_key(run),
    }
    inputs = {"images": run.data.splits.train.content_hash, "backbone": backbone.hash}
    return run.stage("head-warmup", key, inputs, body)


def load_head(network: Network, stage: StageOutput) -> None:
    """Take over what :func:`warm_head` left: the head, and the backbone's buffers if they were moved."""
    warm = load_weights(stage.folder / "weights.safetensors")
    moved = {name: warm.pop(name) for name in list(warm) if name.startswith("backbone.")}
    network.head.load_state_dict(warm)
    network.load_state_dict(network.state_dict() | moved)


class HeadWarmupTask:
    """Fit the linear head on features of the frozen backbone: batch norms in train mode.

    Args:
        network: backbone and linear head; the head is trained in place.
        loader: labelled batches.
        sgd: optimiser settings.
        steps: length.
        forward: precision context of a forward pass.
        loss: of scores and targets.
        leak_statistics: let the batch norms' buffers move; else they are left alone.
        ranks: processes that share each batch, or have all of one that has no equal parts.
    """

    remedy = "Lower --upper.learning-rate, or take --precision fp32."

    def __init__(
        self,
        network: Network,
        loader: Loader,
        sgd: SGDSettings,
        steps: int,
        forward: Forward,
        loss: DownstreamLoss = downstream_loss,
        leak_statistics: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks
        self.network, self.loader, self.sgd, self.forward = network, loader, sgd, forward
        self.loss = loss
        self._moved: tuple[nn.Module, ...] = (network,) if leak_statistics else ()
        self._protected: tuple[nn.Module, ...] = () if leak_statistics else (network.backbone,)
        self.steps, self.log_every = steps, max(1, min(50, steps // 20))
        self.images_per_step = loader.batch_size * (1 if ranks is None else ranks.size)
        self._optimizer = sgd.build(list(network.head.parameters()))

    def step(self, index: int) -> Values:
        if self.ranks is not None:
            share_statistics(self.network, self.ranks if self.loader.shared(index) else None)
        batch = self.loader.load(index)
        self.network.train()
        self._optimizer.zero_grad(set_to_none=True)
        with gradients_of_all(self.network.head.parameters(), self.ranks):
            with self.forward():
                with torch.no_grad(), frozen_buffers(*self._protected):
                    features = self.network.backbone(batch.views[0])
                loss = share_of_mean(self.loss(self.network.head(features), batch.target), self.ranks)
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        average_statistics(self.ranks, *self._moved)
        return {"loss": all_reduce(loss.detach(), self.ranks), "lr": self.sgd.learning_rate}

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
