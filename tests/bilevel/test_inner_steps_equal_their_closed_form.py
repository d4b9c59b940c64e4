"""Plain gradient steps on ½(θ − c)ᵀA(θ − c), where everything is a matrix (GeSSL's oracles)."""

from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import HessianOperator, ParameterVector, conjugate_gradient, neumann
from bissl_fast.bilevel.hypergradients.inner_steps import descend, difference_products, proximal, pull_back, restored

WIDTH, CLASSES, ALPHA = 5, 3, 0.07


class Quadratic(nn.Module):
    """θ, and its loss ½(θ − c)ᵀA(θ − c) with eigenvalues of A from −1 to 4."""

    def __init__(self, least: float = -1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        turned = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))[0]
        self.A = turned @ torch.linspace(least, 4, WIDTH, dtype=torch.float64).diag() @ turned.T
        self.c = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
        self.W = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
        self.theta = nn.Parameter(torch.randn(WIDTH, generator=generator, dtype=torch.float64))

    def loss(self) -> torch.Tensor:
        away = self.theta - self.c
        return away @ self.A @ away / 2

    def gradient(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        away = (self.theta - self.c).detach()
        return self.loss().detach(), [self.A @ away]


def powers(quadratic: Quadratic, steps: int) -> torch.Tensor:
    """(I − αA)^K."""
    identity = torch.eye(WIDTH, dtype=torch.float64)
    return torch.linalg.matrix_power(identity - ALPHA * quadratic.A, steps)


def product(quadratic: Quadratic, theta: ParameterVector) -> Any:
    hessian = HessianOperator(lambda module, _: module.loss(), theta, [torch.zeros(1)])

    def at_present(vector: torch.Tensor) -> torch.Tensor:
        hessian.update([torch.zeros(1)])
        return hessian.matvec(vector)

    return at_present


@pytest.mark.parametrize("steps", [0, 1, 4, 15])
def test_k_steps_lead_where_the_powers_say(steps: int) -> None:
    quadratic = Quadratic()
    theta = ParameterVector(quadratic)
    start = theta.values()
    path = descend(theta, quadratic.gradient, ALPHA, steps)
    expected = quadratic.c + powers(quadratic, steps) @ (start - quadratic.c)
    torch.testing.assert_close(path.end, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(theta.values(), path.end)
    assert (len(path.points), len(path.losses)) == (steps + 1, steps)
    if steps:
        first = quadratic.A @ (start - quadratic.c)
        torch.testing.assert_close(path.gradient_norm, first.norm())
        torch.testing.assert_close(path.losses[0], (start - quadratic.c) @ first / 2)


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_through_is_the_powers_times_w_transposed_times_the_distance_of_the_distributions(steps: int) -> None:
    """∇KL(π̃ ‖ softmax(Wθ_K)) is Wᵀ(π_K − π̃), and (I − αA)^K pulls it back; by differences to 1e-8."""
    quadratic = Quadratic()
    theta = ParameterVector(quadratic)
    path = descend(theta, quadratic.gradient, ALPHA, steps)
    target = (quadratic.W @ descend(theta, quadratic.gradient, ALPHA, 10).end).softmax(0)
    theta.assign(path.end)
    log_pi = (quadratic.W @ quadratic.theta).log_softmax(0)
    kl = (target * (target.log() - log_pi)).sum()
    (g,) = torch.autograd.grad(kl, quadratic.theta)
    expected = powers(quadratic, steps) @ quadratic.W.T @ (log_pi.exp().detach() - target)
    through = pull_back(theta, path.points, g, product(quadratic, theta), ALPHA)
    differences = pull_back(theta, path.points, g, difference_products(theta, quadratic.gradient), ALPHA)
    torch.testing.assert_close(through, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(differences, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 4])
def test_proximal_is_the_inverse_of_the_identity_and_alpha_k_a(steps: int) -> None:
    quadratic = Quadratic()
    theta = ParameterVector(quadratic)
    hessian = HessianOperator(lambda module, _: module.loss(), theta, [torch.zeros(1)])
    g = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    system = torch.eye(WIDTH, dtype=torch.float64) + ALPHA * steps * quadratic.A
    expected = torch.linalg.solve(system, g)
    by_cg = proximal(hessian, g, ALPHA, steps, conjugate_gradient, WIDTH)
    torch.testing.assert_close(by_cg.x, expected, rtol=1e-9, atol=1e-9)
    assert by_cg.products == WIDTH
    if steps == 1:  # αK‖A‖ < 1
        torch.testing.assert_close(proximal(hessian, g, ALPHA, steps, neumann, 40).x, expected, rtol=1e-9, atol=1e-9)
    few = proximal(hessian, g, ALPHA, steps, neumann, 2).x
    torch.testing.assert_close(few, g - ALPHA * steps * quadratic.A @ g)  # Σ_{i<2} (−αKA)^i g


def test_differences_along_nothing_are_nothing_and_along_any_length_the_same() -> None:
    quadratic = Quadratic()
    theta = ParameterVector(quadratic)
    before = theta.values()
    by_differences = difference_products(theta, quadratic.gradient)
    v = torch.linspace(1, 2, WIDTH, dtype=torch.float64)
    assert torch.equal(by_differences(torch.zeros_like(v)), torch.zeros_like(v))
    for scale in (1e-200, 1.0, 1e200):
        torch.testing.assert_close(by_differences(scale * v) / scale, quadratic.A @ v, rtol=1e-9, atol=1e-9)
    assert torch.equal(theta.values(), before)


def test_parameters_are_put_back_to_the_bit_also_after_an_error() -> None:
    theta = ParameterVector(Quadratic())
    before = theta.values()

    def fails() -> None:
        with restored(theta):
            theta.assign(before * 3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.equal(theta.values(), before)
