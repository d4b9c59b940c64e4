"""Right-hand sides and operators of any size, singular ones, zeros and poison: the same answer, or its name."""

from functools import partial
from typing import Any

import pytest
import torch

from bissl_fast import ops
from bissl_fast.bilevel import (
    Nystrom,
    Recycler,
    ShiftedOperator,
    conjugate_gradient,
    estimate_diagonal,
    identity,
    lanczos,
    minimal_residual,
    neumann,
)
from bissl_fast.methods.bilevel import BilevelSettings
from tests.bilevel.matrices import Dense, symmetric, vectors

GOOD = symmetric(torch.linspace(0.8, 1.3, 12)).float()
B = vectors(1, 12)[0].float()
ITERATIVE = [conjugate_gradient, minimal_residual, neumann]


@pytest.mark.parametrize("solve", ITERATIVE)
@pytest.mark.parametrize("size", [2.0**-100, 2.0**-60, 2.0**60, 2.0**100])
def test_a_right_hand_side_of_any_size_gives_the_same_bits(solve: Any, size: float) -> None:
    expected = solve(Dense(GOOD), B, iterations=6)
    found = solve(Dense(GOOD), size * B, iterations=6)
    assert torch.equal(found.x, size * expected.x)
    assert torch.equal(found.relative_residuals, expected.relative_residuals)
    assert found.troubles() == expected.troubles() == ()
    assert float(expected.relative_residuals[-1]) < 0.01


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("solve", [*ITERATIVE, partial(conjugate_gradient, layerwise=True), identity])
def test_a_solution_has_no_derivative_since_products_have_none(solve: Any, backend: Any) -> None:
    with ops.backend(backend):
        expected = solve(ShiftedOperator(Dense(GOOD), 0.1), B)
        found = solve(ShiftedOperator(Dense(GOOD), 0.1), B.clone().requires_grad_() * 1)
    assert torch.equal(found.x, expected.x)
    assert not found.x.requires_grad
    assert not found.relative_residuals.requires_grad


@pytest.mark.parametrize("solve", ITERATIVE)
def test_zero_is_solved_by_zero_and_a_start_that_solves_stays(solve: Any) -> None:
    nothing = solve(Dense(GOOD), 0 * B, iterations=4)
    assert not nothing.x.any()
    assert not nothing.relative_residuals.any()
    assert nothing.troubles() == ()
    exact = torch.linalg.solve(GOOD.double(), B.double())
    found = solve(Dense(GOOD.double()), B.double(), exact, iterations=4)
    torch.testing.assert_close(found.x, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_null_space_of_a_singular_operator_is_left_alone_and_named(dtype: torch.dtype) -> None:
    singular = symmetric(torch.cat([torch.zeros(3), torch.linspace(1, 5, 9)])).to(dtype)
    b = vectors(1, 12)[0].to(dtype)
    found = minimal_residual(Dense(singular), b, iterations=20)
    left = b - singular @ (torch.linalg.pinv(singular.double(), rtol=1e-5).to(dtype) @ b)  # outside the range
    assert float(found.residual_norms[-1]) == pytest.approx(float(left.norm()), rel=1e-3)
    assert float((b - singular @ found.x).norm()) == pytest.approx(float(left.norm()), rel=1e-3)
    assert [s.split(":")[0] for s in found.troubles()] == ["breakdown"]


def test_half_precision_vectors_are_solved_as_well_as_they_can_be() -> None:
    for dtype, bound in ((torch.float16, 0.01), (torch.bfloat16, 0.1)):
        found = minimal_residual(Dense(GOOD.to(dtype)), B.to(dtype), iterations=8)
        assert float((B - GOOD @ found.x.float()).norm() / B.norm()) < bound


def test_poison_is_named_by_solvers_that_measure_nothing() -> None:
    poison = torch.where(torch.arange(12) == 3, float("nan"), B)
    sketch = Nystrom(Dense(GOOD), 3, 1.0, B)
    for solution in (identity(Dense(GOOD), poison), sketch(Dense(GOOD), poison)):
        assert solution.troubles() == ("the residual or the solution is not finite",)
    assert identity(Dense(GOOD), B).troubles() == sketch(Dense(GOOD), B).troubles() == ()


def test_what_makes_no_sense_is_refused() -> None:
    poisoned = Dense(GOOD * float("nan"))
    with pytest.raises(ValueError, match="sketch needs finite products"):
        Nystrom(poisoned, 3, 1.0, B)
    with pytest.raises(ValueError, match="scale must be positive"):
        Nystrom(Dense(GOOD), 3, -0.2, B)
    with pytest.raises(ValueError, match="Lanczos' method needs finite products"):
        lanczos(poisoned, B)
    with pytest.raises(ValueError, match="at least 1 iteration, found 0"):
        lanczos(Dense(GOOD), B, 0)
    with pytest.raises(ValueError, match="at least 1 probe"):
        estimate_diagonal(Dense(GOOD), 0, B)
    with pytest.raises(ValueError, match="iterations must be 0 or more"):
        conjugate_gradient(Dense(GOOD), B, iterations=-1)


@pytest.mark.parametrize("size", [2.0**-100, 2.0**100])
def test_lanczos_of_a_tiny_or_huge_operator_goes_on_to_the_end(size: float) -> None:
    expected, found = lanczos(Dense(GOOD), B), lanczos(Dense(size * GOOD), B)
    torch.testing.assert_close(found.values / size, expected.values)


def test_a_phase_tells_divergence_by_the_right_hand_side_and_not_by_what_recycling_left_of_it() -> None:
    hard = symmetric(torch.cat([torch.tensor([-30.0, 40.0]), torch.linspace(-0.5, 0.5, 48)]))
    solve = BilevelSettings(solver="neumann", recycle=True).solver_of(Dense(hard), 1.0, 0.0, iterations=2)  # type: ignore[arg-type]
    b = vectors(1, 50)[0]
    diverged = solve(b)
    assert any(s.startswith("divergence") for s in diverged.troubles())
    again = solve(b)
    system = torch.eye(50, dtype=torch.float64) + hard
    true = float((b - system @ again.x).norm() / b.norm())
    assert float(again.relative_residuals[-1]) == pytest.approx(true, rel=1e-6)
    assert any(s.startswith("divergence") for s in again.troubles()) == (true > 1)
    alone = neumann(Dense(system), Recycler(Dense(system)).start(b)[1], iterations=2)
    assert alone.relative_residuals.shape == (3,)
