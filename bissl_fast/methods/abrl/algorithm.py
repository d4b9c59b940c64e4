"""Algorithm 1 of ABRL: steps of the head, and one of the encoder on what the trained head makes of other images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bissl_fast.bilevel import ParameterVector, frozen_buffers
from bissl_fast.bilevel.hypergradients.head import InnerProblem
from bissl_fast.data.pipelines.loader import Batch, Loader
from bissl_fast.evaluation.metrics import Evaluation
from bissl_fast.methods.abrl.covariance import (
    RunningCovariance,
    covariance,
    identity_distance,
)
from bissl_fast.methods.abrl.settings import ABRLSettings
from bissl_fast.models import Network
from bissl_fast.ops.batch_norm import average_statistics, share_statistics
from bissl_fast.ops.collectives import (
    Ranks,
    all_gather,
    all_reduce,
    gathered,
    gradients_of_all,
    share_of_mean,
    summed_together,
)
from bissl_fast.ops.krylov import dot, norm
from bissl_fast.pretext.collapse import diagnose
from bissl_fast.training.loop import Values, is_logged
from bissl_fast.training.precision import Forward
from bissl_fast.training.supervised import DownstreamLoss, downstream_loss


@dataclass(frozen=True)
class Features:
    """What the head sees of a batch, of the images of all ranks.

    Attributes:
        rows: ``(B, D)``, Z.
        target: ``(B,)`` or ``(B, classes)``.
    """

    rows: torch.Tensor
    target: torch.Tensor


class ABRLTask:
    """Algorithm 1. One step is one outer step: K steps of the head, then one of the encoder.

    Batch norms are in train mode throughout. Their running statistics move once per outer step, in the pass of the
    validation batch, whose loss the encoder's step is on; the training batch's pass leaves them alone.

    With ranks each passes its part of a batch through the encoder, and all that follows is done on every rank alike, on
    features of all images: the head is small, and by parts each of its products, which wait for one another, would be a
    sum over the ranks.

    Args:
        network: encoder θ and head φ, trained in place.
        training: batches that the head is trained on.
        validation: batches of other images, for the outer loss.
        choose: evaluates a network on images of neither, by which the epoch is chosen.
        settings: of the algorithm.
        steps: length.
        epoch: steps between two evaluations.
        forward: precision context of the encoder's passes; the head's are in the parameters' own precision.
        loss: of scores and targets.
        ranks: if there are several; loaders then give this rank's part of each batch, and all that a step moves is what
            one process with the whole batches moves.
    """

    remedy = "Raise --abrl.ridge or --abrl.damping, lower --abrl.outer.learning-rate, or take --precision fp32."

    def __init__(
        self,
        network: Network,
        training: Loader,
        validation: Loader,
        choose: Callable[[Network], Evaluation],
        settings: ABRLSettings,
        steps: int,
        epoch: int,
        forward: Forward,
        loss: DownstreamLoss = downstream_loss,
        ranks: Ranks | None = None,
    ) -> None:
        self.network, self.training, self.validation, self.choose = network, training, validation, choose
        self.settings, self.forward, self.loss, self.ranks = settings, forward, loss, ranks
        if ranks is not None:
            share_statistics(network, ranks)
        self.steps, self.log_every, self.images_per_step = steps, min(epoch, steps), 2 * settings.batch_size
        self.best: dict[str, torch.Tensor] = {}
        self.best_score = -1.0
        self.theta = ParameterVector(network, "backbone.")  # θ
        self.phi = ParameterVector(network.head)  # φ
        weight = self.phi.tensors[0].detach()  # (classes, D)
        nothing = weight.new_zeros(weight.shape[1], weight.shape[1])
        self.covariance = RunningCovariance(settings.running_covariance, nothing)
        trained = network if settings.variant == "single-level" else network.backbone
        self.optimizer = settings.outer.build(list(trained.parameters()))

    def step(self, index: int) -> Values:
        """One pass of Algorithm 1's loop; then, at the end of an epoch, the third split."""
        rate = self.settings.outer.set_rate(self.optimizer, index, self.steps)
        training, validation = self.training.load(index), self.validation.load(index)
        self.network.train()
        self.network.zero_grad(set_to_none=True)
        if self.settings.variant == "single-level":
            values = self._joint_gradient(index, training, validation)
        else:
            values = self._hypergradient(index, training, validation)
        self.optimizer.step()
        average_statistics(self.ranks, self.network)
        values["lr"] = rate
        return values | (self._end_epoch(index + 1) if is_logged(self, index) else {})

    def _hypergradient(self, index: int, training: Batch, validation: Batch) -> dict[str, Any]:
        """Leave dL_outer/dθ in ``.grad`` and φ_K in the head."""
        settings = self.settings
        with torch.set_grad_enabled(settings.implicit), frozen_buffers(self.network.backbone):
            features = self._features(training)
        ridge = settings.ridge if settings.hypergradient == "converged" else 0.0
        problem = InnerProblem(self._head_loss(features), features.rows, ridge)
        path = settings.head.inner_loop(problem, self.phi.values())  # K times φ ← φ − α ∇L_inner
        self.phi.assign(path[-1])
        seen = self._features(validation)
        outer, values = self._outer_loss(index, seen)
        values |= {"inner_loss": problem.value(path[-1]), "inner_gradient": norm(problem.gradient(path[-1]))}
        with gradients_of_all(self.theta.tensors, self.ranks):
            share_of_mean(outer, self.ranks).backward()  # type: ignore[no-untyped-call]  # ∂L_outer/∂θ and v = ∂L_outer/∂φ
            if settings.implicit:
                v = all_reduce(self.phi.flatten([p.grad for p in self.phi.tensors]), self.ranks)
                found = settings.head.pull_back(problem, path, v)
                values |= {} if found.residual is None else {"solver_residual": found.residual}
                term = self._through_encoder(features, found.cotangent)
                if settings.comparisons(1) and index % settings.compare_every == 0:
                    values |= self._comparison(features, term, path[0], seen)
                for parameter, gradient in zip(self.theta.tensors, self.theta.unflatten(term), strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return values | {"head_products": float(problem.products)}

    def _joint_gradient(self, index: int, training: Batch, validation: Batch) -> dict[str, Any]:
        """Leave the gradient of the mean loss over both batches, plus the penalty, in ``.grad`` of θ and φ."""
        with frozen_buffers(self.network.backbone):
            features = self._features(training)
        inner = self._head_loss(features)(self._phi(), features.rows)
        loss, values = self._outer_loss(index, self._features(validation), beside=inner)
        with gradients_of_all(self.network.parameters(), self.ranks):
            share_of_mean(loss, self.ranks).backward()  # type: ignore[no-untyped-call]
        return values | {"inner_loss": inner.detach()}

    def _outer_loss(
        self, index: int, seen: Features, beside: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Eq. 2 as a mean over images, and what to log; ``beside`` is the mean loss of as many others."""
        validation = self._head_loss(seen)(self._phi(), seen.rows)
        supervised = validation if beside is None else (validation + beside) / 2
        spread = self.covariance.update(covariance(seen.rows, self.settings.normalisation))
        penalty = identity_distance(spread)
        loss = supervised + self.settings.weight * penalty
        values = {"outer_loss": loss, "outer_loss_downstream": validation, "covariance_distance": penalty}
        told = {name: value.detach() for name, value in values.items()}
        return loss, told | (diagnose(seen.rows) if is_logged(self, index) else {})

    def _comparison(
        self, features: Features, term: torch.Tensor, start: torch.Tensor, seen: Features
    ) -> dict[str, torch.Tensor]:
        """The implicit term in θ beside that of the K-step map from the same φ_0, which is exact for that map."""
        head = self.settings.head
        problem = InnerProblem(self._head_loss(features), features.rows)
        path = head.descend(problem, start)
        v = InnerProblem(self._head_loss(seen), seen.rows).gradient(path[-1])
        shares = term, self._through_encoder(features, head.unroll(problem, path, v)), self._direct()
        term, exact, gradient = summed_together(shares, self.ranks)
        direct = norm(gradient)
        lengths = norm(term), norm(exact)
        tiny = torch.finfo(direct.dtype).tiny
        return {
            "cosine_to_unrolled": dot(term, exact) / (lengths[0] * lengths[1]).clamp(min=tiny),
            "ratio_to_unrolled": lengths[0] / lengths[1].clamp(min=tiny),
            "implicit_share": lengths[0] / direct.clamp(min=tiny),
        }

    def _through_encoder(self, features: Features, cotangent: torch.Tensor) -> torch.Tensor:
        """(dZ/dθ)ᵀ of a cotangent ``(B, D)``, one reverse pass, as one vector, or a rank's share; the graph stays."""
        gradients = torch.autograd.grad(
            features.rows,
            self.theta.tensors,
            share_of_mean(cotangent, self.ranks),
            retain_graph=True,
            allow_unused=True,
        )
        return self.theta.flatten(gradients)

    def _direct(self) -> torch.Tensor:
        """∂L_outer/∂θ as one vector, or a rank's share of it."""
        return self.theta.flatten([p.grad for p in self.theta.tensors])

    def _features(self, batch: Batch) -> Features:
        """f_θ(X), in the head's precision."""
        with self.forward():
            own: torch.Tensor = self.network.backbone(batch.views[0])
        rows, target = all_gather(own.to(self.phi.tensors[0].dtype), self.ranks), batch.target
        return Features(rows, target if self.ranks is None else gathered(target, self.ranks))

    def _head_loss(self, seen: Features) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """The downstream loss of a batch as a function of φ and of features."""

        def loss(phi: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
            held = dict(zip(self.phi.names, self.phi.unflatten(phi), strict=True))
            scores = torch.func.functional_call(self.network.head, held, (features,))
            return self.loss(scores, seen.target)

        return loss

    def _phi(self) -> torch.Tensor:
        """φ as one vector, with its graph."""
        return self.phi.flatten(self.phi.tensors)

    def _end_epoch(self, done: int) -> dict[str, float]:
        result = self.choose(self.network)
        if result.score > self.best_score or self.settings.keep == "last":
            self.best_score = result.score
            self.best = {name: value.clone() for name, value in self.network.state_dict().items()}
        return {"epoch": done / self.log_every, f"val_{result.key}": result.score, "val_loss": result.loss}

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "covariance": self.covariance.state_dict(),
            "best": self.best,
            "best_score": self.best_score,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.covariance.load_state_dict(state["covariance"])
        self.best, self.best_score = state["best"], state["best_score"]
