"""Algorithm 1 of BiSSL: lower steps on the pretext task, upper steps by the implicit gradient (Algorithm 2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from bissl_fast.bilevel import Operator, ParameterVector, RitzValues, frozen_buffers
from bissl_fast.bilevel.solvers.events import event_shares
from bissl_fast.data.pipelines.loader import Batch, Loader
from bissl_fast.methods.bilevel import BilevelSettings, Hessian, PhaseSolver
from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network, forward_each
from bissl_fast.ops.batch_norm import average_statistics, share_statistics
from bissl_fast.ops.collectives import all_reduce, gradients_of_all, share_of_mean, summed_together
from bissl_fast.ops.krylov import norm
from bissl_fast.pretext import Learner, OptimizerSettings
from bissl_fast.pretext.learner import Views
from bissl_fast.training.loop import Values
from bissl_fast.training.optimizers import build_optimizer, set_rate
from bissl_fast.training.precision import Forward
from bissl_fast.training.schedules import warmup_cosine
from bissl_fast.training.supervised import DownstreamLoss, downstream_loss


class BiSSLTask:
    """Algorithm 1. One step is one alternation: N_L lower steps, then N_U upper steps.

    Args:
        learner: the pretext task L^P with its network, θ_P and φ_P. If it has ranks, loaders give this rank's part of
            each batch, and all that a step moves is what one process with the whole batches moves.
        downstream: θ_D and φ_D; θ_D starts as a copy of θ_P.
        pretext_loader: batches of the lower level, N_L per alternation.
        downstream_loader: batches of the upper level, N_U per alternation.
        fresh_loader: K batches per alternation for the Hessian; ``None``: they are the first of the lower phase.
        settings: of the algorithm.
        bilevel: how products are taken and systems solved.
        optimizer: of the lower level.
        sgd: optimiser of the upper level (Table 3).
        forward: precision context of a forward pass. Products have one of their own (``bilevel.products_dtype``).
        loss: of scores and targets, L^D.
    """

    remedy = (
        "Raise --bissl.damping, lower --bissl.learning-rate or --upper.learning-rate, or take --precision fp32 and "
        "--bilevel.products-dtype float32."
    )

    def __init__(
        self,
        learner: Learner,
        downstream: Network,
        pretext_loader: Loader,
        downstream_loader: Loader,
        fresh_loader: Loader | None,
        settings: BiSSLSettings,
        bilevel: BilevelSettings,
        optimizer: OptimizerSettings,
        sgd: SGDSettings,
        forward: Forward,
        loss: DownstreamLoss = downstream_loss,
    ) -> None:
        self.learner, self.pretext, self.downstream, self.settings = learner, learner.network, downstream, settings
        self.pretext_loader, self.downstream_loader = pretext_loader, downstream_loader
        self.fresh_loader, self.bilevel = fresh_loader, bilevel
        self.optimizer, self.sgd, self.forward, self.loss = optimizer, sgd, forward, loss
        self.steps, self.log_every = settings.alternations, 1
        self.ranks, size = learner.ranks, 1 if learner.ranks is None else learner.ranks.size
        if self.ranks is not None:
            share_statistics(downstream, self.ranks)
        self.batch_size, downstream_size = size * pretext_loader.batch_size, size * downstream_loader.batch_size
        self.images_per_step = settings.lower_steps * self.batch_size + settings.upper_steps * downstream_size
        self.theta_p = ParameterVector(self.pretext, "backbone.")  # θ_P
        self.theta_d = ParameterVector(downstream, "backbone.")  # θ_D
        self.phi_d = list(downstream.head.parameters())  # φ_D
        self.hessian: Hessian | None = None  # built at the first upper phase, moved at every other
        self.seen: RitzValues | None = None  # of the present upper phase
        constant = learner.task.constant_rate()
        self.lower_optimizer = build_optimizer(optimizer, self.pretext.named_parameters(), constant)
        self.upper_optimizer = sgd.build(list(downstream.parameters()))

    def step(self, index: int) -> Values:
        """Algorithm 1, lines 4 to 15, for t = index + 1."""
        settings = self.settings
        self.pretext.train()
        self.downstream.train()
        stored, lower = self._lower_level(index)
        if settings.adaptation_every and (index + 1) % settings.adaptation_every == 0:  # line 8
            self._adapt()
        if self.fresh_loader is not None:
            first = index * settings.stored_batches
            stored = [self.fresh_loader.load(first + k).views for k in range(settings.stored_batches)]
        upper = self._upper_level(index, stored)
        moved = (self.downstream, self.pretext) if settings.leak_statistics else (self.downstream,)
        average_statistics(self.ranks, *moved)
        distance = norm(self.theta_d.values() - self.theta_p.values())
        return {**lower, **upper, "backbone_distance": distance}

    def _lower_level(self, alternation: int) -> tuple[list[Views], dict[str, torch.Tensor | float]]:
        """Lines 4 to 7. Returns the stored batches and what to log."""
        settings = self.settings
        stored: list[Views] = []
        losses, regularisers = [], []
        peak = self.optimizer.peak(settings.learning_rate, self.batch_size)
        total = settings.alternations * settings.lower_steps
        for index in range(alternation * settings.lower_steps, (alternation + 1) * settings.lower_steps):
            rate = warmup_cosine(index, total, peak, settings.warmup_steps or 0, settings.final_share)
            set_rate(self.lower_optimizer, rate, peak, self.optimizer.decay_at(index / total))
            views = self.pretext_loader.load(index).views
            if len(stored) < settings.stored_batches:
                stored.append(views)
            self.lower_optimizer.zero_grad(set_to_none=True)
            self.learner.begin_step()
            losses.append(self.learner.backward(views))  # lines 5 and 6, first term
            self.learner.hold(index)
            regularisers.append(self._add_regulariser())
            clip_grad_norm_(self.pretext.parameters(), settings.clip)
            self.lower_optimizer.step()  # line 7
            self.learner.advance(index / total)
        values: dict[str, torch.Tensor | float] = {
            "lower_loss": _mean(losses),
            "lower_regulariser": _mean(regularisers),
            "lr_lower": rate,
        }
        return stored, {**values, **self.learner.diagnostics()}

    @torch.no_grad()
    def _add_regulariser(self) -> torch.Tensor:
        """Line 6, second term: add λ∇r = λ(θ_P − θ_D) to the gradient; returns λ·r."""
        value = torch.zeros((), device=self.theta_p.tensors[0].device)
        for p, d in zip(self.theta_p.tensors, self.theta_d.tensors, strict=True):
            difference = p - d
            value += difference.square().sum()
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            p.grad.add_(difference, alpha=self.settings.proximity)
        return 0.5 * self.settings.proximity * value

    @torch.no_grad()
    def _adapt(self) -> None:
        """Line 9: θ_D ← (1 − α)θ_D + αθ_P."""
        for d, p in zip(self.theta_d.tensors, self.theta_p.tensors, strict=True):
            d.lerp_(p, self.settings.adaptation)

    def _upper_level(self, alternation: int, stored: list[Views]) -> dict[str, torch.Tensor | float]:
        """Lines 10 to 15. θ_P, φ_P and the stored batches stay as they are, so one Hessian serves the whole phase."""
        settings = self.settings
        solver = self._solver(stored)
        total = settings.alternations * settings.upper_steps
        losses, plain_losses, gradients, residuals, events, products = [], [], [], [], [], []
        for index in range(alternation * settings.upper_steps, (alternation + 1) * settings.upper_steps):
            rate = self.sgd.set_rate(self.upper_optimizer, index, total)
            batch = self.downstream_loader.load(index)
            loss, v, head_gradients = self._gradient_at_theta_p(batch)  # lines 11 and 12, L^D(θ_P, φ_D)
            solution = solver(v)  # line 13
            if settings.leak_statistics:
                self._leak_statistics(stored, solution.products + solution.rough_products)
            plain = self._gradient_at_theta_d(batch)  # lines 11 and 14, γ L^D(θ_D, φ_D)
            self._add(self.theta_d.tensors, self.theta_d.unflatten(solution.x))
            self._add(self.phi_d, head_gradients)
            clip_grad_norm_(self.downstream.parameters(), settings.clip)
            self.upper_optimizer.step()  # line 15
            losses.append(loss)
            plain_losses.append(plain)
            gradients.append(norm(solution.x))
            residuals.append(solution.relative_residuals)
            events.append(solution.events)
            products.append((solution.products, solution.rough_products))
        values: dict[str, torch.Tensor | float] = {
            "upper_loss": _mean(losses),
            "upper_loss_downstream": _mean(plain_losses),
            "implicit_gradient_norm": _mean(gradients),
            "lr_upper": rate,
            **event_shares(events),
        }
        refining = self.bilevel.refine_to is not None
        if refining or self.bilevel.solver not in ("identity", "nystrom"):  # which measure no residual
            values["cg_residuals"] = _mean_to_the_end(residuals)
        if refining:
            true, rough = (sum(counts) / len(products) for counts in zip(*products, strict=True))
            values |= {"products": true, "products_rough": rough}
        assert self.hessian is not None
        self.hessian.release()
        return values | self._curvature()

    def _solver(self, stored: list[Views]) -> PhaseSolver:
        """``v ↦ v_IG ≈ [I + ∇²L^P / (λ + λ_damp)]⁻¹ v`` for the right-hand sides of one upper phase."""
        batches = self.bilevel.grouped(self.learner.given(stored))
        if self.hessian is None:
            self.hessian = self.bilevel.build(self.learner.product_loss, self.theta_p, batches, self.ranks)
        else:
            self.hessian.update(batches)
        settings = self.settings
        iterations = settings.solver_iterations
        return self.bilevel.solver_of(self.hessian, settings.proximity, settings.damping, iterations, self._watch)

    def _watch(self, hessian: Operator) -> Operator:
        """What the first right-hand side of an upper phase multiplies by, which is as many products as it has."""
        self.seen = RitzValues(hessian, self.settings.solver_iterations)
        return self.seen

    def _curvature(self) -> dict[str, float]:
        """A lower bound of λmax(∇²L^P) from these products, if there were any; gives back their memory."""
        assert self.seen is not None
        values, self.seen = self.seen.values(), None
        return {"curvature": float(values[-1])} if len(values) else {}

    def _gradient_at_theta_p(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]:
        """L^D(θ_P, φ_D), its gradient with respect to θ_P as a vector, and with respect to φ_D."""
        protected = [] if self.settings.leak_statistics else [self.pretext.backbone]
        with frozen_buffers(*protected):
            loss = self._downstream_loss(self.pretext.backbone, batch)
        own = torch.autograd.grad(loss, [*self.theta_p.tensors, *self.phi_d], materialize_grads=True)
        loss, *gradients = summed_together([loss.detach(), *own], self.ranks)
        backbone = len(self.theta_p.tensors)
        return loss, self.theta_p.flatten(gradients[:backbone]), gradients[backbone:]

    def _gradient_at_theta_d(self, batch: Batch) -> torch.Tensor:
        """Leave γ∇L^D(θ_D, φ_D) in ``.grad`` of θ_D and φ_D; returns L^D(θ_D, φ_D)."""
        self.upper_optimizer.zero_grad(set_to_none=True)
        with gradients_of_all(self.downstream.parameters(), self.ranks):
            loss = self._downstream_loss(self.downstream.backbone, batch)
            (self.settings.downstream_weight * loss).backward()  # type: ignore[no-untyped-call]
        return all_reduce(loss.detach(), self.ranks)

    def _downstream_loss(self, backbone: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """L^D of a backbone with φ_D, or a rank's share of it: it is a mean over images."""
        with self.forward():
            loss = self.loss(self.downstream.head(backbone(batch.views[0])), batch.target)
        return share_of_mean(loss, self.ranks)

    @torch.no_grad()
    def _leak_statistics(self, stored: list[Views], products: int) -> None:
        """What the forward passes of rebuilt products do to the batch-norm statistics of θ_P and φ_P."""
        given = self.learner.given(stored)
        for _ in range(products):
            for views, _ in given:
                with self.forward():
                    forward_each(self.pretext, views, self.learner.chunk)

    @staticmethod
    def _add(parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)

    def state(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "downstream": self.downstream.state_dict(),
            "lower_optimizer": self.lower_optimizer.state_dict(),
            "upper_optimizer": self.upper_optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.downstream.load_state_dict(state["downstream"])
        self.lower_optimizer.load_state_dict(state["lower_optimizer"])
        self.upper_optimizer.load_state_dict(state["upper_optimizer"])


def _mean(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(values).mean()


def _mean_to_the_end(residuals: list[torch.Tensor]) -> torch.Tensor:
    """The mean over systems, each standing at its last residual where others go on: ``(most + 1,)``."""
    most = max(map(len, residuals))
    return torch.stack([torch.cat([r, r[-1:].expand(most - len(r))]) for r in residuals]).mean(0)
