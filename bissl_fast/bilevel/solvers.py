"""Solvers of ``A x = b`` for an operator A. They know no model and never wait for the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bissl_fast.bilevel.operators import Operator


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        x: ``(L,)``, the solution.
        residual_norms: ``(iterations + 1,)``, ‖b − A x‖ before the first iteration and after each, as the solver's own
            recurrence has them; on the device of ``b``.
        products: how many times A was applied.
    """

    x: torch.Tensor
    residual_norms: torch.Tensor
    products: int

    @property
    def relative_residuals(self) -> torch.Tensor:
        """``residual_norms`` over the first of them; zero where the right-hand side is zero."""
        return _ratio(self.residual_norms, self.residual_norms[0])


def conjugate_gradient(
    A: Operator, b: torch.Tensor, x0: torch.Tensor | None = None, iterations: int = 5, layerwise: bool = False
) -> Solution:
    """Conjugate gradients for a symmetric positive definite operator, a fixed number of iterations.

    With ``layerwise`` every parameter tensor has step lengths α and β of its own while A stays coupled across tensors,
    as BiSSL and iMAML's deep-learning code do (BiSSL, section 3.3). That is neither conjugate gradients nor block
    conjugate gradients: it stalls where the joint form goes on converging. The joint form is the textbook's.

    Args:
        A: the operator.
        b: ``(L,)`` right-hand side.
        x0: ``(L,)`` start, zero if absent (and then one product cheaper).
        iterations: N_c, the number of iterations.
        layerwise: one α and β per segment of ``A.segments`` instead of one for all.

    Returns:
        The solution after exactly ``iterations`` iterations; a system solved exactly on the way stays solved. A
        breakdown (``d·Ad = 0`` with ``r ≠ 0``) gives non-finite numbers, which are not hidden.

    Example:
        >>> solution = conjugate_gradient(operator, gradient, iterations=5, layerwise=True)  # doctest: +SKIP
    """
    lengths = list(A.segments) if layerwise else [b.numel()]
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - A.matvec(x)
    d = r.clone()
    xs, rs, ds = (torch.split(vector, lengths) for vector in (x, r, d))  # views: updates reach the vectors
    rr = _dots(rs, rs)
    norms = [rr.sum().sqrt()]
    for _ in range(iterations):
        qs = torch.split(A.matvec(d), lengths)
        alpha = _ratio(rr, _dots(ds, qs))
        _add(xs, alpha, ds)
        _add(rs, -alpha, qs)
        rr_next = _dots(rs, rs)
        beta = _ratio(rr_next, rr)
        for part, residual, factor in zip(ds, rs, beta.unbind(), strict=True):
            part.mul_(factor).add_(residual)
        rr = rr_next
        norms.append(rr.sum().sqrt())
    return Solution(x, torch.stack(norms), iterations + (x0 is not None))


def _dots(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inner product of each pair, ``(segments,)``. `torch.dot` sums in blocks; a running sum loses 2 % in 11 M."""
    return torch.stack([torch.dot(a, b) for a, b in zip(left, right, strict=True)])


def _add(targets: Sequence[torch.Tensor], factors: torch.Tensor, vectors: Sequence[torch.Tensor]) -> None:
    """``target += factor · vector`` for each segment."""
    for target, factor, vector in zip(targets, factors.unbind(), vectors, strict=True):
        target.addcmul_(vector, factor)


def _ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Quotient of step lengths; zero where the segment is solved exactly (0 / 0), otherwise as it comes."""
    return torch.where(numerator == 0, 0.0, numerator / denominator)


def neumann(
    A: Operator, b: torch.Tensor, x0: torch.Tensor | None = None, iterations: int = 5, step: float = 1.0
) -> Solution:
    """Truncated Neumann series, that is Richardson's iteration ``x ← x + step · (b − A x)``.

    From zero it holds ``step · Σ_{i<n} (I − step·A)^i b`` after n iterations. It converges for 0 < step < 2/λmax(A).

    Args:
        A: the operator.
        b: ``(L,)`` right-hand side.
        x0: ``(L,)`` start, zero if absent (and then one product cheaper).
        iterations: number of terms n.
        step: the step length.
    """
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - A.matvec(x)
    norms = [torch.linalg.vector_norm(r)]
    for _ in range(iterations):
        x = x + step * r
        r = r - step * A.matvec(r)
        norms.append(torch.linalg.vector_norm(r))
    return Solution(x, torch.stack(norms), iterations + (x0 is not None))


def identity(A: Operator, b: torch.Tensor, x0: torch.Tensor | None = None) -> Solution:
    """``x = b``: no curvature at all, the cheapest answer to compare with. Applies A nowhere, measures nothing.

    Args:
        A: ignored.
        b: ``(L,)`` right-hand side, returned as the solution.
        x0: ignored.
    """
    return Solution(b.clone(), b.new_full((1,), float("nan")), 0)
