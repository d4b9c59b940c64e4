"""Conjugate gradients: joint, layer-wise, and with a diagonal preconditioner."""

import torch

from bissl_fast.bilevel.operators import Operator
from bissl_fast.bilevel.solvers.events import Event
from bissl_fast.bilevel.solvers.solution import Solution, flags, scale_free
from bissl_fast.ops.krylov import cg_update, check_tensors, norm, segment_dots

BELOW_ROUNDING = 1e-3
"""Of a rounding of where it began: a residual so small is the recursion's own, and only under- and overflow follow."""


@scale_free
def conjugate_gradient(
    A: Operator,
    b: torch.Tensor,
    x0: torch.Tensor | None = None,
    *,
    iterations: int = 5,
    layerwise: bool = False,
    inverse_diagonal: torch.Tensor | None = None,
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
        inverse_diagonal: ``(L,)``, a positive preconditioner M⁻¹; :func:`estimate_diagonal` helps to make one.

    Returns:
        The solution after exactly ``iterations`` iterations; what is solved to a thousandth of rounding stays so. A
        breakdown (``d·Ad = 0`` with ``r ≠ 0``) gives non-finite numbers, which are not hidden. ``events`` names it.

    Raises:
        ValueError: for a negative number of iterations.

    Example:
        >>> solution = conjugate_gradient(operator, gradient, iterations=5, layerwise=True)  # doctest: +SKIP
    """
    segments = tuple(A.segments) if layerwise else (b.numel(),)
    x = torch.zeros_like(b) if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - A.matvec(x)
    d = r.clone() if inverse_diagonal is None else inverse_diagonal * r
    rz = segment_dots(r, d, segments)
    norms = [norm(r)]
    curvatures, numerators = [], []
    solved = (torch.finfo(b.dtype).eps * BELOW_ROUNDING) ** 2 * rz
    for _ in range(iterations):
        rz = torch.where(rz.abs() <= solved, 0.0, rz)  # which keeps x and r as they are
        numerators.append(rz)
        curvature, rz, rr = cg_update(x, r, d, A.matvec(d), rz, segments, inverse_diagonal)
        curvatures.append(curvature)
        norms.append(rr.sum().sqrt().to(b.dtype))
    residual_norms = torch.stack(norms)
    more = []
    if iterations:
        curved, started = torch.stack(curvatures), torch.stack(numerators)  # (iterations, segments)
        negative = Event.NEGATIVE_STEP if layerwise else Event.NEGATIVE_CURVATURE
        more = [(negative, (curved < 0).any()), (Event.BREAKDOWN, ((curved == 0) & (started != 0)).any())]
    b_norm = norm(b)
    return Solution(x, residual_norms, b_norm, iterations + (x0 is not None), flags(residual_norms, b_norm, more))


def estimate_diagonal(A: Operator, probes: int, like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """The diagonal of A, estimated without bias from random signs: the mean of ``z ∘ A z`` (Bekas et al., 2007).

    Args:
        A: the operator.
        probes: number of products.
        like: a vector ``(L,)`` whose dtype and device the estimate has.
        seed: of the signs.

    Raises:
        ValueError: without a probe.
    """
    if probes < 1:
        raise ValueError(f"an estimate takes at least 1 probe, found {probes}")
    check_tensors({"like": like})
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(like)
    for _ in range(probes):
        signs = torch.randint(0, 2, (like.numel(),), generator=generator).mul_(2).sub_(1).to(like)
        total += signs * A.matvec(signs)
    return total / probes
