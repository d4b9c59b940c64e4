"""The minimum of a strictly convex function by Newton's method, with conjugate gradients in place of a matrix."""

import math
from typing import Protocol

import torch

from bissl_fast.bilevel.operators import Operator
from bissl_fast.bilevel.solvers import Solution, conjugate_gradient
from bissl_fast.ops.krylov import dot, norm

MOST_STEPS = 50
FIRST_ITERATIONS, MOST_ITERATIONS = 16, 1024
ROUGHLY = 0.1  # relative residual of the first Newton steps, and where they begin to square the error
PATIENCE = 3
SUFFICIENT = 1e-4  # share of the decrease that the slope promises (Armijo)
HALVINGS = 30


class Smooth(Protocol):
    """A loss with a ridge: value, gradient and Hessian at φ."""

    ridge: float

    def value(self, phi: torch.Tensor) -> torch.Tensor: ...

    def gradient(self, phi: torch.Tensor) -> torch.Tensor: ...

    def at(self, phi: torch.Tensor) -> Operator: ...


def tolerance(like: torch.Tensor) -> float:
    """What counts as solved in a dtype: 6e-6 in float32, 2e-12 in float64."""
    eps: float = torch.finfo(like.dtype).eps
    return math.sqrt(eps * math.sqrt(eps))


def converge(problem: Smooth, phi: torch.Tensor) -> torch.Tensor:
    """The minimum of a loss with a ridge, or as near to it as rounding lets Newton's method come.

    Args:
        problem: a convex loss with ρ/2 ‖φ‖², ρ > 0.
        phi: ``(L,)``, where to begin.

    Raises:
        ValueError: without a ridge: a softmax head's loss has no unique minimum, on separable features none at all.
    """
    if not problem.ridge > 0:
        raise ValueError(f"a head is solved to convergence with a positive ridge only, found {problem.ridge}")
    gradient = problem.gradient(phi)
    left, idle = relative_gradient(problem, phi, gradient), 0
    for _ in range(MOST_STEPS):
        if left <= tolerance(phi) or idle == PATIENCE:
            break
        direction = solved(problem.at(phi), gradient, max(tolerance(phi), min(ROUGHLY, left))).x
        moved = _downhill(problem, phi, gradient, direction)
        if moved is None:
            break
        phi, before = moved, left
        gradient = problem.gradient(phi)
        left = relative_gradient(problem, phi, gradient)
        idle = idle + 1 if before / 2 < left < ROUGHLY else 0  # near the minimum, where only rounding is so slow
    return phi


def relative_gradient(problem: Smooth, phi: torch.Tensor, gradient: torch.Tensor) -> float:
    """‖∇‖ over the norms of its two parts, of the loss and of the ridge, which cancel at the minimum: from 0 to 1."""
    pull = problem.ridge * phi
    parts = norm(gradient - pull) + norm(pull)
    return float(norm(gradient) / parts) if parts > 0 else 0.0


def solved(operator: Operator, b: torch.Tensor, residual: float | None = None) -> Solution:
    """``A x = b`` by conjugate gradients, as many as it takes, within reason.

    Args:
        operator: A, positive definite.
        b: ``(L,)``.
        residual: relative to b, that will do; left out: the dtype's :func:`tolerance`.
    """
    most, iterations = min(MOST_ITERATIONS, 2 * b.numel()), FIRST_ITERATIONS
    while True:
        solution = conjugate_gradient(operator, b, iterations=min(iterations, most))
        if float(solution.relative_residuals[-1]) <= (residual or tolerance(b)) or iterations >= most:
            return solution
        iterations *= 4


def _downhill(
    problem: Smooth, phi: torch.Tensor, gradient: torch.Tensor, direction: torch.Tensor
) -> torch.Tensor | None:
    """φ − t·direction, t the first of 1, ½, ¼, … that lowers the loss enough; none where only rounding is left."""
    value, slope = float(problem.value(phi)), float(dot(gradient, direction))
    rounding = 4 * torch.finfo(phi.dtype).eps * abs(value)
    for halving in range(HALVINGS):
        length = 0.5**halving
        candidate = phi - length * direction
        if float(problem.value(candidate)) <= value - SUFFICIENT * length * slope + rounding:
            return candidate
    return None
