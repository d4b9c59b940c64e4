"""A few plain gradient steps as a map of where they start, and its derivative (GeSSL, Eq. 6 and Appendix G.4).

``θ_{k+1} = θ_k − α ∇ℓ(θ_k)`` for k < K depends on θ_0 through its start alone, so its derivative is a product of K
matrices, each symmetric, and a gradient g at θ_K is pulled back to θ_0 by ``Π_k (I − α ∇²ℓ(θ_k)) g``, the last step
first: :func:`pull_back`. It is exact with exact products (:class:`HessianOperator`), an estimate with differences of
gradients (:func:`difference_products`). Nothing here converges, so no implicit equation holds: :func:`proximal` treats
θ_K as if it minimised ``ℓ(θ) + ‖θ − θ_0‖² / 2αK``, which is as near as an implicit gradient comes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bissl_fast.bilevel.hypergradients.implicit import Solver, implicit_gradient
from bissl_fast.bilevel.operators import Operator
from bissl_fast.bilevel.parameters import ParameterVector
from bissl_fast.bilevel.solvers import Solution
from bissl_fast.ops.krylov import norm

Gradient = Callable[[], tuple[torch.Tensor, Sequence[torch.Tensor]]]
"""ℓ, a scalar, and ∇ℓ, a tensor per parameter, at the parameters' present values; all detached."""

Product = Callable[[torch.Tensor], torch.Tensor]
"""``v ↦ ∇²ℓ v``, each ``(L,)``, at the parameters' present values."""

DIFFERENCE = 0.01
"""How far a difference goes to either side: ε‖v‖ of AID-FD, whose ε is .01 / ‖v‖ (Liu et al., 2018)."""


@dataclass(frozen=True)
class Descent:
    """Where K gradient steps have led.

    Attributes:
        points: ``(L,)`` each, θ_0 to θ_K.
        losses: scalars, ℓ at θ_0 to θ_{K−1}.
        gradient_norm: scalar, ‖∇ℓ(θ_0)‖; 0 if there is no step.
    """

    points: list[torch.Tensor]
    losses: list[torch.Tensor]
    gradient_norm: torch.Tensor

    @property
    def end(self) -> torch.Tensor:
        """θ_K."""
        return self.points[-1]


@contextmanager
def restored(parameters: ParameterVector) -> Iterator[torch.Tensor]:
    """Let parameters move inside the block, and put them back, to the bit, on leaving.

    Yields:
        ``(L,)``, their values.
    """
    before = parameters.values()
    try:
        yield before
    finally:
        parameters.assign(before)


def descend(parameters: ParameterVector, gradient: Gradient, rate: float, steps: int) -> Descent:
    """Plain gradient descent from where the parameters are; leaves them at its end (Eq. 6).

    Args:
        parameters: that move.
        gradient: of ℓ.
        rate: α.
        steps: K, 0 or more.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> theta = ParameterVector(layer)
        >>> theta.assign(torch.ones(1))
        >>> path = descend(theta, lambda: (theta.values().square().sum() / 2, [layer.weight.detach()]), 0.5, steps=2)
        >>> path.end
        tensor([0.2500])
    """
    points, losses, size = [parameters.values()], [], torch.zeros(())
    for step in range(steps):
        loss, slope = gradient()
        losses.append(loss)
        if step == 0:
            size = norm(parameters.flatten(slope))
        advance(parameters, slope, -rate)
        points.append(parameters.values())
    return Descent(points, losses, size)


def advance(parameters: ParameterVector, direction: Sequence[torch.Tensor], length: float) -> None:
    """θ ← θ + length · direction, in place, a tensor per parameter."""
    with torch.no_grad():
        torch._foreach_add_(parameters.tensors, list(direction), alpha=length)


def pull_back(
    parameters: ParameterVector, points: Sequence[torch.Tensor], vector: torch.Tensor, product: Product, rate: float
) -> torch.Tensor:
    """``Π_k (I − α ∇²ℓ(θ_k)) v``: a gradient at θ_K as one at θ_0. Leaves the parameters where the last product was.

    Args:
        parameters: that the products are taken of.
        points: θ_0 to θ_K of :func:`descend`.
        vector: ``(L,)``, the gradient at θ_K.
        product: of ∇²ℓ.
        rate: α.
    """
    for point in reversed(points[:-1]):
        parameters.assign(point)
        vector = vector - rate * product(vector)
    return vector


def difference_products(parameters: ParameterVector, gradient: Gradient, length: float = DIFFERENCE) -> Product:
    """∇²ℓ v by ``(∇ℓ(θ + εv) − ∇ℓ(θ − εv)) / 2ε`` with ``ε = length / ‖v‖`` (AID-FD, Eq. 31).

    Exact for a quadratic ℓ but for rounding; else off by about ``length² / 6`` third derivatives along v, and by the
    gradient's rounding over ``length``. A network with ReLUs has gradients that jump, and a difference across a jump
    measures the jump. Two gradients each; zero, of no gradient, along zero.

    Args:
        parameters: moved for each gradient and put back.
        gradient: of ℓ. What ℓ takes as constant must stand still in it.
        length: ε‖v‖, how far the parameters move to either side.
    """

    def product(vector: torch.Tensor) -> torch.Tensor:
        largest = vector.abs().amax()  # the norm of a tiny or huge vector is 0 or infinite in float32
        direction = torch.where(largest == 0, 0.0, vector / largest)
        size = norm(direction)
        step = length * torch.where(largest == 0, 0.0, direction / size)
        with restored(parameters) as values:
            sides = []
            for sign in (1, -1):
                parameters.assign(values + sign * step)
                sides.append(parameters.flatten(gradient()[1]))
        return (sides[0] - sides[1]) * (largest * size / (2 * length))

    return product


def proximal(hessian: Operator, gradient: torch.Tensor, rate: float, steps: int, solver: Solver, n: int) -> Solution:
    """``(I + αK ∇²ℓ(θ_K))⁻¹ g``: the implicit gradient of a lower level with proximity 1/αK.

    For a quadratic ℓ of curvature h the K steps have the derivative ``(1 − αh)^K``, and this is ``1 / (1 + αKh)``:
    alike while αKh is small, and never negative, whatever α.

    Args:
        hessian: ∇²ℓ at θ_K.
        gradient: ``(L,)``, g.
        rate: α.
        steps: K.
        solver: :func:`conjugate_gradient` or :func:`neumann`.
        n: its iterations, a product each.
    """
    return implicit_gradient(hessian, gradient, weight=1 / (rate * steps), solver=solver, iterations=n)
