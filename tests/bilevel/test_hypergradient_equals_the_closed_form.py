"""On quadratic levels the implicit gradient is known exactly."""

from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import (
    HessianOperator,
    ParameterVector,
    conjugate_gradient,
    identity,
    implicit_gradient,
    neumann,
)

WEIGHT = 0.7  # λ


class Quadratic(nn.Module):
    """½ θᵀHθ − bᵀθ over two tensors of together 12 numbers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
        self.H = root @ root.T / 12
        self.b = torch.randn(12, generator=generator, dtype=torch.float64)
        self.matrix = nn.Parameter(torch.randn(2, 4, generator=generator, dtype=torch.float64))
        self.vector = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        theta = torch.cat([self.matrix.reshape(-1), self.vector])
        return 0.5 * theta @ self.H @ theta - self.b @ theta


def lower_solution(lower: Quadratic, theta_d: torch.Tensor) -> torch.Tensor:
    """argmin over θ of the lower loss + λ/2 ‖θ − θ_D‖²."""
    eye = torch.eye(12, dtype=torch.float64)
    return torch.linalg.solve(lower.H + WEIGHT * eye, lower.b + WEIGHT * theta_d)


@pytest.mark.parametrize("seed", [0, 1])
def test_hypergradient_equals_derivative_of_the_lower_solution(seed: int) -> None:
    lower = Quadratic(seed)
    target = torch.linspace(-1, 1, 12, dtype=torch.float64)
    theta_d = torch.linspace(0, 2, 12, dtype=torch.float64).requires_grad_()
    solution = lower_solution(lower, theta_d)
    (expected,) = torch.autograd.grad(0.5 * (solution - target).square().sum(), theta_d)

    theta_p = ParameterVector(lower)
    theta_p.assign(solution.detach())
    hessian = HessianOperator(lambda module, batch: module(), theta_p, [None])
    v = theta_p.values() - target
    found = implicit_gradient(hessian, v, WEIGHT, solver=conjugate_gradient, iterations=12)

    torch.testing.assert_close(found.x, expected, rtol=1e-8, atol=1e-8)
    assert found.residual_norms[-1] < 1e-8 * found.residual_norms[0]


def test_neumann_converges_to_the_same_hypergradient_and_identity_ignores_curvature() -> None:
    lower = Quadratic(2)
    hessian = HessianOperator(lambda module, batch: module(), ParameterVector(lower), [None])
    v = torch.ones(12, dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(12, dtype=torch.float64) + lower.H / WEIGHT, v)
    found = implicit_gradient(hessian, v, WEIGHT, solver=neumann, iterations=400, step=0.1)
    torch.testing.assert_close(found.x, exact, rtol=1e-8, atol=1e-8)
    assert torch.equal(implicit_gradient(hessian, v, WEIGHT, solver=identity).x, v)


def test_damping_enters_the_operator_beside_the_weight() -> None:
    lower = Quadratic(3)
    hessian = HessianOperator(lambda module, batch: module(), ParameterVector(lower), [None])
    v = torch.ones(12, dtype=torch.float64)
    expected = torch.linalg.solve(torch.eye(12, dtype=torch.float64) + lower.H / (WEIGHT + 10), v)
    found = implicit_gradient(hessian, v, WEIGHT, damping=10.0, iterations=12)
    torch.testing.assert_close(found.x, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("matrix", [lambda v: 2 * v, torch.eye(12)], ids=["a function", "a matrix"])
def test_what_other_libraries_solvers_take_for_an_operator_is_refused(matrix: Any) -> None:
    sentence = r"an operator is expected, with matvec\(vector\).*, found "
    with pytest.raises(ValueError, match=sentence):
        conjugate_gradient(matrix, torch.ones(12))
    with pytest.raises(ValueError, match=sentence):
        implicit_gradient(matrix, torch.ones(12), 1.0)


@pytest.mark.parametrize(("weight", "damping"), [(-1.0, 3.0), (3.0, -1.0), (0.0, 0.0), (float("nan"), 1.0)])
def test_a_weight_or_damping_that_makes_no_sense_is_refused(weight: float, damping: float) -> None:
    hessian = HessianOperator(lambda module, batch: module(), ParameterVector(Quadratic(0)), [None])
    with pytest.raises(ValueError, match=r"not negative and not both 0, found weight \S+, damping"):
        implicit_gradient(hessian, torch.ones(12, dtype=torch.float64), weight, damping)
