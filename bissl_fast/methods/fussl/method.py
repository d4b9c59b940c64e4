"""FUSSL (Mohamadi et al.): m blocks vote on fuzzy labels of their images, and one of them learns these (section 3)."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.errors import UserError
from bissl_fast.methods.checks import without_effect
from bissl_fast.methods.costs.cost import Cost, steps_cost
from bissl_fast.methods.fussl.blocks import BlocksTask
from bissl_fast.methods.fussl.labelling import collapse, label, summary
from bissl_fast.methods.fussl.pseudo_labels import PseudoLabelTask
from bissl_fast.methods.fussl.settings import FUSSLSettings
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.pretrain import Pretext, PretrainSettings, PretrainTask, tell_rising
from bissl_fast.models import Network
from bissl_fast.models.last_stage import before_last_stage
from bissl_fast.models.stacked import Stack, stacks_exactly
from bissl_fast.ops.collectives import own_rows
from bissl_fast.pretext import Learner
from bissl_fast.training.files import load_weights, save_weights, write_arrays, write_json
from bissl_fast.training.stage import StageOutput


@dataclass(frozen=True)
class Round:
    """What a round of both phases has left.

    Attributes:
        blocks: of phase 1, with all that their learners keep.
        labels: votes, memberships and the number of the chosen block.
        chosen: that block after phase 2.
    """

    blocks: StageOutput
    labels: StageOutput
    chosen: StageOutput

    @property
    def number(self) -> int:
        """Of the chosen block."""
        return int(told(self.labels)["chosen"])


@dataclass(frozen=True)
class FUSSL:
    """The method: phase 1, labels, phase 2 (Figure 1); in `progressive` several times.

    Attributes:
        settings: of both phases.
        pretext: the pretext task, and its own training.
    """

    settings: FUSSLSettings
    pretext: Pretext

    title = "FUSSL"
    supervised = False

    def prepare(self, run: Run) -> "FUSSL":
        """Tells what phase 1 is trained by, and what a baseline of equal length or cost would have.

        Raises:
            UserError: if a batch does not fit the set, the backbone has no last stage, or cannot be stacked.
        """
        settings = self.settings
        if settings.stacked and self.pretext.settings.chunk is not None:
            raise UserError(
                "--fussl.stacked passes whole batches of all blocks side by side, and --pretrain.chunk is to save the "
                "memory of that: leave out one of them."
            )
        if settings.stacked and self.pretext.settings.capture:
            raise UserError("--pretrain.capture is for blocks that pass one by one: leave out --fussl.stacked or it.")
        first, second = self._steps(run)
        if round(settings.frozen_from * second) < second:
            before_last_stage(run.backbone())
        size = run.settings.images.size
        like = torch.empty(0, run.settings.images.channels, size, size)
        if settings.stacked and not stacks_exactly(run.backbone().train(), like):
            raise UserError(
                f"backbone {run.settings.backbone!r} has layers that cannot be put side by side with others of their "
                "kind: leave out --fussl.stacked, or choose another --backbone."
            )
        for sentence in without_effect("fussl", settings, settings.idle):
            run.say(f"fussl: {sentence}")
        self._tell_recipe(run, settings.turns * first)
        epochs = " or ".join(f"{value:g} ({name})" for name, value in settings.controls.items())
        run.say(f"fussl: a control is the baseline with --pretrain.baseline-epochs {epochs}", "dim")
        return self

    def _tell_recipe(self, run: Run, steps: int) -> None:
        """What phase 1, of so many steps, is trained by, where that is not what anyone would take for granted."""
        settings, own = self.settings, self.pretext.settings
        if settings.recipe == "pretext":
            run.say(
                f"fussl: phase 1 by {own.optimizer.kind} at {own.learning_rate:g}, as the baseline; the paper's Adam "
                f"at 0.2, then 0.001, is --fussl.recipe paper"
            )
            tell_rising(run, "fussl-blocks", self.pretext.rising_steps(run), steps)
            return
        high = self._high_steps(run)
        if high and settings.first_rate > 0.02:
            run.say(
                f"fussl: phase 1 begins with Adam at {settings.first_rate:g} (0.2 in the paper), far above what Adam "
                "usually takes; --fussl.recipe pretext has the baseline's optimiser"
            )
        if high >= steps:
            run.say(
                f"fussl-blocks: the rate is {settings.first_rate:g} in all {steps} steps and never falls; "
                "--fussl.first-rate-epochs"
            )

    def cost(self, run: Run) -> Cost:
        """Of both phases, each block counted; giving labels has no backward pass."""
        first, second = self._steps(run)
        return steps_cost(self.settings.turns * (self.settings.blocks * first + second), self.batch_size)

    def within(self, run: Run, images: int) -> "FUSSL":
        """The longest of these with both phases in proportion that costs no more than so many images.

        Raises:
            UserError: if there is not room for one step of each phase.
        """
        settings, (first, second) = self.settings, self._steps(run)
        blocks, turns = settings.blocks, settings.turns
        passes = images // self.batch_size // turns
        if passes < blocks + 1:
            least = turns * (blocks + 1) * self.batch_size
            rounds = f" in each of {turns} rounds" if turns > 1 else ""
            raise UserError(
                f"fussl needs {least:,} images for one step of {blocks} blocks and one of phase 2{rounds}, and the "
                f"budget is {images:,}: raise it, or lower --fussl.blocks or --pretrain.batch-size."
            )
        share = passes / (blocks * first + second)
        shorter = min(max(1, int(share * first)), (passes - 1) // blocks)
        epoch = len(run.data.unlabelled) // self.batch_size
        return replace(
            self,
            settings=replace(
                settings,
                first_epochs=turns * shorter / epoch,
                second_epochs=turns * (passes - blocks * shorter) / epoch,
                first_rate_epochs=share * settings.first_rate_epochs,
            ),
        )

    def backbone(self, run: Run) -> StageOutput:
        """All stages; the last, ``fussl``, holds backbone and projector of the chosen block."""
        done: Round | None = None
        for number in range(self.settings.turns):
            blocks = self._train_blocks(run, number, done)
            labels = self._label(run, number, blocks)
            done = Round(blocks, labels, self._train_chosen(run, number, blocks, labels))
        assert done is not None
        return done.chosen

    @property
    def batch_size(self) -> int:
        """Images per step of a block."""
        return self.pretext.settings.batch_size

    def _steps(self, run: Run) -> tuple[int, int]:
        """Of each block in phase 1 and of the chosen one in phase 2, in a round."""
        settings = self.settings
        lengths = (settings.first_epochs, settings.second_epochs)
        first, second = (self.pretext.steps(run, epochs / settings.turns) for epochs in lengths)
        return first, second

    def _name(self, part: str, number: int) -> str:
        """Of a stage: of several rounds each has its number, and the very last one is ``fussl``."""
        turns = self.settings.turns
        if not part and number + 1 == turns:
            return "fussl"
        return f"fussl-{part or 'chosen'}" + (f"-{number + 1}" if turns > 1 else "")

    def _recipe(self, run: Run) -> tuple[PretrainSettings, int, Callable[[int], float] | None, dict[str, Any]]:
        """Of phase 1: optimiser and schedule, the warm-up's steps, the rate of a step; and what a stage is keyed by."""
        settings, first = self.settings, self._steps(run)[0]
        own = self.pretext.settings
        if settings.recipe == "pretext":
            warmup = min(self.pretext.rising_steps(run), settings.turns * first)
            return own, warmup, None, {"warmup": warmup}
        own = replace(own, optimizer=settings.optimizer, learning_rate=settings.learning_rate)
        high = self._high_steps(run)

        def rate(index: int) -> float:
            return settings.first_rate if index < high else settings.learning_rate

        return own, 0, rate, {"first_rate": settings.first_rate, "first_rate_steps": high}

    def _high_steps(self, run: Run) -> int:
        """Of phase 1 at its first rate, by the paper's recipe."""
        return self.pretext.steps(run, self.settings.first_rate_epochs)

    def _train_blocks(self, run: Run, number: int, before: Round | None) -> StageOutput:
        """The stage ``fussl-blocks``: phase 1."""
        settings, first = self.settings, self._steps(run)[0]
        own, warmup, rate, recipe = self._recipe(run)
        total = settings.turns * first
        views = run.views if settings.views == "shared" else run.views * settings.blocks
        name = self._name("blocks", number)

        def body(folder: Path) -> None:
            learners = self._learners(run, before)
            self.pretext.tell_chunks(run, name, learners[0])
            stack = Stack(learners[0].network.backbone, len(learners)) if settings.stacked else None
            chunk = self.pretext.settings.chunk
            with run.data.loader(run.data.unlabelled, views, self.batch_size, "pretext", chunk=chunk) as loader:
                blocks = [PretrainTask(learner, loader, own, total, warmup, rate) for learner in learners]
                run.loop(BlocksTask(blocks, loader, number * first, first, stack), folder)
            kept = {f"block{k}.{name}": v for k, one in enumerate(learners) for name, v in one.state_dict().items()}
            save_weights(folder / "weights.safetensors", kept)

        key = {
            **self.pretext.key,
            "views": views,
            **{name: getattr(settings, name) for name in ("blocks", "stacked")},
            **own.deciding(),
            **recipe,
            "steps": (number * first, first, total),
        }
        inputs = {"images": run.data.unlabelled.content_hash, **run.start}
        if before is not None:
            inputs |= {name: stage.hash for name, stage in vars(before).items()}
        return run.stage(name, key, inputs, body)

    def _learners(self, run: Run, before: Round | None) -> list[Learner]:
        """The blocks at the start of a round: all from the same weights, later as the round before has left them.

        The block that phase 2 has trained goes back to its slot, with predictor, prototypes and momentum copy as phase
        1 had left them.
        """
        learners = [self.pretext.learner(run) for _ in range(self.settings.blocks)]
        if before is not None:
            for k, learner in enumerate(learners):
                learner.load_state_dict(load_weights(before.blocks.folder / "weights.safetensors", f"block{k}."))
            trained = load_weights(before.chosen.folder / "weights.safetensors")
            scorer(learners[before.number].network).load_state_dict(trained)
        return learners

    def _label(self, run: Run, number: int, blocks: StageOutput) -> StageOutput:
        """The stage ``fussl-labels``: votes on the original images, and the choice of a block."""
        settings, images, view = self.settings, run.data.unlabelled, original_view(run)

        def body(folder: Path) -> None:
            networks = [self._block(run, blocks, k) for k in range(settings.blocks)]
            found = label(networks, self._batches(run, view), settings.rule, run.forward, run.ranks)
            votes, memberships = found.votes.numpy().astype(np.int32), found.memberships.numpy()
            write_arrays(folder / "labels.npz", {"votes": votes, "memberships": memberships})
            write_json(folder / "labels.json", found.report())

        key = {
            "pretext": self.pretext.task,
            "view": view,
            **{name: getattr(settings, name) for name in ("blocks", "kind", "ties", "memberships")},
        }
        inputs = {"images": images.content_hash, "blocks": blocks.hash}
        name = self._name("labels", number)
        stage = run.stage(name, key, inputs, body, ("labels.npz", "labels.json"))
        run.say(f"{name}: {summary(told(stage))}", "")
        if sentence := collapse(told(stage)):
            run.say(f"{name}: {sentence}")
        return stage

    def _batches(self, run: Run, view: ViewSettings) -> Iterator[Batch]:
        """All images in their order, or whole batches of them for each rank: their scores are the same bits so."""
        images, size, own = run.data.unlabelled, min(256, self.batch_size), slice(None)
        if run.ranks is not None:
            own = own_rows(-(-len(images) // size), run.ranks)
        starts = range(0, len(images), size)[own]
        samples = range(starts.start, min(starts.stop, len(images)))
        return run.data.pipeline.in_order(images, view, size, samples)

    def _train_chosen(self, run: Run, number: int, blocks: StageOutput, labels: StageOutput) -> StageOutput:
        """The stage ``fussl``: phase 2."""
        settings, second, view = self.settings, self._steps(run)[1], original_view(run)

        def body(folder: Path) -> None:
            network = self._block(run, blocks, int(told(labels)["chosen"]))
            arrays = np.load(labels.folder / "labels.npz")
            votes = torch.from_numpy(arrays["votes"].astype(np.int64)).to(run.device)
            memberships = torch.from_numpy(arrays["memberships"]).to(run.device)
            images, chunk, purpose = run.data.unlabelled, self.pretext.settings.chunk, f"fussl-{number}"
            with run.data.loader(images, (view,), self.batch_size, purpose, chunk=chunk) as loader:
                labelled = (votes, memberships, settings, second, run.forward, chunk, run.ranks)
                run.loop(PseudoLabelTask(network, loader, *labelled), folder)
            save_weights(folder / "weights.safetensors", network.state_dict())

        key = {
            **self.pretext.key,
            "view": view,
            **{name: getattr(settings, name) for name in ("learning_rate", "weight_decay", "frozen_from")},
            "batch_size": self.batch_size,
            "steps": second,
            "round": number,
        }
        inputs = {"images": run.data.unlabelled.content_hash, "blocks": blocks.hash, "labels": labels.hash}
        return run.stage(self._name("", number), key, inputs, body)

    def _block(self, run: Run, blocks: StageOutput, number: int) -> Network:
        """Backbone and projector of a block, as phase 1 has left it."""
        learner = run.learner(self.pretext.task)
        learner.load_state_dict(load_weights(blocks.folder / "weights.safetensors", f"block{number}."))
        return scorer(learner.network)


def scorer(network: Network) -> Network:
    """The network without what a head has behind its projector: predictor, prototypes. It shares the weights."""
    return Network(network.backbone, getattr(network.head, "projector", network.head))


def original_view(run: Run) -> ViewSettings:
    """Images as they are: the evaluation view, with the pixel values that the pretext task's views have."""
    seen = run.views[0]
    return replace(run.settings.images.evaluation_view, pixel_range=seen.pixel_range, mean=seen.mean, std=seen.std)


def told(labels: StageOutput) -> Mapping[str, Any]:
    """What a stage of labels has reported."""
    report: Mapping[str, Any] = json.loads((labels.folder / "labels.json").read_text())
    return report
