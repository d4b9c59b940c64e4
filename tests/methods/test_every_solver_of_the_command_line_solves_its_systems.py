"""`--bilevel.solver`, `--bilevel.mode` and `--bilevel.recycle` in every combination, on systems of known answer."""

from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import CapturedSolver, CompositeLoss, HessianOperator, ParameterVector, ShiftedOperator
from bissl_fast.bilevel.products.hessian import Mode
from bissl_fast.methods.bilevel import BilevelSettings, SolverName
from tests.bilevel.matrices import Dense, symmetric
from tests.bilevel.matrices import vectors as vectors_of
from tests.bilevel.recorded import RecordedGraph

WEIGHT, DAMPING = 1e-3, 2.0
TOLERANCE = {"layerwise-cg": 0.1, "cg": 1e-7, "minimal-residual": 1e-7, "neumann": 1e-7}
"""Layer-wise conjugate gradients need not converge at all; what is recycled is trusted to half of float64's digits."""

LENGTH = 39
LOSS = CompositeLoss(lambda module, x: module(x), lambda outputs: outputs.pow(4).mean() - outputs.square().mean())


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operator(mode: Any = "reverse") -> HessianOperator:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return BilevelSettings(mode=mode).build(LOSS, ParameterVector(network), [random(6, 5, seed=k) for k in (1, 2)])


def dense(hessian: HessianOperator) -> torch.Tensor:
    return hessian.matmat(torch.eye(LENGTH, dtype=torch.float64))


def vectors() -> list[torch.Tensor]:
    return [random(LENGTH, seed=k) for k in (4, 5, 6)]


@pytest.fixture(scope="module")
def system() -> tuple[HessianOperator, torch.Tensor]:
    """An indefinite Hessian, and ``I + H / (λ + λ_damp)`` as a matrix, positive definite and below 2."""
    hessian = operator()
    matrix = torch.eye(LENGTH, dtype=torch.float64) + dense(hessian) / (WEIGHT + DAMPING)
    values = torch.linalg.eigvalsh(matrix)
    assert 0.1 < values[0] < 0.99
    assert 1.01 < values[-1] < 1.9
    return hessian, matrix


@pytest.mark.parametrize("recycle", [False, True], ids=["plain", "recycled"])
@pytest.mark.parametrize("name", get_args(SolverName))
def test_with_products_enough_each_right_hand_side_of_a_phase_is_solved(
    system: tuple[HessianOperator, torch.Tensor], name: Any, recycle: bool
) -> None:
    hessian, matrix = system
    solve = BilevelSettings(solver=name, recycle=recycle).solver_of(
        hessian, WEIGHT, DAMPING, LENGTH if name != "neumann" else 300
    )
    for v in vectors():
        x = solve(v).x
        if name == "identity":
            assert torch.equal(x, v)
        elif name == "nystrom":  # negative eigenvalues count as zero
            values, basis = torch.linalg.eigh(matrix)
            torch.testing.assert_close(x, basis @ ((basis.T @ v) / values.clamp(min=1)), rtol=1e-8, atol=1e-9)
        else:
            assert float((matrix @ x - v).norm() / v.norm()) < TOLERANCE[name]


@pytest.mark.parametrize("name", ["cg", "minimal-residual", "layerwise-cg"])
def test_recycling_leaves_no_more_of_later_right_hand_sides_than_starting_from_nothing(
    system: tuple[HessianOperator, torch.Tensor], name: Any
) -> None:
    hessian, matrix = system
    left = []
    for recycle in (False, True):
        solve = BilevelSettings(solver=name, recycle=recycle).solver_of(hessian, WEIGHT, DAMPING, 3)
        left.append([float((matrix @ solve(v).x - v).norm()) for v in vectors()])
    assert left[1][0] == pytest.approx(left[0][0])
    assert left[1][2] < left[0][2]


def test_a_longer_first_solve_serves_all_later_ones_with_a_product_each() -> None:
    matrix = symmetric(torch.cat([torch.tensor([-9.0, -6.0, 30.0, 200.0]), torch.linspace(-0.5, 0.5, 76)]))
    common, *own = vectors_of(9, 80, seed=3)
    right = [0.9 * common + 0.436 * part for part in own]
    worst = []
    for first, iterations in ((7, 1), (None, 2)):
        hessian = Dense(matrix)
        settings = BilevelSettings(solver="minimal-residual", recycle=True, first_iterations=first)
        solve = settings.solver_of(hessian, WEIGHT, DAMPING, iterations)  # type: ignore[arg-type]
        system, found = torch.eye(80, dtype=torch.float64) + matrix / (WEIGHT + DAMPING), [solve(v) for v in right]
        assert [x.products for x in found] == [first or iterations, *[iterations] * 7]
        assert sum(x.products for x in found) == hessian.products == settings.most_products(iterations, 8)
        left = [float((v - system @ x.x).norm() / v.norm()) for v, x in zip(right, found, strict=True)]
        assert left == pytest.approx([float(x.relative_residuals[-1]) for x in found], rel=1e-9)
        worst.append(max(left))
        basis = krylov(system, right[0], found[0].products)
        torch.testing.assert_close(
            found[0].x, basis @ torch.linalg.lstsq(system @ basis, right[0][:, None]).solution[:, 0]
        )
    assert worst[0] < 0.5 * worst[1], "with 14 products in place of 16"


def krylov(matrix: torch.Tensor, v: torch.Tensor, size: int) -> torch.Tensor:
    """An orthonormal basis ``(L, size)`` of v, A v, …"""
    found = [v / v.norm()]
    while len(found) < size:
        found.append(matrix @ found[-1])
        found[-1] = found[-1] - torch.stack(found[:-1]).T @ (torch.stack(found[:-1]) @ found[-1])
        found[-1] = found[-1] / found[-1].norm()
    return torch.stack(found).T


@pytest.mark.parametrize("name", ["layerwise-cg", "cg", "minimal-residual", "neumann"])
def test_a_captured_phase_has_the_bits_of_an_eager_one_and_decides_no_number(
    monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.setattr("bissl_fast.methods.bilevel.CapturedSolver", partial(CapturedSolver, graph=RecordedGraph))
    hessian = operator("linearized")
    eager, captured = (BilevelSettings(solver=name, capture=capture) for capture in (False, True))
    expected, found = (
        [solve(v).x for v in vectors()]
        for solve in (settings.solver_of(hessian, WEIGHT, DAMPING, 3) for settings in (eager, captured))
    )
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert captured.deciding() == eager.deciding()


@pytest.mark.parametrize("mode", get_args(Mode))
def test_every_mode_builds_an_operator_of_the_settings(mode: Any) -> None:
    exact, found = dense(operator()), dense(operator(mode))
    error = float((found - exact).norm() / exact.norm())
    if mode == "gauss_newton":  # another matrix
        assert error > 0.1
    else:
        assert error < (1e-5 if mode == "finite_difference" else 1e-12)
    v = vectors()[0]
    torch.testing.assert_close(ShiftedOperator(operator(mode), 0.1).matvec(v), v + 0.1 * found @ v)
