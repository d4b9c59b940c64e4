"""The solvers without a search: Neumann's series, and no curvature at all."""

import torch

from bissl_fast.bilevel.operators import Operator
from bissl_fast.bilevel.solvers.solution import Solution, flags, scale_free, unmeasured
from bissl_fast.ops.krylov import check_tensors, norm


@scale_free
def neumann(
    A: Operator, b: torch.Tensor, x0: torch.Tensor | None = None, *, iterations: int = 5, step: float = 1.0
) -> Solution:
    """Truncated Neumann series, that is Richardson's iteration ``x ← x + step · (b − A x)``.

    From zero it holds ``step · Σ_{i<n} (I − step·A)^i b`` after n iterations. It converges for 0 < step < 2/λmax(A).

    Args:
        A: the operator.
        b: ``(L,)`` right-hand side.
        x0: ``(L,)`` start, zero if absent (and then one product cheaper).
        iterations: number of terms n.
        step: the step length.

    Raises:
        ValueError: for a negative number of iterations.
    """
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - A.matvec(x)
    norms = [norm(r)]
    for _ in range(iterations):
        x = x + step * r
        r = r - step * A.matvec(r)
        norms.append(norm(r))
    residual_norms = torch.stack(norms)
    b_norm = norm(b)
    events = flags(residual_norms, b_norm, [])
    return Solution(x, residual_norms, b_norm, iterations + (x0 is not None), events)


def identity(A: Operator, b: torch.Tensor, x0: torch.Tensor | None = None) -> Solution:
    """``x = b``: no curvature at all, the cheapest answer to compare with. Applies A nowhere, measures nothing.

    Args:
        A: ignored.
        b: ``(L,)`` right-hand side, returned as the solution.
        x0: ignored.
    """
    check_tensors({"b": b})
    return unmeasured(b.clone(), b)
