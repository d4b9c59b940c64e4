"""Fine-tuning on the downstream task (BiSSL, section 4.2)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bissl_fast.data.pipelines.loader import Loader
from bissl_fast.evaluation.metrics import Evaluation
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network
from bissl_fast.training.files import save_weights, write_json
from bissl_fast.training.loop import Values
from bissl_fast.training.precision import Forward
from bissl_fast.training.schedules import set_learning_rate, warmup_cosine
from bissl_fast.training.stage import StageOutput
from bissl_fast.training.supervised import DownstreamLoss, downstream_loss

CLASSES = "classes.json"
"""Of a stage of fine-tuning: names of the classes in the order of the head's outputs."""


def finetune(
    run: Run, name: str, downstream: Downstream, backbone: StageOutput, sgd: SGDSettings, number: int
) -> StageOutput:
    """The stage ``name``: fine-tune backbone and a new head with the ``number``-th seed, the same for all arms."""

    def body(folder: Path) -> None:
        with finetuning(run, downstream, backbone, sgd, f"finetune-{number}") as task:
            run.loop(task, folder)
        write_json(folder / CLASSES, run.data.splits.train.classes)
        save_weights(folder / "weights.safetensors", task.best)

    key, inputs = finetuning_key(run, downstream, backbone)
    return run.stage(name, {**key, "sgd": sgd, "seed_number": number}, inputs, body)


@contextmanager
def finetuning(
    run: Run, downstream: Downstream, backbone: StageOutput, sgd: SGDSettings, purpose: str
) -> Iterator["FineTuneTask"]:
    """The task of fine-tuning a backbone with a new head; ``purpose`` gives what it draws its seeds."""
    settings, steps = downstream.settings, downstream.epoch_steps(run)

    def validate(network: Network) -> Evaluation:
        return downstream.evaluate(run, network, run.data.splits.val)

    network = downstream.network(run, backbone, purpose)
    with downstream.loader(run, purpose, keep_last=True) as loader:
        yield FineTuneTask(network, loader, validate, sgd, settings.epochs, steps, run.forward, downstream.loss)


def finetuning_key(run: Run, downstream: Downstream, backbone: StageOutput) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings and inputs that determine fine-tuning, but for its SGD and seed."""
    settings, images, splits = downstream.settings, run.settings.images, run.data.splits
    key = {
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "views": (images.finetune_view, images.evaluation_view),
        **downstream.loss_key(run),
        **downstream.score_key(run),
    }
    inputs = {
        "images": splits.train.content_hash,
        "validation": splits.val.content_hash,
        "backbone": backbone.hash,
    }
    return key, inputs


class FineTuneTask:
    """One step of SGD on the downstream loss; after each epoch the validation set, keeping the best weights so far.

    Args:
        network: backbone and linear head, trained in place.
        loader: labelled training batches.
        validate: evaluates a network on the validation set.
        sgd: optimiser settings.
        epochs: length.
        steps_per_epoch: batches between two validations.
        forward: precision context of a forward pass.
        loss: of scores and targets.

    Attributes:
        validated: what the last validation has found.
    """

    validated: Evaluation

    def __init__(
        self,
        network: Network,
        loader: Loader,
        validate: Callable[[Network], Evaluation],
        sgd: SGDSettings,
        epochs: int,
        steps_per_epoch: int,
        forward: Forward,
        loss: DownstreamLoss = downstream_loss,
    ) -> None:
        self.network, self.loader, self.sgd, self.forward = network, loader, sgd, forward
        self.steps, self.log_every, self.images_per_step = epochs * steps_per_epoch, steps_per_epoch, loader.batch_size
        self.best: dict[str, torch.Tensor] = {}
        self.best_score = -1.0
        self.loss, self._validate = loss, validate
        self._optimizer = sgd.build(list(network.parameters()))

    def step(self, index: int) -> Values:
        rate = warmup_cosine(index, self.steps, self.sgd.learning_rate, floor=self.sgd.final_share)
        set_learning_rate(self._optimizer, rate)
        batch = self.loader.load(index)
        self.network.train()
        self._optimizer.zero_grad(set_to_none=True)
        with self.forward():
            loss = self.loss(self.network(batch.views[0]), batch.target)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        values: dict[str, torch.Tensor | float] = {"loss": loss.detach(), "lr": rate}
        if (index + 1) % self.log_every == 0:
            values |= self._end_epoch((index + 1) // self.log_every)
        return values

    def _end_epoch(self, epoch: int) -> dict[str, float]:
        self.validated = result = self._validate(self.network)
        if result.score > self.best_score:
            self.best_score = result.score
            self.best = {name: value.clone() for name, value in self.network.state_dict().items()}
        return {"epoch": epoch, f"val_{result.key}": result.score, "val_loss": result.loss}

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self.best,
            "best_score": self.best_score,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_score = state["best"], state["best_score"]
