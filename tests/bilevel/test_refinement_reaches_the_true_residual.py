"""Rough products with true corrections: the true system's answer, whatever the rough ones are, and what it took."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import (
    HessianOperator,
    ParameterVector,
    Recycler,
    Solution,
    TwoPrecisions,
    conjugate_gradient,
    minimal_residual,
    neumann,
    refined,
)
from bissl_fast.errors import UserError
from bissl_fast.methods.bilevel import BilevelSettings
from tests.bilevel.matrices import Dense, symmetric, vectors
from tests.bilevel.networks import batches, contrastive, dense_hessian, tiny_network

DEFINITE = symmetric(torch.linspace(0.5, 1.5, 40))
INDEFINITE = symmetric(torch.cat([torch.tensor([-3.0, -1.0, 20.0]), torch.linspace(0.6, 1.4, 37)]))
B = vectors(1, 40)[0]
SOLVERS: dict[str, Callable[..., Solution]] = {
    "cg": conjugate_gradient,
    "layerwise": partial(conjugate_gradient, layerwise=True),
    "minimal residual": minimal_residual,
    "neumann": neumann,
}


def rounded(matrix: torch.Tensor, share: float = 0.03) -> Dense:
    """A symmetric matrix off by a share of this one's norm, as products in bfloat16 are."""
    noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(7), dtype=matrix.dtype)
    noise = (noise + noise.T) / 2
    noise *= share * torch.linalg.matrix_norm(matrix, 2) / torch.linalg.matrix_norm(noise, 2)
    return Dense(matrix + noise, [15, 25])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_reaches_the_residual_of_the_true_matrix_with_products_that_are_off(name: str) -> None:
    rough, true = rounded(DEFINITE), Dense(DEFINITE)
    alone = SOLVERS[name](rough, B, iterations=30)
    found = refined(true, B, solve=partial(SOLVERS[name], rough, iterations=5), tolerance=1e-8, corrections=20)
    exact = torch.linalg.solve(DEFINITE, B)
    assert relative(alone.x, exact) > 0.005, "the rough system has another answer"
    assert relative(found.x, exact) < 1e-7
    assert float((B - DEFINITE @ found.x).norm()) <= 1.001e-8 * float(B.norm())
    assert found.troubles() == ()


@pytest.mark.parametrize("name", ["minimal residual", "cg", "layerwise"])
def test_an_indefinite_system_is_refined_by_solvers_that_hold_there_and_by_those_that_do_not(name: str) -> None:
    found = refined(
        Dense(INDEFINITE), B, solve=partial(SOLVERS[name], rounded(INDEFINITE, 0.01), iterations=6), corrections=40
    )
    assert relative(found.x, torch.linalg.solve(INDEFINITE, B)) < 1e-3
    assert float(found.relative_residuals[-1]) <= 1e-4
    assert (found.residual_norms.diff() <= 1e-12).all()


def test_the_residual_that_is_told_is_the_true_one_and_products_of_both_kinds_are_counted() -> None:
    rough, true = rounded(INDEFINITE), Dense(INDEFINITE)
    for corrections in range(6):
        rough.products = true.products = 0
        found = refined(true, B, solve=partial(minimal_residual, rough), tolerance=1e-30, corrections=corrections)
        assert (found.products, found.rough_products) == (true.products, rough.products)
        assert (found.products, found.rough_products) == (corrections, 5 * corrections)
        assert float(found.residual_norms[-1]) == pytest.approx(float((B - INDEFINITE @ found.x).norm()), rel=1e-9)
        assert found.residual_norms.shape == (corrections + 1,)
        assert "true residual asked for was not reached" in found.troubles()[-1]


def test_it_stops_once_the_residual_is_reached_and_says_it_to_the_end() -> None:
    true = Dense(DEFINITE)
    found = refined(true, B, solve=partial(minimal_residual, rounded(DEFINITE)), tolerance=0.01, corrections=9)
    assert found.products == true.products < 4
    assert found.residual_norms.shape == (10,)
    assert torch.equal(found.residual_norms[found.products :], found.residual_norms[-1:].expand(10 - found.products))


def test_a_rough_solve_that_diverges_is_named_and_never_raises_the_residual() -> None:
    stranger = Dense(symmetric(torch.linspace(-30, 30, 40), seed=9))
    found = refined(Dense(INDEFINITE), B, solve=partial(neumann, stranger, iterations=6), corrections=6)
    assert (found.residual_norms.diff() <= 0).all()
    assert float((B - INDEFINITE @ found.x).norm()) == pytest.approx(float(found.residual_norms[-1]), rel=1e-9)
    assert float(found.residual_norms[-1]) <= float(B.norm())
    named = [sentence.split(":")[0] for sentence in found.troubles()]
    assert named[0] == "a rough solve's answer would have raised the true residual"
    assert "true residual asked for was not reached" in found.troubles()[1]


def test_a_correction_that_is_not_finite_is_left_out() -> None:
    poisoned = Dense(DEFINITE * float("nan"))
    found = refined(Dense(DEFINITE), B, solve=partial(minimal_residual, poisoned), corrections=3)
    assert torch.isfinite(found.x).all()
    assert torch.equal(found.residual_norms, found.residual_norms[:1].expand(4))
    assert any("true residual asked for" in sentence for sentence in found.troubles())
    assert not any("not finite" in sentence for sentence in found.troubles()), "the solution is"


def test_zero_costs_nothing_poison_is_named_and_nonsense_is_refused() -> None:
    true, rough = Dense(DEFINITE), rounded(DEFINITE)
    solve = partial(minimal_residual, rough)
    nothing = refined(true, 0 * B, solve=solve)
    assert not nothing.x.any()
    assert not nothing.relative_residuals.any()
    assert nothing.products == nothing.rough_products == true.products == 0
    poison = torch.where(torch.arange(40) == 3, float("nan"), B)
    found = refined(true, poison, solve=solve)
    assert found.troubles() == ("the residual or the solution is not finite",)
    for wrong in ({"tolerance": 0.0}, {"tolerance": float("nan")}, {"corrections": -1}):
        with pytest.raises(ValueError, match="a positive tolerance and 0 or more corrections"):
            refined(true, B, solve=solve, **wrong)


@pytest.mark.parametrize("size", [2.0**-100, 2.0**-60, 2.0**60, 2.0**100])
def test_a_right_hand_side_of_any_size_gives_the_same_bits(size: float) -> None:
    matrix, b = DEFINITE.float(), B.float()
    rough = rounded(matrix)
    expected, found = (
        refined(Dense(matrix), v, solve=partial(minimal_residual, rough), tolerance=1e-5) for v in (b, size * b)
    )
    assert torch.equal(found.x, size * expected.x)
    assert torch.equal(found.relative_residuals, expected.relative_residuals)
    assert found.troubles() == expected.troubles() == ()


def test_a_start_counts_its_product_and_a_recycler_serves_the_next_right_hand_side() -> None:
    exact, true = torch.linalg.solve(INDEFINITE, B), Dense(INDEFINITE)
    solve = partial(minimal_residual, rounded(INDEFINITE))
    begun = refined(true, B, exact * 1.01, solve=solve, tolerance=1e-6, corrections=12)
    assert begun.products == true.products
    assert relative(begun.x, exact) < 1e-5
    assert float(begun.relative_residuals[0]) == pytest.approx(0.01, rel=0.01) or begun.relative_residuals[0] < 0.01
    known = Recycler(Dense(INDEFINITE))
    first = refined(known, B, solve=solve, tolerance=1e-8, corrections=20)
    again = refined(known, 3 * B, solve=solve, tolerance=1e-7)
    assert first.products > 0
    assert again.products == again.rough_products == 0
    assert relative(again.x, 3 * exact) < 1e-6


@pytest.fixture(scope="module")
def hessian() -> torch.Tensor:
    """That of two batches in float64: eigenvalues from -243 to 141."""
    return dense_hessian(tiny_network(), batches(2, (24, 1, 6, 6)))


@functools.cache
def products(dtype: Any, refine_to: float | None) -> Any:
    """Those of the same network and batches in float32 and, where they are to be refined, in a dtype."""
    stored = batches(2, (24, 1, 6, 6), torch.float32)
    settings = BilevelSettings(mode="reverse", products_dtype=dtype, refine_to=refine_to)
    return settings.build(contrastive, ParameterVector(tiny_network().float(), "backbone."), stored)


def refined_on_the_network(
    solver: Any, dtype: Any, recycle: bool, damping: float, iterations: int
) -> tuple[list[Solution], torch.Tensor]:
    """Solutions with float32 parameters and vectors, and the right-hand sides."""
    settings = BilevelSettings(
        solver=solver, products_dtype=dtype, recycle=recycle, refine_to=1e-5, corrections=30, recycled_vectors=60
    )
    solve, right = settings.solver_of(products(dtype, 1e-5), 1e-3, damping, iterations), vectors(2, 91)
    return [solve(v.float()) for v in right], right


def check(found: list[Solution], right: torch.Tensor, system: torch.Tensor) -> None:
    for solution, v in zip(found, right, strict=True):
        assert relative(solution.x.double(), torch.linalg.solve(system, v)) < 1e-3
        assert float((v - system @ solution.x.double()).norm() / v.norm()) < 2e-5
        assert float(solution.relative_residuals[-1]) <= 1e-5


@pytest.mark.parametrize("recycle", [False, True], ids=["plain", "recycled"])
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("solver", ["layerwise-cg", "cg", "minimal-residual", "neumann", "nystrom"])
def test_an_implicit_gradient_is_that_of_float64_whatever_the_products_dtype(
    hessian: torch.Tensor, solver: Any, dtype: Any, recycle: bool
) -> None:
    found, right = refined_on_the_network(solver, dtype, recycle, 300.0, 4)
    check(found, right, torch.eye(91) + hessian / 300.001)


@pytest.mark.parametrize(
    ("solver", "recycle"),
    [
        ("minimal-residual", False),
        ("cg", True),
        pytest.param("minimal-residual", True, marks=pytest.mark.slow),
        pytest.param("cg", False, marks=pytest.mark.slow),
    ],
)
def test_an_indefinite_implicit_gradient_of_bfloat16_products_is_that_of_float64(
    hessian: torch.Tensor, solver: Any, recycle: bool
) -> None:
    system = torch.eye(91) + hessian / 30.001
    assert (torch.linalg.eigvalsh(system) < 0).sum() == 2
    found, right = refined_on_the_network(solver, "bfloat16", recycle, 30.0, 12)
    check(found, right, system)


def test_without_refinement_bfloat16_products_give_another_answer(hessian: torch.Tensor) -> None:
    settings = BilevelSettings(solver="minimal-residual", products_dtype="bfloat16")
    v = vectors(1, 91)[0]
    x = settings.solver_of(products("bfloat16", None), 1e-3, 300.0, 40)(v.float()).x
    assert relative(x.double(), torch.linalg.solve(torch.eye(91) + hessian / 300.001, v)) > 2e-3


def test_both_precisions_draw_the_same_random_numbers_and_as_many_as_one() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 30), nn.Dropout(0.5), nn.Tanh(), nn.Linear(30, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.layers(x)
            return output

    def loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = module(x).pow(4).mean()
        return value

    torch.manual_seed(0)
    theta = ParameterVector(Dropping())
    stored, v = [torch.randn(5, 6) for _ in range(2)], torch.randn(len(theta))
    torch.manual_seed(1)
    alone = HessianOperator(loss, theta, stored, "reverse")
    left = torch.get_rng_state()
    torch.manual_seed(1)
    both = TwoPrecisions(loss, theta, stored, "reverse")
    assert torch.equal(torch.get_rng_state(), left)
    for _ in range(2):
        assert torch.equal(both.matvec(v), alone.matvec(v))
        assert relative(both.rough.matvec(v), alone.matvec(v)) < 0.05
        state = torch.get_rng_state()
        alone.update(stored)
        torch.set_rng_state(state)
        both.update(stored)


def test_two_precisions_share_one_budget_and_follow_one_update() -> None:
    def loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = module(x).pow(4).mean()
        return value

    torch.manual_seed(0)
    theta = ParameterVector(nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 2)))
    stored, v = [torch.randn(5, 6) for _ in range(4)], torch.randn(len(theta))
    free = TwoPrecisions(loss, theta, stored)
    assert free.exact.retained == free.rough.retained == 4
    tight = TwoPrecisions(loss, theta, stored, memory_budget=8_000_000 + 2 * free.exact.kept_bytes)
    assert 0 < tight.kept_bytes < 2 * free.exact.kept_bytes
    assert tight.exact.retained < 4, "a product's working memory is in its half, too"
    with pytest.raises(ValueError, match="two precisions has half of the budget"):
        TwoPrecisions(loss, theta, stored, memory_budget=8_000_000)
    with pytest.raises(UserError, match=r"half of the budget.*--bilevel.memory-budget"):
        BilevelSettings(products_dtype="bfloat16", refine_to=1e-3, memory_budget=0.008).build(loss, theta, stored)
    before = free.matvec(v)
    theta.assign(theta.values() * 1.1)
    free.update(stored[:2])
    assert torch.equal(free.matvec(v), HessianOperator(loss, theta, stored[:2], "linearized").matvec(v))
    assert torch.equal(free.matmat(v[None])[0], free.matvec(v))
    assert not torch.equal(free.matvec(v), before)
    free.release()
    for operator in (free.exact, free.rough):
        with pytest.raises(RuntimeError, match="has been released"):
            operator.matvec(v)
