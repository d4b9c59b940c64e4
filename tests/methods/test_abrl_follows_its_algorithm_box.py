"""ABRL's outer steps against its equations written out with autograd, dense Hessians and the optimiser's formula."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bissl_fast.evaluation.metrics import Evaluation
from bissl_fast.methods.abrl.algorithm import ABRLTask
from bissl_fast.methods.abrl.settings import ABRLSettings
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network
from tests.methods.test_bissl_follows_algorithm_1 import Draws

SETTINGS = ABRLSettings(
    batch_size=6,
    inner_steps=3,
    inner_rate=0.2,
    outer=SGDSettings(learning_rate=0.1, weight_decay=0.02, momentum=0.8, final_share=0.3),
    penalty=0.05,
    damping=0.4,
    solver_iterations=16,
    ridge=0.1,
    compare_every=0,
)
STEPS, EPOCH = 4, 2
Tensors = dict[str, torch.Tensor]


def network() -> Network:
    torch.manual_seed(3)
    backbone = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    return Network(backbone, nn.Linear(3, 3)).double()


def scored(scores: Iterator[float]) -> Any:
    return lambda network: Evaluation({"top1": next(scores)}, 1.0, 1)


def task(settings: ABRLSettings, scores: tuple[float, ...] = (10.0, 20.0)) -> ABRLTask:
    loaders: list[Any] = [Draws(1, 1), Draws(2, 1)]
    return ABRLTask(network(), *loaders, scored(iter(scores)), settings, STEPS, EPOCH, nullcontext)


def done(settings: ABRLSettings, steps: int = STEPS, scores: tuple[float, ...] = (10.0, 20.0)) -> ABRLTask:
    found = task(settings, scores)
    for index in range(steps):
        found.step(index)
    return found


class Literal:
    """The algorithm box on dictionaries of tensors, with the batch of an outer step for all of its K inner steps."""

    def __init__(self, settings: ABRLSettings) -> None:
        self.s, self.module = settings, network()
        self.buffers = {n: b.clone() for n, b in self.module.backbone.named_buffers()}
        self.theta = {n: p.detach().clone() for n, p in self.module.backbone.named_parameters()}
        self.phi = {n: p.detach().clone() for n, p in self.module.head.named_parameters()}
        self.momentum: Tensors = {}

    def features(self, theta: Tensors, batch: Any, moves: bool) -> torch.Tensor:
        buffers = self.buffers if moves else {n: b.clone() for n, b in self.buffers.items()}
        found: torch.Tensor = torch.func.functional_call(self.module.backbone, theta | buffers, (batch.views[0],))
        return found

    @staticmethod
    def cross_entropy(phi: Tensors, features: torch.Tensor, batch: Any) -> torch.Tensor:
        return F.cross_entropy(features @ phi["weight"].T + phi["bias"], batch.target)

    def step(self, index: int) -> None:
        training, validation = Draws(1, 1).load(index), Draws(2, 1).load(index)
        theta = {n: p.clone().requires_grad_() for n, p in self.theta.items()}
        z, seen = self.features(theta, training, moves=False), self.features(theta, validation, moves=True)
        gradients = self.joint(theta, z, seen, (training, validation))
        if self.s.variant != "single-level":
            gradients = self.bilevel(theta, z, seen, (training, validation))
        share = 0.5 * (1 + math.cos(math.pi * index / STEPS))
        rate = 0.1 * (share + (1 - share) * 0.3)
        for name, gradient in gradients.items():
            values = self.theta if name in self.theta else self.phi
            gradient = gradient + 0.02 * values[name]
            self.momentum[name] = 0.8 * self.momentum[name] + gradient if name in self.momentum else gradient
            values[name] = values[name] - rate * self.momentum[name]

    def penalty(self, seen: torch.Tensor) -> torch.Tensor:
        weight = 0.0 if self.s.variant == "no-penalty" else self.s.penalty
        divisor = len(seen) - (self.s.normalisation == "sample")
        centred = seen - seen.mean(0)
        return weight * (centred.T @ centred / divisor - torch.eye(3).double()).square().sum()

    def joint(self, theta: Tensors, z: torch.Tensor, seen: torch.Tensor, batches: Any) -> Tensors:
        phi = {n: p.clone().requires_grad_() for n, p in self.phi.items()}
        scores = torch.cat([z, seen]) @ phi["weight"].T + phi["bias"]
        loss = F.cross_entropy(scores, torch.cat([batch.target for batch in batches])) + self.penalty(seen)
        variables = theta | phi
        return dict(zip(variables, torch.autograd.grad(loss, list(variables.values()), retain_graph=True), strict=True))

    def bilevel(self, theta: Tensors, z: torch.Tensor, seen: torch.Tensor, batches: Any) -> Tensors:
        """Of ``unrolled`` through the graph of the K steps; of ``ift`` by a dense Hessian."""
        unrolled = self.s.hypergradient == "unrolled" and self.s.variant != "no-implicit"
        phi = {n: p.clone().requires_grad_() for n, p in self.phi.items()}
        for _ in range(self.s.inner_steps):
            loss = self.cross_entropy(phi, z if unrolled else z.detach(), batches[0])
            slopes = torch.autograd.grad(loss, list(phi.values()), create_graph=unrolled)
            phi = {n: p - self.s.inner_rate * g for (n, p), g in zip(phi.items(), slopes, strict=True)}
            phi = phi if unrolled else {n: p.detach().requires_grad_() for n, p in phi.items()}
        self.phi = {n: p.detach().clone() for n, p in phi.items()}
        outer = self.cross_entropy(phi, seen, batches[1]) + self.penalty(seen)
        found = list(torch.autograd.grad(outer, list(theta.values()), retain_graph=True))
        if self.s.variant != "no-implicit" and not unrolled:
            v = torch.cat([g.flatten() for g in torch.autograd.grad(outer, list(phi.values()), retain_graph=True)])
            implicit = torch.autograd.grad(self.slope_along(phi, z, batches[0], v), list(theta.values()))
            found = [direct - term for direct, term in zip(found, implicit, strict=True)]
        return dict(zip(theta, found, strict=True))

    def slope_along(self, phi: Tensors, z: torch.Tensor, batch: Any, v: torch.Tensor) -> torch.Tensor:
        """⟨∂L_in/∂φ, (H + δ)⁻¹ v⟩, whose gradient in θ is the mixed term."""

        def loss(flat: torch.Tensor) -> torch.Tensor:
            return self.cross_entropy({"weight": flat[:9].view(3, 3), "bias": flat[9:]}, z, batch)

        flat = torch.cat([p.detach().flatten() for p in phi.values()]).requires_grad_()
        hessian: Any = torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-untyped-call]
        solution = torch.linalg.solve(hessian + self.s.damping * torch.eye(12).double(), v)
        return torch.autograd.grad(loss(flat), flat, create_graph=True)[0] @ solution.detach()


@pytest.mark.parametrize("variant", ["full", "no-penalty", "no-implicit", "single-level"])
@pytest.mark.parametrize("hypergradient", ["ift", "unrolled"])
def test_four_outer_steps_of_every_variant_are_the_equations_written_out(variant: Any, hypergradient: Any) -> None:
    settings = replace(SETTINGS, variant=variant, hypergradient=hypergradient)
    literal = Literal(settings)
    for index in range(STEPS):
        literal.step(index)
    found = done(settings).network
    for name, value in found.backbone.named_parameters():
        torch.testing.assert_close(value.detach(), literal.theta[name], rtol=1e-8, atol=1e-10)
    for name, value in found.head.named_parameters():
        torch.testing.assert_close(value.detach(), literal.phi[name], rtol=1e-8, atol=1e-10)
    for name, value in found.backbone.named_buffers():
        torch.testing.assert_close(value, literal.buffers[name])


def weights(found: ABRLTask) -> list[torch.Tensor]:
    return [value.clone() for value in found.network.state_dict().values()]


def same(first: ABRLTask, second: ABRLTask) -> bool:
    return all(map(torch.equal, weights(first), weights(second)))


def test_no_penalty_is_a_weight_of_zero_to_the_bit() -> None:
    assert same(done(replace(SETTINGS, variant="no-penalty")), done(replace(SETTINGS, penalty=0.0)))
    assert not same(done(SETTINGS), done(replace(SETTINGS, penalty=0.0)))


def test_no_implicit_leaves_out_the_implicit_term_and_nothing_else() -> None:
    full, without = done(SETTINGS, 1), done(replace(SETTINGS, variant="no-implicit"), 1)
    heads = [list(found.network.head.parameters()) for found in (full, without)]
    assert all(map(torch.equal, *heads))
    assert all(map(torch.equal, full.network.backbone.buffers(), without.network.backbone.buffers()))
    missing = [a.grad - b.grad for a, b in zip(full.theta.tensors, without.theta.tensors, strict=True)]
    begun = task(SETTINGS)
    training, validation = (Draws(seed, 1).load(0) for seed in (1, 2))
    literal = Literal(SETTINGS)
    literal.phi = {n: p.detach() for n, p in full.network.head.named_parameters()}
    theta = {n: p.requires_grad_() for n, p in literal.theta.items()}
    z, seen = (literal.features(theta, batch, moves=False) for batch in (training, validation))
    phi = {n: p.clone().requires_grad_() for n, p in literal.phi.items()}
    v = torch.autograd.grad(literal.cross_entropy(phi, seen.detach(), validation), list(phi.values()))
    slope = literal.slope_along(phi, z, training, torch.cat([g.flatten() for g in v]))
    for found, term in zip(missing, torch.autograd.grad(slope, list(theta.values())), strict=True):
        torch.testing.assert_close(found, -term, rtol=1e-7, atol=1e-10)
    assert not any(map(torch.equal, begun.theta.tensors, full.theta.tensors))


def test_single_level_alone_gives_the_head_to_the_encoders_optimiser() -> None:
    counts = {
        variant: sum(len(group["params"]) for group in task(replace(SETTINGS, variant=variant)).optimizer.param_groups)
        for variant in ("full", "no-penalty", "no-implicit", "single-level")
    }
    assert counts == {"full": 6, "no-penalty": 6, "no-implicit": 6, "single-level": 8}


@pytest.mark.parametrize("variant", ["full", "no-implicit", "single-level"])
@pytest.mark.parametrize("hypergradient", ["ift", "unrolled", "neumann", "proximal", "converged"])
def test_statistics_move_once_per_outer_step_and_by_the_validation_batch(variant: Any, hypergradient: Any) -> None:
    found = done(replace(SETTINGS, variant=variant, hypergradient=hypergradient, compare_every=1), 1)
    with torch.no_grad():
        expected = 0.1 * network().backbone[0](Draws(2, 1).load(0).views[0]).mean(0)
    norm = found.network.backbone[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 1
    torch.testing.assert_close(norm.running_mean, expected)


@pytest.mark.parametrize("hypergradient", ["ift", "neumann", "proximal", "converged"])
def test_comparing_with_the_unrolled_gradient_changes_no_bit(hypergradient: Any) -> None:
    settings = replace(SETTINGS, hypergradient=hypergradient)
    assert same(done(settings), done(replace(settings, compare_every=1)))


def test_the_comparison_sees_estimators_agree_where_they_must_and_differ_where_they_do() -> None:
    def compared(**settings: Any) -> tuple[float, float]:
        values = task(replace(SETTINGS, compare_every=1, **settings)).step(0)
        return float(values["cosine_to_unrolled"]), float(values["ratio_to_unrolled"])

    small: dict[str, Any] = {"inner_rate": 1e-5}
    assert compared(hypergradient="neumann", **small) == pytest.approx((1, 1), abs=1e-4)
    assert compared(hypergradient="proximal", **small) == pytest.approx((1, 1), abs=1e-4)
    cosine, ratio = compared(hypergradient="ift", **small)
    assert cosine > 0.5
    assert ratio > 1e3  # K steps of so small a rate are far from a minimum
    assert "cosine_to_unrolled" not in task(replace(SETTINGS, compare_every=1, hypergradient="unrolled")).step(0)


def test_the_log_has_the_gradient_that_the_head_is_left_with_and_the_products_taken() -> None:
    found = task(SETTINGS)
    values = found.step(0)
    literal = Literal(SETTINGS)
    z = literal.features(literal.theta, Draws(1, 1).load(0), moves=False)
    phi = {n: p.detach().requires_grad_() for n, p in found.network.head.named_parameters()}
    slopes = torch.autograd.grad(literal.cross_entropy(phi, z, Draws(1, 1).load(0)), list(phi.values()))
    assert float(values["inner_gradient"]) == pytest.approx(float(torch.cat([s.flatten() for s in slopes]).norm()))
    assert values["head_products"] == SETTINGS.solver_iterations + 1
    assert float(values["solver_residual"]) < 1e-10


def test_the_best_epoch_is_kept_the_first_of_equals_or_the_last_where_that_is_asked_for() -> None:
    after_two = weights(done(SETTINGS, 2))
    for scores, keep, wanted in (
        ((20.0, 10.0), "best", after_two),
        ((10.0, 10.0), "best", after_two),
        ((20.0, 10.0), "last", weights(done(SETTINGS))),
        ((10.0, 20.0), "best", weights(done(SETTINGS))),
    ):
        found = done(replace(SETTINGS, keep=keep), scores=scores)  # type: ignore[arg-type]
        assert all(map(torch.equal, found.best.values(), wanted)), (scores, keep)


def test_a_running_covariance_and_another_normalisation_are_other_penalties() -> None:
    assert not same(done(SETTINGS), done(replace(SETTINGS, running_covariance=0.5)))
    population = replace(SETTINGS, normalisation="population")
    literal = Literal(population)
    literal.step(0)
    for name, value in done(population, 1).network.backbone.named_parameters():
        torch.testing.assert_close(value.detach(), literal.theta[name], rtol=1e-8, atol=1e-10)


def test_a_state_taken_anywhere_goes_on_to_the_same_bits() -> None:
    settings = replace(SETTINGS, running_covariance=0.9)
    whole, first, second = task(settings), task(settings), task(settings, (20.0,))
    for index in range(STEPS):
        whole.step(index)
        if index < 3:
            first.step(index)
    second.restore(first.state())
    second.step(3)
    assert same(whole, second)
    assert all(map(torch.equal, whole.best.values(), second.best.values()))
    assert torch.equal(whole.covariance.matrix, second.covariance.matrix)
