"""BiSSL's alternations against Algorithms 1 and 2 written out with dense Hessians and the optimisers' formulas."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bissl_fast.bilevel.solvers.events import troubles
from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.bissl.algorithm import BiSSLTask
from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network
from bissl_fast.ops.nt_xent import nt_xent_loss
from bissl_fast.pretext import Learner, OptimizerSettings, SimCLR

LARS = OptimizerSettings(weight_decay=0.01, trust_coefficient=0.05, scale_learning_rate=False)
SGD = SGDSettings(learning_rate=0.2, weight_decay=0.02, final_share=0.3)
SETTINGS = BiSSLSettings(
    alternations=4,
    lower_steps=3,
    upper_steps=2,
    proximity=0.3,
    damping=0.5,
    downstream_weight=0.25,
    solver_iterations=3,
    stored_batches=2,
    adaptation_every=2,
    adaptation=0.4,
    clip=0.2,
    learning_rate=0.9,
    warmup_steps=4,
    final_share=0.1,
)


class Draws:
    """Batches that are a function of their number; images are vectors of 4."""

    batch_size = 6

    def __init__(self, seed: int, views: int, multilabel: bool = False) -> None:
        self.seed, self.views, self.multilabel = seed, views, multilabel

    def load(self, draw: int) -> Batch:
        generator = torch.Generator().manual_seed(1000 * self.seed + draw)
        views = tuple(torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(self.views))
        low, shape = (-1, (6, 3)) if self.multilabel else (0, (6,))
        labels = torch.randint(low, low + 3, shape, generator=generator)
        return Batch(views, labels, np.arange(6), draw)


def networks() -> tuple[Network, Network]:
    torch.manual_seed(3)
    backbone = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    pretext = Network(backbone, nn.Linear(3, 4, bias=False)).double()
    downstream = Network(copy.deepcopy(backbone), nn.Linear(3, 3)).double()
    return pretext, downstream


def task(
    settings: BiSSLSettings,
    bilevel: BilevelSettings = BilevelSettings(),  # noqa: B008
    multilabel: bool = False,
) -> BiSSLTask:
    pretext, downstream = networks()
    loaders: list[Any] = [
        Draws(1, 2),
        Draws(2, 1, multilabel),
        Draws(3, 2) if settings.stored_from == "fresh" else None,
    ]
    return BiSSLTask(Learner(SimCLR(0.5), pretext), downstream, *loaders, settings, bilevel, LARS, SGD, nullcontext)


Tensors = dict[str, torch.Tensor]


class Literal:
    """Algorithm 1, line by line, on dictionaries of tensors."""

    def __init__(self, settings: BiSSLSettings, multilabel: bool = False) -> None:
        self.s, self.downstream = settings, Draws(2, 1, multilabel)
        pretext, downstream = networks()
        self.modules = {"P": pretext, "D": downstream}
        self.theta = {level: self._part(net, "backbone.") for level, net in self.modules.items()}
        self.phi = {level: self._part(net, "head.") for level, net in self.modules.items()}
        self.momentum: Tensors = {}

    @staticmethod
    def _part(network: Network, prefix: str) -> Tensors:
        return {n: p.detach().clone() for n, p in network.named_parameters() if n.startswith(prefix)}

    def call(self, level: str, values: Tensors, images: torch.Tensor) -> torch.Tensor:
        module = self.modules[level]
        buffers = {n: b.clone() for n, b in module.named_buffers()}
        output: torch.Tensor = torch.func.functional_call(module, values | buffers, (images,))
        return output

    def pretext_loss(self, theta: Tensors, phi: Tensors, views: tuple[torch.Tensor, ...]) -> torch.Tensor:
        first, second = (self.call("P", theta | phi, view) for view in views)
        return nt_xent_loss(first, second, 0.5)

    def downstream_loss(self, theta: Tensors, phi: Tensors, batch: Batch) -> torch.Tensor:
        scores, target = self.call("D", theta | phi, batch.views[0]), batch.target
        if target.ndim == 1:
            return F.cross_entropy(scores, target)
        cost = torch.log1p(torch.exp(torch.where(target == 1, -scores, scores)))  # −log of the label's probability
        return cost[target != 0].sum() / len(target)

    def gradients(self, loss: Any, theta: Tensors, phi: Tensors) -> tuple[Tensors, Tensors]:
        theta = {n: v.detach().requires_grad_() for n, v in theta.items()}
        phi = {n: v.detach().requires_grad_() for n, v in phi.items()}
        values = torch.autograd.grad(loss(theta, phi), [*theta.values(), *phi.values()])
        named = dict(zip([*theta, *phi], values, strict=True))
        return {n: named[n] for n in theta}, {n: named[n] for n in phi}

    def clipped(self, gradients: Tensors) -> Tensors:
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        share = min(1.0, self.s.clip / (norm + 1e-6))
        return {n: g * share for n, g in gradients.items()}

    def run(self) -> None:
        for t in range(1, self.s.alternations + 1):  # line 3
            stored = [self.lower_step(t, n) for n in range(self.s.lower_steps)][: self.s.stored_batches]
            if self.s.adaptation_every and t % self.s.adaptation_every == 0:  # line 8
                for n, p in self.theta["P"].items():  # line 9
                    self.theta["D"][n] = (1 - self.s.adaptation) * self.theta["D"][n] + self.s.adaptation * p
            if self.s.stored_from == "fresh":
                stored = [Draws(3, 2).load((t - 1) * self.s.stored_batches + k).views for k in range(len(stored))]
            for n in range(self.s.upper_steps):
                self.upper_step(t, n, stored)

    def lower_step(self, t: int, n: int) -> tuple[torch.Tensor, ...]:
        step, total = (t - 1) * self.s.lower_steps + n, self.s.alternations * self.s.lower_steps
        views = Draws(1, 2).load(step).views
        g_theta, g_phi = self.gradients(
            lambda theta, phi: self.pretext_loss(theta, phi, views), self.theta["P"], self.phi["P"]
        )
        for name in g_theta:  # line 6
            g_theta[name] = g_theta[name] + self.s.proximity * (self.theta["P"][name] - self.theta["D"][name])
        peak, warmup = self.s.learning_rate, self.s.warmup_steps
        if step < warmup:
            rate = peak * step / warmup
        else:
            cosine = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (total - warmup))
            rate = peak * (cosine + (1 - cosine) * self.s.final_share)
        for name, g in self.clipped(g_theta | g_phi).items():  # line 7
            owner = self.theta["P"] if name in g_theta else self.phi["P"]
            p = owner[name]
            if p.ndim > 1:
                g = g + LARS.weight_decay * p
                g = g * LARS.trust_coefficient * p.norm() / g.norm()
            m = LARS.momentum * self.momentum.get("P" + name, torch.zeros_like(p)) + g
            self.momentum["P" + name] = m
            owner[name] = p - rate * m
        return views

    def upper_step(self, t: int, n: int, stored: list[tuple[torch.Tensor, ...]]) -> None:
        step, total = (t - 1) * self.s.upper_steps + n, self.s.alternations * self.s.upper_steps
        batch = self.downstream.load(step)

        def loss(theta: Tensors, phi: Tensors) -> torch.Tensor:
            return self.downstream_loss(theta, phi, batch)

        v, phi_at_p = self.gradients(loss, self.theta["P"], self.phi["D"])  # lines 11 and 12
        v_ig = self.solve(v, stored)  # line 13
        theta_at_d, phi_at_d = self.gradients(loss, self.theta["D"], self.phi["D"])
        gamma = self.s.downstream_weight
        g = {name: v_ig[name] + gamma * theta_at_d[name] for name in v}  # line 14
        g |= {name: phi_at_p[name] + gamma * phi_at_d[name] for name in phi_at_p}  # line 11
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / total)
        rate = SGD.learning_rate * (cosine + (1 - cosine) * SGD.final_share)
        for name, gradient in self.clipped(g).items():  # line 15
            owner = self.theta["D"] if name in v else self.phi["D"]
            gradient = gradient + SGD.weight_decay * owner[name]
            m = gradient if "D" + name not in self.momentum else SGD.momentum * self.momentum["D" + name] + gradient
            self.momentum["D" + name] = m
            owner[name] = owner[name] - rate * m

    def solve(self, v: Tensors, stored: list[tuple[torch.Tensor, ...]]) -> Tensors:
        names, shapes = list(v), [value.shape for value in v.values()]
        sizes = [value.numel() for value in v.values()]

        def mean_loss(flat: torch.Tensor) -> torch.Tensor:
            pieces = [piece.view(shape) for piece, shape in zip(flat.split(sizes), shapes, strict=True)]
            theta = dict(zip(names, pieces, strict=True))
            return torch.stack([self.pretext_loss(theta, self.phi["P"], views) for views in stored]).mean()

        flat = torch.cat([self.theta["P"][name].reshape(-1) for name in names])
        hessian = torch.autograd.functional.hessian(mean_loss, flat)
        matrix = torch.eye(len(flat), dtype=torch.float64) + hessian / (self.s.proximity + self.s.damping)
        x = layerwise(matrix, torch.cat([value.reshape(-1) for value in v.values()]), sizes, self.s.solver_iterations)
        return {n: piece.view(s) for n, piece, s in zip(names, x.split(sizes), shapes, strict=True)}


def layerwise(matrix: torch.Tensor, b: torch.Tensor, sizes: list[int], iterations: int) -> torch.Tensor:
    xs = [torch.zeros(size, dtype=b.dtype) for size in sizes]
    rs, ds = list(b.split(sizes)), list(b.split(sizes))
    for _ in range(iterations):
        qs = (matrix @ torch.cat(ds)).split(sizes)
        alphas = [(r @ r) / (d @ q) for r, d, q in zip(rs, ds, qs, strict=True)]
        xs = [x + a * d for x, a, d in zip(xs, alphas, ds, strict=True)]
        new = [r - a * q for r, a, q in zip(rs, alphas, qs, strict=True)]
        ds = [n + (n @ n) / (r @ r) * d for n, r, d in zip(new, rs, ds, strict=True)]
        rs = new
    return torch.cat(xs)


@pytest.mark.parametrize(
    "change",
    [{}, {"stored_from": "fresh"}, {"adaptation_every": 0}, {"clip": 1e9}, {"mode": "reverse"}, {"multilabel": True}],
    ids=["as the paper", "fresh batches", "no adaptation", "no clipping", "reverse products", "multi-label"],
)
def test_every_parameter_after_four_alternations_equals_the_literal_algorithm(change: dict[str, Any]) -> None:
    mode, multilabel = change.get("mode", "linearized"), change.get("multilabel", False)
    settings = replace(SETTINGS, **{k: value for k, value in change.items() if k not in ("mode", "multilabel")})
    ours, literal = task(settings, BilevelSettings(mode), multilabel), Literal(settings, multilabel)
    for t in range(settings.alternations):
        ours.step(t)
    literal.run()
    for level, network in (("P", ours.pretext), ("D", ours.downstream)):
        expected = literal.theta[level] | literal.phi[level]
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.data, expected[name], rtol=1e-9, atol=1e-10, msg=f"{level} {name}")


def test_a_parameter_that_no_loss_depends_on_has_a_gradient_of_zero() -> None:
    ours, other = task(SETTINGS), task(SETTINGS)
    for network in (other.pretext, other.downstream):
        network.backbone.register_parameter("idle", nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    idle = BiSSLTask(
        Learner(SimCLR(0.5), other.pretext),
        other.downstream,
        *[Draws(1, 2), Draws(2, 1), None],  # type: ignore[arg-type]
        SETTINGS,
        BilevelSettings("reverse"),
        LARS,
        SGD,
        nullcontext,
    )
    for t in range(2):
        ours.step(t)
        idle.step(t)
    for here, there in ((ours.pretext, idle.pretext), (ours.downstream, idle.downstream)):
        found = dict(there.named_parameters())
        assert found.pop("backbone.idle").tolist() == [0, 0]
        for name, parameter in here.named_parameters():
            torch.testing.assert_close(found[name], parameter, rtol=1e-9, atol=1e-10)


def test_the_upper_phase_leaves_theta_p_phi_p_and_their_batch_norm_buffers_bit_equal() -> None:
    ours = task(SETTINGS)
    stored, _ = ours._lower_level(0)
    before = copy.deepcopy(ours.pretext.state_dict())
    downstream_before = copy.deepcopy(ours.downstream.state_dict())
    ours._upper_level(0, stored)
    for name, value in ours.pretext.state_dict().items():
        assert torch.equal(value, before[name]), name
    changed = {n for n, v in ours.downstream.state_dict().items() if not torch.equal(v, downstream_before[n])}
    assert changed == set(downstream_before), "θ_D, φ_D and θ_D's own statistics move"


def test_the_leak_of_the_released_code_moves_the_statistics_of_theta_p_and_nothing_else() -> None:
    ours = task(replace(SETTINGS, leak_statistics=True))
    stored, _ = ours._lower_level(0)
    before = copy.deepcopy(ours.pretext.state_dict())
    ours._upper_level(0, stored)
    changed = {name for name, value in ours.pretext.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"backbone.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    passes = 1 + 2 * SETTINGS.stored_batches * SETTINGS.solver_iterations  # downstream images, two views per product
    counted = ours.pretext.state_dict()["backbone.1.num_batches_tracked"]
    assert counted - before["backbone.1.num_batches_tracked"] == SETTINGS.upper_steps * passes


@pytest.mark.parametrize("solver", ["layerwise-cg", "cg", "neumann"])
def test_residuals_of_every_iteration_are_logged_relative_to_the_first(solver: Any) -> None:
    values = task(SETTINGS, BilevelSettings(solver=solver)).step(0)
    residuals = values["cg_residuals"]
    assert isinstance(residuals, torch.Tensor)
    assert residuals.shape == (SETTINGS.solver_iterations + 1,)
    assert residuals[0] == 1


def test_the_identity_solver_applies_no_hessian() -> None:
    assert "cg_residuals" not in task(SETTINGS, BilevelSettings(solver="identity")).step(0)


@pytest.mark.parametrize(("damping", "share"), [(0.0, 1.0), (1e3, 0.0)], ids=["indefinite", "positive definite"])
def test_what_befell_the_solver_is_logged_by_name_and_told_in_sentences(damping: float, share: float) -> None:
    settings = replace(SETTINGS, proximity=1e-3, damping=damping, solver_iterations=9)
    values = task(settings, BilevelSettings(solver="cg")).step(0)
    assert float(values["solver_negative_curvature"]) == share
    assert float(values["solver_non_finite"]) == 0
    told = troubles([{name: torch.as_tensor(value).tolist() for name, value in values.items()}, {"step": 2}])
    assert [sentence.split(":")[0] for sentence in told][:1] == (["negative curvature"] if share else [])
    assert all("(50 % of the systems)" in sentence for sentence in told[:1])


@pytest.mark.parametrize("solver", ["layerwise-cg", "minimal-residual", "nystrom"])
def test_a_refined_alternation_solves_its_systems_and_logs_the_products_of_both_kinds(solver: Any) -> None:
    settings = replace(SETTINGS, damping=20.0)
    values = task(settings, BilevelSettings(solver=solver, refine_to=1e-6, corrections=40)).step(0)
    residuals = values["cg_residuals"]
    assert isinstance(residuals, torch.Tensor)
    assert residuals.shape == (41,)
    assert float(residuals[-1]) <= 1e-6
    assert 0 < float(values["products"]) < 40
    assert float(values["products_rough"]) == (0 if solver == "nystrom" else 3 * float(values["products"]))
    assert float(values["solver_unrefined"]) == 0
    unrefined = BilevelSettings(solver=solver)
    assert "products" not in task(SETTINGS, unrefined).step(0)
    assert not {"refine_to", "first_iterations"} & {*unrefined.deciding()}, "stages of before keep their keys"


def test_systems_of_unlike_products_are_logged_each_to_its_end() -> None:
    bilevel = BilevelSettings(solver="minimal-residual", recycle=True, first_iterations=5)
    residuals = task(replace(SETTINGS, solver_iterations=1), bilevel).step(0)["cg_residuals"]
    assert isinstance(residuals, torch.Tensor)
    assert residuals.shape == (6,)
    assert (residuals.diff() <= 0).all()
    assert 0 < residuals[-1] < residuals[1] < 1
