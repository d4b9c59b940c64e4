"""The solver for systems that may be indefinite."""

import torch

from bissl_fast.bilevel.operators import Operator
from bissl_fast.bilevel.solvers.events import Event
from bissl_fast.bilevel.solvers.recycling import Recycler
from bissl_fast.bilevel.solvers.solution import Solution, flags, scale_free
from bissl_fast.ops.krylov import dot, norm


@scale_free
def minimal_residual(A: Operator, b: torch.Tensor, x0: torch.Tensor | None = None, *, iterations: int = 5) -> Solution:
    """Generalised conjugate residuals: each iteration makes ``‖b − A x‖`` as small as the products so far allow.

    One product an iteration and two kept vectors; equal to MINRES and GMRES in exact arithmetic while it does not break
    down. A need not be positive definite. Given a :class:`Recycler`, it starts from all that is known already, and adds
    to it.

    Args:
        A: the operator, or a recycler of it.
        b: ``(L,)`` right-hand side.
        x0: ``(L,)`` start, zero (or what the recycler knows) if absent.
        iterations: products, one more with ``x0``.

    Returns:
        A solution whose residual never exceeds that of its start. ``events`` holds a breakdown where an iteration could
        not lower it although it was not zero.

    Raises:
        ValueError: for a negative number of iterations.

    Example:
        >>> x = minimal_residual(operator, gradient, iterations=5).x  # doctest: +SKIP
    """
    space = A if isinstance(A, Recycler) else Recycler(A, max(iterations, 1) + 1)
    b_norm = norm(b)
    if x0 is None:
        x, r = space.start(b)
    else:
        x = x0.clone()
        more, r = space.start(b - space.matvec(x0))
        x += more
    norms = [norm(r)]
    stuck = torch.zeros((), dtype=torch.bool, device=b.device)
    for _ in range(iterations):
        space.matvec(r)
        direction, image = space.newest
        share = dot(image, r)
        x.addcmul_(share, direction)
        r.addcmul_(share, image, value=-1)
        stuck |= (norm(image) == 0) & (norms[-1] > torch.finfo(b.dtype).eps * b_norm)
        norms.append(norm(r))
    residual_norms = torch.stack(norms)
    events = flags(residual_norms, b_norm, [(Event.BREAKDOWN, stuck)])
    return Solution(x, residual_norms, b_norm, iterations + (x0 is not None), events)
