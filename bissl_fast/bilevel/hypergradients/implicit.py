"""Hypergradients: where operators and solvers meet."""

import math
from collections.abc import Callable
from typing import Any

import torch

from bissl_fast.bilevel.operators import Operator, ShiftedOperator
from bissl_fast.bilevel.solvers import Solution, conjugate_gradient

Solver = Callable[..., Solution]
"""``solve(A, b, x0=None, **settings) -> Solution``."""


def implicit_gradient(
    hessian: Operator,
    gradient: torch.Tensor,
    weight: float,
    damping: float = 0.0,
    solver: Solver = conjugate_gradient,
    **settings: Any,
) -> Solution:
    """Pull an upper-level gradient back through the lower-level solution (BiSSL, Eqs. 6 and 7).

    For ``θ_P*(θ_D) = argmin L(θ_P) + λ/2 ‖θ_P − θ_D‖²`` this solves ``[I + ∇²L / (λ + λ_damp)] x = v``. Without damping
    and with an exact solver, x is the exact gradient of the upper loss with respect to θ_D.

    Args:
        hessian: ∇²L at the lower-level solution.
        gradient: ``(L,)``, v: the gradient of the upper loss with respect to θ_P.
        weight: λ, the weight of the proximity term; 0 only beside damping.
        damping: λ_damp ≥ 0, added to λ in the operator only (Algorithm 2, line 7).
        solver: any function of :mod:`bissl_fast.bilevel.solvers`.
        **settings: passed to the solver.

    Returns:
        The solution; its ``x`` ``(L,)`` is v_IG, its ``troubles()`` say what happened on the way.

    Raises:
        ValueError: if λ or λ_damp is negative or not finite, or both are 0.

    Example:
        >>> v_ig = implicit_gradient(hessian, v, weight=1e-3, damping=10.0, layerwise=True).x  # doctest: +SKIP
    """
    if not (0 <= weight < math.inf and 0 <= damping < math.inf and weight + damping > 0):
        raise ValueError(
            f"weight and damping must be finite, not negative and not both 0, found weight {weight}, damping {damping}"
        )
    return solver(ShiftedOperator(hessian, 1.0 / (weight + damping)), gradient, **settings)
