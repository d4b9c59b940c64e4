"""Cheap products find the corrections, true ones judge them."""

from collections.abc import Callable

import torch

from bissl_fast.bilevel.operators import Operator
from bissl_fast.bilevel.solvers.events import Event
from bissl_fast.bilevel.solvers.recycling import Recycler
from bissl_fast.bilevel.solvers.solution import Solution, flags, scale_free
from bissl_fast.ops.krylov import dot, norm

WITHIN = int(Event.DIVERGENCE | Event.NON_FINITE)
"""Events that are true of a rough solve and not of the refined one, which tells what came of them."""


@scale_free
def refined(
    A: Operator,
    b: torch.Tensor,
    x0: torch.Tensor | None = None,
    *,
    solve: Callable[[torch.Tensor], Solution],
    tolerance: float = 1e-4,
    corrections: int = 8,
) -> Solution:
    """Iterative refinement: what a rough solve leaves of ``b`` is measured with A itself and solved again.

    Each correction takes one product with A, and enters with the step, and together with the steps of earlier
    corrections, that makes ``‖b − A x‖`` smallest (flexible generalised conjugate residuals; Saad, 1993, after Carson
    and Higham's scheme of three precisions, 2018). So the residual never rises, whatever ``solve`` is: a correction
    that would raise it is shortened until it does not, one that is not finite is left out. A need not be positive
    definite. Given a :class:`Recycler` of A, it starts from all that is known already, and adds to it.

    Args:
        A: the operator whose residual counts, or a recycler of it.
        b: ``(L,)`` right-hand side.
        x0: ``(L,)`` start, zero (or what the recycler knows) if absent.
        solve: ``r -> Solution``, any solver with products that are cheaper than A's and near them, bfloat16 ones say.
        tolerance: ``‖b − A x‖ / ‖b‖`` that is asked for.
        corrections: that may be spent on it, at most.

    Returns:
        A solution whose ``products`` are A's and whose ``rough_products`` are those of ``solve``. ``residual_norms``
        has ``corrections + 1`` entries, those of A's own products; what was reached earlier stands to the end.
        ``events`` holds those of the rough solves, and whether a correction was shortened or the tolerance missed.
        This solver alone waits for the device, once per correction.

    Raises:
        ValueError: for a tolerance that is not positive or a negative number of corrections.

    Example:
        >>> rough = ShiftedOperator(hessian_in_bfloat16, scale)  # doctest: +SKIP
        >>> x = refined(system, v, solve=lambda r: minimal_residual(rough, r), tolerance=1e-4).x  # doctest: +SKIP
    """
    if not tolerance > 0 or corrections < 0:
        raise ValueError(
            f"a refinement takes a positive tolerance and 0 or more corrections, found {tolerance} and {corrections}"
        )
    space = A if isinstance(A, Recycler) else Recycler(A, max(corrections, 1) + 1)
    b_norm = norm(b)
    x, r = space.start(b if x0 is None else b - space.matvec(x0.clone()))
    x = x if x0 is None else x0 + x
    norms, wanted, rough = [norm(r)], tolerance * float(b_norm), 0
    befell = torch.zeros((), dtype=torch.int64, device=b.device)
    for _ in range(corrections):
        if not float(norms[-1]) > wanted:  # reached, or not a number
            break
        correction = solve(r)
        image = space.matvec(correction.x)
        is_lower = norm(r - image) <= norms[-1]
        befell |= correction.events & ~WITHIN | ~is_lower * int(Event.SHORTENED)
        rough += correction.products
        direction, image = space.newest
        share = dot(image, r)
        x.addcmul_(share, direction)
        r.addcmul_(share, image, value=-1)
        norms.append(norm(r))
    products = len(norms) - 1 + (x0 is not None)
    residual_norms = torch.stack(norms + norms[-1:] * (corrections + 1 - len(norms)))
    events = befell | flags(residual_norms, b_norm, [(Event.UNREFINED, residual_norms[-1] > wanted)])
    return Solution(x, residual_norms, b_norm, products, events, rough)
