"""GeSSL (Wang et al., 2024): reach in a few steps on each task where more steps would lead, Algorithm 1."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from bissl_fast.bilevel import HessianOperator, conjugate_gradient, neumann
from bissl_fast.bilevel.inner_steps import Descent, advance, descend, difference_products, proximal, pull_back, restored
from bissl_fast.data.pipelines.loader import Loader
from bissl_fast.errors import UserError
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.checks import require, require_parts, without_effect
from bissl_fast.methods.costs.cost import Cost
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.pretrain import Pretext
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.methods.trial import failure_of, kept_or_tried
from bissl_fast.ops.collectives import Ranks, all_reduce, summed_together
from bissl_fast.ops.krylov import dot, norm
from bissl_fast.pretext.collapse import alarm
from bissl_fast.pretext.divergences import DIVERGENCES, DivergenceName
from bissl_fast.pretext.drawing import drawing
from bissl_fast.pretext.instances import Instances, InstanceTask, Probabilities, has_prototypes
from bissl_fast.pretext.learner import Views
from bissl_fast.training.files import save_weights
from bissl_fast.training.loop import Values
from bissl_fast.training.schedules import set_learning_rate, warmup_cosine
from bissl_fast.training.stage import StageOutput

Differentiation = Literal["fd", "through", "first-order", "cg", "neumann", "lookahead"]

TOLD: dict[Differentiation, str] = {
    "fd": "products by central differences of gradients, an estimate of `through`",
    "through": "exact, Π (I − α∇²ℓ) g",
    "first-order": "g itself, as if the inner steps added a constant; off by about αK∇²ℓ g",
    "cg": "(I + αK∇²ℓ)⁻¹ g by conjugate gradients, as if the inner steps had converged under proximity 1/αK",
    "neumann": "(I + αK∇²ℓ)⁻¹ g by a series, which diverges where αK∇²ℓ has an eigenvalue of 1 or more",
    "lookahead": "θ − θ̃, towards the target (Eq. 32), in place of the outer loss's gradient",
}
"""What each differentiation is, and how it is biased."""
WITH_PRODUCTS = ("through", "cg", "neumann")
NOTHING_TO_LEARN = 1e-12
"""Gradient norms and outer losses below it are none."""
COMPARED = "cos_through"
"""How the cosine to the gradient of `through` is logged."""


@dataclass(frozen=True)
class GeSSLSettings:
    """Algorithm 1's inputs, with the paper's symbols in brackets.

    The paper gives n, B, K, λ, momentum and weight decay; rates, temperature and lengths it does not.

    Attributes:
        tasks: per outer step, whose gradients are summed (Eq. 7) [n].
        batch_size: images of a task, which are its classes [B].
        inner_steps: plain gradient steps on each task's loss, the pretext task's own [K].
        inner_rate: of these steps, on the loss as the pretext task has it, a mean over images [α].
        target_steps: further steps on the same task to its target [λ].
        target: `further`: all λ of them; `algorithm-box`: λ − 1, as printed there, with which λ = 1 trains nothing.
        probabilities: π, which model and target are compared by. `similarity`: softmax over the other views; `merged`:
            over images; `head`: a linear head with a class per image, trained by cross-entropy in the inner steps;
            `native`: over the prototypes that `swav` and `dino` have.
        temperature: τ of `similarity` and `merged`; left out: the pretext task's own, if it has one, else 0.5.
        loss: of the two: `kl` (target first), `ce` (the same gradient), `mse`, or `wasserstein` with all classes at
            distance 1.
        differentiation: of the outer loss through the inner steps (docs/gessl.md tells their biases). `fd`: by
            differences of gradients; `through`: by exact products; `first-order`: not at all; `cg`, `neumann`: as if
            they had converged under a proximity; `lookahead`: a step towards the target instead.
        solver_iterations: products of `cg` and `neumann` per task.
        epochs: over the unlabelled images, each in one task per epoch.
        steps: outer steps; left out: those of the epochs.
        outer: SGD of the outer steps, on the sum over the tasks [β].
        check_every: outer steps between two logs of the cosine between the outer gradient and that of `through`, which
            takes K products of one task; 0: never.
    """

    tasks: int = 8
    batch_size: int = 16
    inner_steps: int = 1
    inner_rate: float = 0.05
    target_steps: int = 10
    target: Literal["further", "algorithm-box"] = "further"
    probabilities: Probabilities = "similarity"
    temperature: float | None = None
    loss: DivergenceName = "kl"
    differentiation: Differentiation = "fd"
    solver_iterations: int = 5
    epochs: float = 200
    steps: int | None = None
    outer: SGDSettings = field(default_factory=lambda: SGDSettings(0.05, 1e-4))
    check_every: int = 100

    def __post_init__(self) -> None:
        for name in ("tasks", "inner_steps", "target_steps", "solver_iterations"):
            require(getattr(self, name) >= 1, f"gessl.{name.replace('_', '-')}", getattr(self, name), "at least 1")
        require(self.batch_size >= 2, "gessl.batch-size (B)", self.batch_size, "at least 2: one class is no task")
        require(self.inner_rate > 0, "gessl.inner-rate (α)", self.inner_rate, "positive")
        require(self.temperature is None or self.temperature > 0, "gessl.temperature (τ)", self.temperature, "positive")
        require(self.epochs > 0, "gessl.epochs", self.epochs, "positive")
        require(self.steps is None or self.steps >= 1, "gessl.steps", self.steps, "at least 1")
        require(self.check_every >= 0, "gessl.check-every", self.check_every, "0 or more")

    @property
    def further(self) -> int:
        """Steps from a task's model to its target."""
        return self.target_steps - (self.target == "algorithm-box")

    @property
    def checked(self) -> bool:
        """Whether the outer gradient is one that has a gradient of `through` to be compared with."""
        return self.check_every > 0 and self.differentiation not in ("through", "lookahead")

    @property
    def idle(self) -> dict[str, str]:
        """Settings that do nothing here, and where that is so."""
        found = {}
        if self.differentiation not in ("cg", "neumann"):
            found["solver_iterations"] = "but with --gessl.differentiation cg or neumann"
        if self.probabilities in ("head", "native"):
            found["temperature"] = f"with --gessl.probabilities {self.probabilities}"
        return found

    @property
    def images(self) -> int:
        """Of one outer step's tasks together."""
        return self.tasks * self.batch_size

    def cost(self, steps: int) -> Cost:
        """Of so many outer steps. Passes without a gradient, as for the target's π, are not counted."""
        k, kind = self.inner_steps, self.differentiation
        gradients = k + self.further + (kind != "lookahead") + 2 * k * (kind == "fd")
        products = {"through": k, "cg": self.solver_iterations, "neumann": self.solver_iterations}.get(kind, 0)
        checks = math.ceil(steps / self.check_every) * k if self.checked else 0
        passes = steps * self.tasks * gradients
        return Cost(passes * self.batch_size, passes, steps * self.tasks * products + checks)


class GeSSLTask:
    """Algorithm 1. One step is one outer step, of n tasks.

    With ranks each has n/R whole tasks, its part of the batch of an outer step. They do all of their inner steps
    without a word to each other, with batch-norm statistics of the task at hand as in one process, and the sum over the
    tasks is the sum over the ranks.

    Args:
        instances: ℓ and π of the pretext task with its network, θ. If its learner has ranks, all that a step moves is
            what one process with the whole batches moves.
        loader: all images of an outer step in one batch, or this rank's part of it.
        settings: of the algorithm.
        bilevel: how products are taken.
        steps: outer steps.
        seed: of labels, and of layers that draw random numbers.

    Raises:
        UserError: if ranks cannot have as many whole tasks each.
    """

    remedy = "Lower --gessl.inner-rate or --gessl.outer.learning-rate, or take --precision fp32."

    def __init__(
        self,
        instances: Instances,
        loader: Loader,
        settings: GeSSLSettings,
        bilevel: BilevelSettings,
        steps: int,
        seed: int,
    ) -> None:
        self.instances, self.learner, self.theta = instances, instances.learner, instances.parameters
        self.loader, self.settings, self.bilevel, self.seed = loader, settings, bilevel, seed
        self.steps, self.images_per_step, self.log_every = steps, settings.images, max(1, min(50, steps // 50))
        self.ranks = instances.learner.ranks
        require_parts(settings.tasks, "gessl.tasks", self.ranks)
        size, rank = (1, 0) if self.ranks is None else (self.ranks.size, self.ranks.rank)
        self.own = range(rank * settings.tasks // size, (rank + 1) * settings.tasks // size)
        self.divergence = DIVERGENCES[settings.loss]
        self.operators: dict[str, HessianOperator] = {}  # by mode; built when first needed, moved ever after
        self.optimizer = settings.outer.build(list(instances.model.parameters()))

    def step(self, index: int) -> Values:
        """One pass of Algorithm 1's second loop over n tasks, then its last line."""
        settings, learner = self.settings, self.learner
        instances = self.instances
        instances.model.train()
        outer = settings.outer
        rate = warmup_cosine(index, self.steps, outer.learning_rate, floor=outer.final_share)
        set_learning_rate(self.optimizer, rate)
        views = self.loader.load(index).views
        learner.begin_step()
        learner.observe(views)  # at θ, of all tasks together: here alone buffers move
        gradient, logs = self._sum(views, index)
        for parameter, piece in zip(self.theta.tensors, self.theta.unflatten(gradient), strict=True):
            parameter.grad = piece.clone()
        learner.hold(index)
        self.optimizer.step()  # θ ← θ − β Σ_l ∇_θ L(f^l; D^l)
        learner.advance(index / self.steps)
        shown = (index + 1) % self.log_every == 0 or index + 1 == self.steps
        spread = learner.diagnostics() if shown else {}
        return {**logs, "outer_gradient_norm": norm(gradient), "lr": rate, **spread}

    def _sum(self, views: Views, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """The sum over the tasks of an outer step in Eq. 7, and what to log, a mean over them."""
        settings, own = self.settings, self.own
        gradient, logs = torch.zeros_like(self.theta.values()), []
        with self.learner.apart():
            for number, task in zip(own, self.instances.tasks(views, len(own), self.seed + index, own[0]), strict=True):
                checked = settings.checked and number == 0 and index % settings.check_every == 0
                pulled, log = self.outer_gradient(task, checked)
                gradient += pulled
                logs.append(log)
        return all_reduce(gradient, self.ranks), _means(logs, self.ranks)

    def outer_gradient(self, task: InstanceTask, checked: bool = False) -> tuple[torch.Tensor, dict[str, Any]]:
        """∇_θ L(f^l; D^l) ``(L,)`` of one task, and what to log; θ is left as it was."""
        settings, theta, instances = self.settings, self.theta, self.instances
        alpha = settings.inner_rate

        with restored(theta):
            path = descend(theta, lambda: instances.gradient(task), alpha, settings.inner_steps)  # f^l, Eq. 6
            for _ in range(settings.further):  # f̃^l
                advance(theta, instances.gradient(task)[1], -alpha)
            target = theta.values()
            with torch.no_grad():
                log_target = instances.log_pi(task)
            theta.assign(path.end)
            loss, g, accuracy = self._compare(task, log_target)
            pulled = self._differentiate(task, path, target, g)
            log: dict[str, Any] = {"loss": path.losses[0], "gradient_norm": path.gradient_norm, "outer_loss": loss}
            log |= accuracy
            if checked:
                exact = replace(self.bilevel, mode="reverse", products_dtype="float32", capture=False)
                through = pull_back(theta, path.points, g, lambda v: self._hessian(task, exact).matvec(v), alpha)
                log |= comparison(pulled, through)
        for operator in self.operators.values():
            operator.release()
        return pulled, log

    def _compare(
        self, task: InstanceTask, log_target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """L(f^l; D^l) and its gradient g at the task's model, where the parameters are; none for `lookahead`."""
        lookahead = self.settings.differentiation == "lookahead"
        with torch.set_grad_enabled(not lookahead):
            log_pi = self.instances.log_pi(task)
            loss = self.divergence(log_target, log_pi)
        accuracy = self.instances.accuracy(task, log_pi.detach())
        told = {} if accuracy is None else {"task_accuracy": accuracy}
        if lookahead:
            return loss, torch.zeros_like(self.theta.values()), told
        g = torch.autograd.grad(loss, self.theta.tensors, allow_unused=True)
        return loss.detach(), self.theta.flatten(g), told

    def _differentiate(self, task: InstanceTask, path: Descent, target: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """g at f^l as a gradient at θ, in the way that is asked for; the parameters are at f^l."""
        settings, alpha, k = self.settings, self.settings.inner_rate, self.settings.inner_steps
        kind, points = settings.differentiation, path.points
        if kind == "first-order":
            return g
        if kind == "lookahead":
            return path.points[0] - target
        if kind == "fd":
            differences = difference_products(self.theta, lambda: self.instances.gradient(task))
            return pull_back(self.theta, points, g, differences, alpha)
        if kind == "through":
            return pull_back(self.theta, points, g, lambda v: self._hessian(task, self.bilevel).matvec(v), alpha)
        solver = conjugate_gradient if kind == "cg" else neumann
        return proximal(self._hessian(task, self.bilevel), g, alpha, k, solver, settings.solver_iterations).x

    def _hessian(self, task: InstanceTask, bilevel: BilevelSettings) -> HessianOperator:
        """∇²ℓ of a task at the parameters' present values."""
        known = self.operators.get(bilevel.mode)
        with drawing(task.seed, self.theta.tensors[0].device):  # what the passes of the task draw
            if known is None:
                known = self.operators[bilevel.mode] = bilevel.operator(self.instances.loss, self.theta, [task.given])
            else:
                known.update([task.given])
        return known

    def weights(self) -> dict[str, torch.Tensor]:
        """Of the learner, and of the head c under ``classifier.``, if there is one."""
        head = self.instances.model.classifier
        named = {} if head is None else {f"classifier.{name}": value for name, value in head.state_dict().items()}
        return self.learner.state_dict() | named

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        weights = dict(state["weights"])
        if self.instances.model.classifier is not None:
            names = [name for name in weights if name.startswith("classifier.")]
            head = {name.removeprefix("classifier."): weights.pop(name) for name in names}
            self.instances.model.classifier.load_state_dict(head)
        self.learner.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])


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
        start = {} if run.weights is None else {"weights": run.weights.digest}
        return run.stage("gessl", key, {"images": run.data.unlabelled.content_hash, **start}, body)

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


def comparison(outer: torch.Tensor, through: torch.Tensor) -> dict[str, Any]:
    """What is logged of the cosine between an outer gradient and that of `through`.

    It decides nothing, so that one which is no number stops no run: it is null, and a reason stands beside it.
    """
    lengths = norm(outer), norm(through)
    product = lengths[0] * lengths[1]
    cosine = torch.where(product == 0, 1.0, dot(outer, through) / product)  # 1 where both are zero
    if torch.isfinite(cosine):
        return {COMPARED: cosine}
    at_fault = "the gradient of `through`" if torch.isfinite(lengths[0]) else "the outer gradient"
    return {COMPARED: None, f"{COMPARED}_reason": f"{at_fault} is too large for a norm, or not finite"}


def _means(logs: Sequence[dict[str, Any]], ranks: Ranks | None) -> dict[str, Any]:
    """Over the tasks of all ranks; what is found out about the first task alone stands as it is, on its rank."""
    of_first = {name: value for name, value in logs[0].items() if name.startswith(COMPARED)}
    means = {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0] if name not in of_first}
    if ranks is not None:
        sums = summed_together([mean.double() for mean in means.values()], ranks)
        means = {n: (total / ranks.size).to(means[n].dtype) for n, total in zip(means, sums, strict=True)}
    return means | of_first
