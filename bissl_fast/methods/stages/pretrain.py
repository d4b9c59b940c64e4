"""Conventional pretext training: minimise L^P over backbone and head (BiSSL, section 4.2.1)."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_

from bissl_fast.data.pipelines.loader import ChunkLoader, Loader
from bissl_fast.errors import UserError
from bissl_fast.methods.checks import require, require_parts
from bissl_fast.methods.run import Run
from bissl_fast.ops.collectives import Ranks
from bissl_fast.pretext import Learner, OptimizerSettings, PretextTask
from bissl_fast.training.files import save_weights
from bissl_fast.training.loop import Values, is_logged
from bissl_fast.training.optimizers import build_optimizer, restore, set_rate, state_of
from bissl_fast.training.schedules import warmup_cosine
from bissl_fast.training.stage import StageOutput


@dataclass(frozen=True)
class PretrainSettings:
    """Pretext training, and the length of BiSSL's pretext warm-up.

    Attributes:
        epochs: of the pretext warm-up; 0 leaves the backbone as it is.
        baseline_epochs: likewise of the baseline's pretext stage; left out: as many steps as warm-up and BiSSL's
            lower level have together.
        batch_size: B images, of two or more views each.
        chunk: images, in all their views, that pass the network at once: memory is that of so many, the loss is over
            all B, and a step takes a forward pass more. Batch norms then take their statistics over a chunk. The last
            chunk of a batch may be smaller. Left out: all B pass at once. It serves the pretext stages, the lower level
            of BiSSL, whose second-order products still need memory for all B, and both phases of FUSSL.
        learning_rate: peak of the schedule.
        warmup_epochs: linear from 0.
        final_share: the last rate as a share of the peak, reached by a half cosine.
        optimizer: the optimiser.
        capture: on CUDA, one captured graph for all of a step up to the optimiser, views to gradients: the same numbers
            with one launch, which is faster where kernels are short. Its memory is its own for the stage. It serves
            where `chunk` does, without chunks and in one process.
    """

    epochs: float = 500
    baseline_epochs: float | None = None
    batch_size: int = 1024
    chunk: int | None = None
    learning_rate: float = 4.8
    warmup_epochs: float = 10
    final_share: float = 0.0
    optimizer: OptimizerSettings = OptimizerSettings()
    capture: bool = False

    def __post_init__(self) -> None:
        require(self.epochs >= 0, "pretrain.epochs", self.epochs, "0 or more")
        if self.baseline_epochs is not None:
            require(self.baseline_epochs >= 0, "pretrain.baseline-epochs", self.baseline_epochs, "0 or more")
        require(self.batch_size >= 2, "pretrain.batch-size", self.batch_size, "at least 2")
        if self.chunk is not None:
            self._check_chunk(self.chunk)
        require(self.learning_rate > 0, "pretrain.learning-rate", self.learning_rate, "positive")
        require(self.warmup_epochs >= 0, "pretrain.warmup-epochs", self.warmup_epochs, "0 or more")
        require(0 <= self.final_share <= 1, "pretrain.final-share", self.final_share, "between 0 and 1")
        wanted = "left out with --pretrain.chunk, for whose passes the host draws seeds"
        require(not self.capture or self.chunk is None, "pretrain.capture", "it", wanted)

    def _check_chunk(self, chunk: int) -> None:
        batch = self.batch_size
        require(2 <= chunk <= batch, "pretrain.chunk", chunk, f"2 to --pretrain.batch-size, which is {batch}")
        expected = f"one that leaves no chunk of 1 of {batch} images, of which batch norms have no statistics"
        require(batch % chunk != 1, "pretrain.chunk", chunk, expected)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide a step, for the key of a stage, which has lengths in steps."""
        every = {name: value for name, value in asdict(self).items() if not name.endswith("epochs")}
        idle = {"capture"} | ({"chunk"} if self.chunk is None else set())
        return {name: value for name, value in every.items() if name not in idle}

    def require_device(self, device: torch.device, ranks: Ranks | None) -> None:
        """Raises UserError: for a setting that needs another device, or one process."""
        if self.capture and device.type != "cuda":
            raise UserError(f"--pretrain.capture makes CUDA graphs, and this run is on {device}; leave it out.")
        if self.capture and ranks is not None:
            raise UserError(
                f"--pretrain.capture is for one process, and this run has {ranks.size} ranks; leave it out."
            )


class PretrainTask:
    """One step: the views through the network, the task's loss, its optimiser, and its state moves.

    Args:
        learner: the pretext task with its network, trained in place.
        loader: its batches of views, whole or in chunks.
        settings: schedule and optimiser.
        steps: how many steps the stage has.
        warmup: how many of them are warm-up.
        rate: the learning rate of a step, where it is not the settings' schedule.
    """

    remedy = "Lower --pretrain.learning-rate, or take --precision fp32."

    def __init__(
        self,
        learner: Learner,
        loader: Loader | ChunkLoader,
        settings: PretrainSettings,
        steps: int,
        warmup: int,
        rate: Callable[[int], float] | None = None,
    ) -> None:
        self.learner, self.loader, self.settings = learner, loader, settings
        self.steps, self.images_per_step, self.log_every = steps, settings.batch_size, max(1, min(50, steps // 50))
        self._peak = peak = settings.optimizer.peak(settings.learning_rate, settings.batch_size)
        self._rate = rate or (lambda index: warmup_cosine(index, steps, peak, warmup, settings.final_share))
        self._optimizer = build_optimizer(
            settings.optimizer, learner.network.named_parameters(), learner.task.constant_rate()
        )

    def step(self, index: int) -> Values:
        self.begin(index)
        if isinstance(self.loader, ChunkLoader):
            first, again = ((batch.views for batch in chunks) for chunks in self.loader.passes(index))
            return self.end(index, self.learner.backward_in_chunks(first, again))
        return self.end(index, self.learner.backward(self.loader.load(index).views))

    def begin(self, index: int) -> None:
        """What comes before a step's forward pass."""
        set_rate(self._optimizer, self._rate(index), self._peak, self.settings.optimizer.decay_at(index / self.steps))
        self.learner.network.train()
        self._optimizer.zero_grad(set_to_none=True)
        self.learner.begin_step()

    def end(self, index: int, loss: torch.Tensor) -> Values:
        """What comes after a step's backward pass."""
        learner, clip = self.learner, self.settings.optimizer.clip
        learner.hold(index)
        if clip is not None:
            clip_grad_norm_(learner.network.parameters(), clip)
        self._optimizer.step()
        learner.advance(index / self.steps)
        logged = is_logged(self, index)
        return {"loss": loss, "lr": self._rate(index), **(learner.diagnostics() if logged else {})}

    def state(self) -> dict[str, Any]:
        return {"learner": self.learner.state_dict(), "optimizer": state_of(self._optimizer)}

    def restore(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        restore(self._optimizer, state["optimizer"])


@dataclass(frozen=True)
class Pretext:
    """The pretext task of a run, and how it is trained alone."""

    task: PretextTask
    settings: PretrainSettings

    def steps(self, run: Run, epochs: float) -> int:
        """Steps of so many epochs: one at least, unless there are none at all.

        Raises:
            UserError: if the unlabelled set is smaller than a batch, ranks cannot share batches or chunks, or a step
                cannot be captured here.
        """
        self.settings.require_device(run.device, run.ranks)
        require_parts(self.settings.batch_size, "pretrain.batch-size", run.ranks)
        require_parts(self.settings.chunk or 0, "pretrain.chunk", run.ranks)
        return self.steps_on(len(run.data.unlabelled), epochs)

    def warmup_steps(self, run: Run) -> int:
        """Steps of the pretext warm-up, which methods share."""
        return self.steps(run, self.settings.epochs)

    def steps_on(self, images: int, epochs: float) -> int:
        """The same on so many unlabelled images.

        Raises:
            UserError: if they are fewer than a batch.
        """
        epoch = steps_per_epoch(images, self.settings.batch_size, "--pretrain.batch-size")
        return max(1, round(epochs * epoch)) if epochs else 0

    def lasting(self, run: Run, images: int) -> "Pretext":
        """The same task with epochs for as many steps as passes of so many images allow.

        Raises:
            UserError: if not even one does.
        """
        batch = self.settings.batch_size
        if batch > images:
            raise UserError(
                f"one step of the pretext task takes a batch of {batch:,} images (--pretrain.batch-size), and the "
                f"budget leaves {images:,}: raise --budget, or lower one of these."
            )
        epoch = steps_per_epoch(len(run.data.unlabelled), batch, "--pretrain.batch-size")
        return replace(self, settings=replace(self.settings, epochs=images // batch / epoch, baseline_epochs=None))

    def rising_steps(self, run: Run) -> int:
        """Steps in which the rate rises."""
        epoch = steps_per_epoch(len(run.data.unlabelled), self.settings.batch_size, "--pretrain.batch-size")
        return round(self.settings.warmup_epochs * epoch)

    def loader(self, run: Run, purpose: str, phase_length: int = 1) -> Loader:
        """Batches of all views of the task."""
        chunk, batch = self.settings.chunk, self.settings.batch_size
        return run.data.loader(run.data.unlabelled, run.views, batch, purpose, phase_length, chunk=chunk)

    def learner(self, run: Run, start: StageOutput | None = None, may_shard: bool = False) -> Learner:
        """The task with a network of its own, as its stages train it."""
        return run.learner(self.task, start, self.settings.chunk, may_shard, self.settings.capture)

    def tell_chunks(self, run: Run, stage: str, learner: Learner) -> None:
        """What a stage's first line says of chunks: what they do to batch norms, if there are any."""
        chunk, batch = self.settings.chunk, self.settings.batch_size
        if chunk is not None and any(isinstance(layer, _BatchNorm) for layer in learner.network.modules()):
            run.say(
                f"{stage}: the {batch} images of a batch pass in chunks, and batch norms take their statistics over "
                f"the {chunk} of a chunk"
            )

    def train(self, run: Run, name: str, steps: int) -> StageOutput:
        """The stage ``name``: minimise the pretext loss alone."""
        warmup = min(self.rising_steps(run), steps)

        def body(folder: Path) -> None:
            learner = self.learner(run, may_shard=True)
            self.tell_chunks(run, name, learner)
            with self.batches(run) as loader:
                run.loop(PretrainTask(learner, loader, self.settings, steps, warmup), folder)
            save_weights(folder / "weights.safetensors", learner.state_dict())

        own = self.settings.deciding()
        settings = {**self.key, "views": run.views, **own, "steps": steps, "warmup": warmup}
        return run.stage(name, settings, {"images": run.data.unlabelled.content_hash, **run.start}, body)

    @property
    def key(self) -> Mapping[str, Any]:
        """What the task and its chunks add to the settings that a stage is keyed by."""
        chunk = self.settings.chunk
        return {"pretext": self.task} if chunk is None else {"pretext": self.task, "chunk": chunk}

    def batches(self, run: Run) -> Loader | ChunkLoader:
        """Those of the stage of :meth:`train`."""
        chunk, batch, images = self.settings.chunk, self.settings.batch_size, run.data.unlabelled
        if chunk is None:
            return self.loader(run, "pretext")
        return run.data.chunk_loader(images, run.views, batch, chunk, "pretext")


def tell_rising(run: Run, stage: str, rising: int, steps: int) -> None:
    """Tell where a rate never falls."""
    if 0 < steps <= rising:
        run.say(f"{stage}: the rate rises for {rising} of {steps} steps and never falls")


def steps_per_epoch(images: int, batch_size: int, setting: str) -> int:
    """Whole batches in a set.

    Raises:
        UserError: if there is none.
    """
    if batch_size > images:
        raise UserError(
            f"a batch of {batch_size} images exceeds the {images} images of the set; pass {setting} {images} or less."
        )
    return images // batch_size
