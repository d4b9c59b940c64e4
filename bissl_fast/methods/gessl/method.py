"""GeSSL as an arm of a run: Algorithm 1, from the run's first weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bissl_fast.errors import UserError
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.checks import require_parts, without_effect
from bissl_fast.methods.costs.cost import Cost
from bissl_fast.methods.gessl.algorithm import GeSSLTask
from bissl_fast.methods.gessl.settings import TOLD, WITH_PRODUCTS, GeSSLSettings
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.pretrain import Pretext
from bissl_fast.methods.trial import failure_of, kept_or_tried
from bissl_fast.pretext.collapse import alarm
from bissl_fast.pretext.instances import Instances, has_prototypes
from bissl_fast.training.files import save_weights
from bissl_fast.training.stage import StageOutput

NOTHING_TO_LEARN = 1e-12
"""Gradient norms and outer losses below it are none."""


@dataclass(frozen=True)
class GeSSL:
    """The method: Algorithm 1, from the run's first weights.

    Attributes:
        settings: of the algorithm.
        bilevel: how products are taken.
        pretext: the pretext task.
    """

    settings: GeSSLSettings
    bilevel: BilevelSettings
    pretext: Pretext

    title = "GeSSL"
    supervised = False

    def prepare(self, run: Run) -> "GeSSL":
        """Tells how the outer gradient is biased, and what is not as it seems.

        Raises:
            UserError: if the pretext task cannot take such tasks or has no such π, if an outer step does not fit the
                unlabelled set or its tasks the ranks, or if products are needed and cannot be taken.
        """
        settings, task = self.settings, self.pretext.task
        task.require_batch(settings.batch_size, "gessl.batch-size")
        task.require_batch(settings.images, "gessl.tasks × --gessl.batch-size")  # whose keys enter a queue together
        require_parts(settings.tasks, "gessl.tasks", run.ranks)  # each rank has whole ones
        if settings.probabilities == "native" and not has_prototypes(task):
            raise UserError(
                "--gessl.probabilities native is for tasks with prototypes (swav, dino), and --pretext "
                f"{task.name} has none: take similarity, merged or head."
            )
        for sentence in without_effect("gessl", settings, settings.idle):
            run.say(f"gessl: {sentence}")
        if self.pretext.settings.chunk is not None:
            run.say("gessl: --pretrain.chunk has no effect on its steps: each task passes all of its images at once")
        if self.pretext.settings.capture:
            run.say("gessl: --pretrain.capture has no effect on its steps, which differentiate through others")
        self._steps(run)
        run.say(f"gessl: outer gradient by {settings.differentiation}: {TOLD[settings.differentiation]}", "dim")
        if settings.further == 0:
            run.say(
                "gessl: the target of --gessl.target algorithm-box with λ = 1 is the task's own model: nothing trains"
            )
        return self._with_products(run)

    def _with_products(self, run: Run) -> "GeSSL":
        """Products are tried where they are needed; a check that alone needs them is left out where there are none."""
        settings, task = self.settings, self.pretext.task
        if settings.differentiation in WITH_PRODUCTS:
            if settings.differentiation == "through" and self.bilevel.mode == "gauss_newton":
                raise UserError(
                    "--gessl.differentiation through needs products with the Hessian, and --bilevel.mode gauss_newton "
                    "is another matrix: take linearized or reverse, or --gessl.differentiation cg."
                )
            return replace(self, bilevel=kept_or_tried(run, self.bilevel, task))
        if settings.checked:
            exact = replace(self.bilevel, mode="reverse", batches_at_once=1, capture=False)
            reason = failure_of(exact, run.learner(task), run.views)
            if reason:
                run.say(f"gessl: the cosine with `through` is not logged, as no product can be taken: {reason}")
                return replace(self, settings=replace(settings, check_every=0))
        return self

    def within(self, run: Run, images: int) -> "GeSSL":
        """The method with as many outer steps as passes of so many images allow.

        Raises:
            UserError: if not even one does.
        """
        step = self.settings.cost(1).images
        if step > images:
            raise UserError(
                f"gessl: one outer step takes passes of {step:,} images (--gessl.tasks, --gessl.batch-size, K and λ), "
                f"and the budget is {images:,}: raise it, or lower one of these."
            )
        return replace(self, settings=replace(self.settings, steps=images // step))

    def cost(self, run: Run) -> Cost:
        """Of its one stage."""
        return self.settings.cost(self._steps(run))

    def backbone(self, run: Run) -> StageOutput:
        """The stage ``gessl``: Algorithm 1."""
        settings, steps = self.settings, self._steps(run)

        def body(folder: Path) -> None:
            learner = run.learner(self.pretext.task)
            instances = Instances(
                learner,
                settings.probabilities,
                settings.temperature,
                settings.batch_size,
                run.features,
                run.seed("gessl-head"),
            )
            with run.data.loader(run.data.unlabelled, run.views, settings.images, "gessl") as loader:
                task = GeSSLTask(instances, loader, settings, self.bilevel, steps, run.seed("gessl-tasks"))
                run.loop(task, folder, stalled)
            save_weights(folder / "weights.safetensors", task.weights())

        key = {
            "gessl": replace(settings, steps=steps, epochs=float(settings.epochs)),  # as config.yaml has it
            "bilevel": self.bilevel.deciding() if settings.differentiation in WITH_PRODUCTS else None,
            "pretext": self.pretext.task,
            "views": run.views,
        }
        return run.stage("gessl", key, {"images": run.data.unlabelled.content_hash, **run.start}, body)

    def _steps(self, run: Run) -> int:
        """Outer steps.

        Raises:
            UserError: if the unlabelled set is smaller than one's tasks.
        """
        settings, images = self.settings, len(run.data.unlabelled)
        if settings.images > images:
            raise UserError(
                f"--gessl.tasks {settings.tasks} of --gessl.batch-size {settings.batch_size} are {settings.images} "
                f"images per outer step, and the set has {images}: lower one of these."
            )
        return settings.steps or max(1, round(settings.epochs * (images // settings.images)))


def stalled(values: Mapping[str, Any]) -> str:
    """A sentence where embeddings have collapsed, or nothing trains; else empty."""
    if found := alarm(values):
        return found
    if values["gradient_norm"] < NOTHING_TO_LEARN and values["outer_loss"] < NOTHING_TO_LEARN:
        return (
            "the inner loss has no gradient and the target is the task's own model: nothing trains (a collapse does so)"
        )
    return ""
