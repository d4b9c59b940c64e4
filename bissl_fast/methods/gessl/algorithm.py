"""Algorithm 1 of GeSSL: inner steps on each task, and a step towards where more of them lead."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from bissl_fast.bilevel import HessianOperator, conjugate_gradient, neumann
from bissl_fast.bilevel.hypergradients.inner_steps import (
    Descent,
    advance,
    descend,
    difference_products,
    proximal,
    pull_back,
    restored,
)
from bissl_fast.data.pipelines.loader import Loader
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.checks import require_parts
from bissl_fast.methods.gessl.settings import GeSSLSettings
from bissl_fast.ops.collectives import Ranks, all_reduce, summed_together
from bissl_fast.ops.krylov import dot, norm
from bissl_fast.pretext.divergences import DIVERGENCES
from bissl_fast.pretext.drawing import drawing
from bissl_fast.pretext.instances import Instances, InstanceTask
from bissl_fast.pretext.learner import Views
from bissl_fast.training.loop import Values, is_logged

COMPARED = "cos_through"
"""How the cosine to the gradient of `through` is logged."""


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
        rate = settings.outer.set_rate(self.optimizer, index, self.steps)
        views = self.loader.load(index).views
        learner.begin_step()
        learner.observe(views)  # at θ, of all tasks together: here alone buffers move
        gradient, logs = self._sum(views, index)
        for parameter, piece in zip(self.theta.tensors, self.theta.unflatten(gradient), strict=True):
            parameter.grad = piece.clone()
        learner.hold(index)
        self.optimizer.step()  # θ ← θ − β Σ_l ∇_θ L(f^l; D^l)
        learner.advance(index / self.steps)
        shown = is_logged(self, index)
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
