"""Hypergradients of an encoder through its head (ABRL, Eq. 1 and the algorithm box).

The inner loss L_in(Z, φ) sees the encoder θ through features Z = f_θ(X) alone. So everything of second order happens in
the head, on features: H = ∂²L_in/∂φ² and the mixed block ∂²L_in/∂Z∂φ come as products, both of one reverse pass over
the head's gradient. What is pulled back to Z goes on to θ by one reverse pass through the encoder,
``Z.backward(cotangent)``. No matrix is formed: that of 100 classes of 2,048 features would be 336 GB.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from bissl_fast.bilevel.hypergradients.head_solution import converge, solved
from bissl_fast.bilevel.hypergradients.implicit import implicit_gradient
from bissl_fast.bilevel.solvers import neumann

InnerLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(φ, Z) ↦`` scalar: φ ``(L,)`` the head's parameters as one vector, Z ``(B, D)`` features."""

Estimator = Literal["ift", "unrolled", "neumann", "proximal", "converged"]

BIAS: dict[Estimator, str] = {
    "ift": "the implicit function theorem, damped, where K steps have left the head: it takes φ for a minimum, which "
    "it is not; the damping bounds what it makes of flat directions",
    "unrolled": "exact for the map of K gradient steps; blind to what further steps would do",
    "neumann": "K terms of a series at the last φ: exact for K steps on a quadratic loss, else off by the change of "
    "the Hessian along them",
    "proximal": "exact for a head that minimises L_in + ‖φ − φ_0‖² / 2αK, which K small steps come near to",
    "converged": "exact where the head minimises L_in + ρ/2 ‖φ‖²: another inner problem than K steps, solved anew",
}
"""What each estimator is exact for, and where it is not."""


class InnerProblem:
    """L_in as a function of φ at fixed features, with its products.

    Args:
        loss: of φ and features, without the ridge.
        features: ``(B, D)``, Z; its graph is left alone.
        ridge: ρ ≥ 0 of ρ/2 ‖φ‖², added to the loss.

    Attributes:
        features: Z without its graph.
        ridge: ρ.
        products: how many second-order products have been taken.

    Example:
        >>> def half_square(phi, features):
        ...     return 0.5 * (features @ phi).square().sum()
        >>> problem = InnerProblem(half_square, torch.eye(2))
        >>> problem.at(torch.zeros(2)).matvec(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """

    def __init__(self, loss: InnerLoss, features: torch.Tensor, ridge: float = 0.0) -> None:
        self.features, self.ridge, self.products = features.detach(), ridge, 0
        self._loss = loss

    def value(self, phi: torch.Tensor) -> torch.Tensor:
        """L_in at φ ``(L,)``."""
        with torch.no_grad():
            return self.loss(phi, self.features)

    def gradient(self, phi: torch.Tensor) -> torch.Tensor:
        """∂L_in/∂φ ``(L,)``."""
        phi = phi.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.loss(phi, self.features), phi)[0]

    def at(self, phi: torch.Tensor) -> "HeadHessian":
        """Second derivatives at φ."""
        return HeadHessian(self, phi)

    def loss(self, phi: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """L_in, differentiable."""
        return self._loss(phi, features) + 0.5 * self.ridge * phi.square().sum()


class HeadHessian:
    """H of an :class:`InnerProblem` at one φ as an operator, and the mixed block beside it.

    The graph of the head's gradient is built once and serves every product.
    """

    def __init__(self, problem: InnerProblem, phi: torch.Tensor) -> None:
        self._problem = problem
        self._phi, self._features = (t.detach().requires_grad_() for t in (phi, problem.features))
        with torch.enable_grad():
            value = problem.loss(self._phi, self._features)
            (self._gradient,) = torch.autograd.grad(value, self._phi, create_graph=True)

    @property
    def segments(self) -> Sequence[int]:
        return [self._phi.numel()]

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        """``H u`` ``(L,)`` of u ``(L,)``."""
        return self.product(vector)[0]

    def product(self, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``H u`` ``(L,)`` and ``(∂²L_in/∂Z∂φ) u`` ``(B, D)`` of u ``(L,)``."""
        self._problem.products += 1
        curved, mixed = torch.autograd.grad(
            self._gradient, (self._phi, self._features), vector, retain_graph=True, materialize_grads=True
        )
        return curved, mixed


@dataclass(frozen=True)
class Pullback:
    """A gradient with respect to φ, pulled back to the features.

    Attributes:
        cotangent: ``(B, D)``, (dφ/dZ)ᵀ v.
        residual: scalar, of the linear system that was solved, relative to its right-hand side; ``None`` without one.
    """

    cotangent: torch.Tensor
    residual: torch.Tensor | None = None


@dataclass(frozen=True)
class HeadHypergradient:
    """An inner loop over φ, and how φ's end is differentiated with respect to the features.

    Attributes:
        estimator: which one; :data:`BIAS` says what each is exact for.
        steps: K of the inner loop; `converged` has none.
        rate: α of the inner loop.
        damping: of `ift`, added to H. 0 asks for an H that is not singular, which that of a softmax head is.
        iterations: conjugate gradients of `ift` and `proximal`.

    Example:
        >>> def half_square(phi, features):  # ½h(φ − aθ)² with h = 2, a = 3
        ...     return (phi - 3 * features).square().sum()
        >>> problem = InnerProblem(half_square, torch.zeros(1))
        >>> unrolled = HeadHypergradient("unrolled", steps=5, rate=0.001)
        >>> path = unrolled.inner_loop(problem, torch.ones(1))
        >>> unrolled.pull_back(problem, path, torch.ones(1)).cotangent / 3  # 1 − (1 − αh)⁵
        tensor([0.0100])
    """

    estimator: Estimator = "ift"
    steps: int = 5
    rate: float = 1e-3
    damping: float = 1.0
    iterations: int = 10

    def inner_loop(self, problem: InnerProblem, phi: torch.Tensor) -> list[torch.Tensor]:
        """φ_0, …, φ_K ``(L,)`` each; of `converged` φ_0 and the minimum."""
        return [phi, converge(problem, phi)] if self.estimator == "converged" else self.descend(problem, phi)

    def descend(self, problem: InnerProblem, phi: torch.Tensor) -> list[torch.Tensor]:
        """φ_0, …, φ_K of K gradient steps, ``φ ← φ − α ∂L_in/∂φ``."""
        path = [phi]
        for _ in range(self.steps):
            path.append(path[-1] - self.rate * problem.gradient(path[-1]))
        return path

    def pull_back(self, problem: InnerProblem, path: Sequence[torch.Tensor], v: torch.Tensor) -> Pullback:
        """(dφ_K/dZ)ᵀ v as the estimator has it.

        Args:
            problem: the inner problem.
            path: what :meth:`inner_loop` has given for it.
            v: ``(L,)``, the gradient of the outer loss with respect to φ at the path's end.
        """
        if self.estimator == "unrolled":
            return Pullback(self.unroll(problem, path, v))
        hessian = problem.at(path[-1])
        if self.estimator == "neumann":
            solution = neumann(hessian, v, iterations=self.steps, step=self.rate)
        elif self.estimator == "converged" or self._weight == 0:
            solution = solved(hessian, v)
        else:
            solution = implicit_gradient(hessian, v / self._weight, self._weight, iterations=self.iterations)
        _, mixed = hessian.product(solution.x)
        return Pullback(-mixed, solution.relative_residuals[-1])

    def unroll(self, problem: InnerProblem, path: Sequence[torch.Tensor], v: torch.Tensor) -> torch.Tensor:
        """(dφ_K/dZ)ᵀ v ``(B, D)`` of K gradient steps from a φ_0 that is a constant: their adjoint, last step first."""
        cotangent = torch.zeros_like(problem.features)
        for phi in reversed(path[:-1]):
            curved, mixed = problem.at(phi).product(v)
            cotangent -= self.rate * mixed
            v = v - self.rate * curved
        return cotangent

    @property
    def _weight(self) -> float:
        """What is added to H: of `proximal`, the weight of its proximity term."""
        return 1 / (self.rate * self.steps) if self.estimator == "proximal" else self.damping
