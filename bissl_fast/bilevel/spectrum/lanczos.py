"""The ends of an operator's spectrum."""

import math
from typing import NamedTuple

import torch

from bissl_fast.bilevel.operators import Operator
from bissl_fast.ops.krylov import check_tensors, dot, norm


class Spectrum(NamedTuple):
    """Ritz values.

    Attributes:
        values: ``(k,)`` ascending; the outermost are the best.
        bounds: ``(k,)``: an eigenvalue of A lies within this distance of each.
    """

    values: torch.Tensor
    bounds: torch.Tensor


def lanczos(operator: Operator, like: torch.Tensor, iterations: int = 30, seed: int = 0) -> Spectrum:
    """Lanczos' method with full reorthogonalisation, so that no eigenvalue appears twice.

    Args:
        operator: A, symmetric.
        like: a vector ``(L,)`` whose dtype and device are used.
        iterations: products; k of them give k Ritz values (fewer, if the space is exhausted).
        seed: of the start.

    Raises:
        ValueError: without an iteration, or where a product is not finite.

    Returns:
        The Ritz values with bounds, on the CPU in float64. Waits for the device.
    """
    if iterations < 1:
        raise ValueError(f"Lanczos' method takes at least 1 iteration, found {iterations}")
    check_tensors({"like": like})
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(like.numel(), generator=generator).to(like)
    q /= norm(q)
    basis, diagonal, off = [q], [], []
    for _ in range(min(iterations, like.numel())):
        w = operator.matvec(basis[-1])
        scale = norm_of(w)
        diagonal.append(float(dot(w, basis[-1])))
        if not math.isfinite(diagonal[-1]):
            raise ValueError("Lanczos' method needs finite products, found one that is not: is the loss finite?")
        for _ in range(2):
            for known in basis:
                w = w - dot(known, w) * known
        left = norm_of(w)
        off.append(left)
        if left <= 10 * torch.finfo(like.dtype).eps * scale:
            break
        basis.append(w / left)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    beside = torch.diag(torch.tensor(off[: len(diagonal) - 1], dtype=torch.float64), 1)
    values, vectors = torch.linalg.eigh(matrix + beside + beside.T)
    return Spectrum(values, off[-1] * vectors[-1].abs())


def norm_of(vector: torch.Tensor) -> float:
    """‖v‖ without over- or underflow of its squares."""
    largest = vector.abs().amax()
    return float(largest) * float(norm(vector / largest)) if largest > 0 else float(largest)
