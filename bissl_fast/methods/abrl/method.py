"""ABRL as an arm of a run: pretext warm-up, unless it starts from the first weights, then Algorithm 1."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bissl_fast.bilevel.hypergradients.head import BIAS
from bissl_fast.errors import UserError
from bissl_fast.methods.abrl.algorithm import ABRLTask
from bissl_fast.methods.abrl.covariance import (
    least_distance,
)
from bissl_fast.methods.abrl.halves import Halves
from bissl_fast.methods.abrl.settings import ABRLSettings
from bissl_fast.methods.checks import require_parts, without_effect
from bissl_fast.methods.costs.cost import Cost, steps_cost
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.pretrain import Pretext
from bissl_fast.training.files import save_weights
from bissl_fast.training.stage import StageOutput


@dataclass(frozen=True)
class ABRL:
    """The method: pretext warm-up, unless it starts from the run's first weights, then Algorithm 1.

    Attributes:
        settings: of the algorithm.
        pretext: the pretext task.
        downstream: the downstream task.
    """

    settings: ABRLSettings
    pretext: Pretext
    downstream: Downstream

    title = "ABRL"
    supervised = True

    def prepare(self, run: Run) -> "ABRL":
        """Tells what the estimator is exact for, and where the penalty has a floor.

        Raises:
            UserError: if the training split cannot be halved, or the batches do not fit the sets.
        """
        settings = self.settings
        self._halves(run).require(settings.batch_size)
        require_parts(settings.batch_size, "abrl.batch-size", run.ranks)
        self._warmup_cost(run)
        for sentence in without_effect("abrl", settings, settings.idle):
            run.say(f"abrl: {sentence}")
        if settings.implicit:
            run.say(f"abrl: {settings.hypergradient} is {BIAS[settings.hypergradient]}", "dim")
        floor = least_distance(settings.batch_size, run.features)
        if settings.weight and floor and not settings.running_covariance:
            run.say(
                f"abrl: the covariance of {settings.batch_size} images has rank {settings.batch_size - 1} at most, so "
                f"of {run.features} features its distance from the identity is {floor} or more, whatever the encoder; "
                "--abrl.running-covariance 0.99 looks at more images"
            )
        return self

    def cost(self, run: Run) -> Cost:
        """Of all stages."""
        return self._warmup_cost(run) + self.settings.cost(self._steps(run))

    def within(self, run: Run, images: int) -> "ABRL":
        """As many outer steps as so many images allow after the pretext warm-up, which stays as it is: others share it.

        Raises:
            UserError: if they do not allow one.
        """
        left = images - self._warmup_cost(run).images
        most = max(0, left) // self.settings.batch_size
        steps = bisect_right(range(1, most + 1), left, key=lambda count: self.settings.cost(count).images)
        if not steps:
            least = self._warmup_cost(run).images + self.settings.cost(1).images
            raise UserError(
                f"abrl: the pretext warm-up and one outer step take passes of {least:,} images, and the budget is "
                f"{images:,}: raise it, or lower --pretrain.epochs or --abrl.batch-size."
            )
        return replace(self, settings=replace(self.settings, steps=steps))

    def backbone(self, run: Run) -> StageOutput:
        """All stages; the last holds encoder and head."""
        start = None
        if self.settings.start == "pretext":
            start = self.pretext.train(run, "pretext-warmup", self.pretext.warmup_steps(run))
        steps = self._steps(run)

        def body(folder: Path) -> None:
            save_weights(folder / "weights.safetensors", self._train(run, start, steps, folder))

        settings = {
            "abrl": {name: value for name, value in asdict(self.settings).items() if name != "epochs"},
            "steps": steps,
            "epoch": self._epoch(run),
            "view": run.settings.images.finetune_view,
            "evaluation": run.settings.images.evaluation_view,
            **self.downstream.loss_key(run),
            **self.downstream.score_key(run),
        }
        return run.stage("abrl", settings, self._inputs(run, start), body)

    def _train(self, run: Run, start: StageOutput | None, steps: int, folder: Path) -> dict[str, torch.Tensor]:
        """Algorithm 1; returns the weights that are kept."""
        settings, halves, view = self.settings, self._halves(run), (run.settings.images.finetune_view,)
        network = run.downstream_network(start, self.downstream.classifier(run, "head"))
        train, validation = halves.cut()
        with (
            run.data.loader(train, view, settings.batch_size, "abrl-training") as inner,
            run.data.loader(validation, view, settings.batch_size, "abrl-validation") as outer,
        ):
            task = ABRLTask(
                network,
                inner,
                outer,
                lambda network: self.downstream.validate(run, network, run.ranks),
                settings,
                steps,
                self._epoch(run),
                run.forward,
                self.downstream.loss,
                run.ranks,
            )
            run.loop(task, folder)
        return task.best

    def _inputs(self, run: Run, start: StageOutput | None) -> Mapping[str, str]:
        splits = run.data.splits
        first = run.start if start is None else {"backbone": start.hash}
        return {"images": splits.train.content_hash, "validation": splits.val.content_hash, **first}

    def _halves(self, run: Run) -> Halves:
        return Halves(run.data.splits.train, self.settings.validation_share, run.seed("abrl-halves"))

    def _epoch(self, run: Run) -> int:
        """Outer steps of an epoch."""
        return len(self._halves(run).kept) // self.settings.batch_size

    def _steps(self, run: Run) -> int:
        return self.settings.steps or max(1, round(self.settings.epochs * self._epoch(run)))

    def _warmup_cost(self, run: Run) -> Cost:
        steps = self.pretext.warmup_steps(run) if self.settings.start == "pretext" else 0
        return steps_cost(steps, self.pretext.settings.batch_size)
