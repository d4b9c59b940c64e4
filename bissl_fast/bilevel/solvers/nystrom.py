"""A low-rank sketch of the Hessian, made once and inverted for every right-hand side."""

from typing import Protocol

import torch

from bissl_fast.bilevel.operators import Operator
from bissl_fast.bilevel.solvers.solution import Solution, unmeasured
from bissl_fast.ops.krylov import check_tensors


class SeveralProducts(Operator, Protocol):
    """An operator that multiplies several vectors at once."""

    def matmat(self, vectors: torch.Tensor) -> torch.Tensor: ...


class Nystrom:
    """Solves ``(I + scale · H) x = b`` with ``H ≈ U diag(λ) Uᵀ`` of rank r (Hataya and Yamada, 2023).

    The sketch takes r products and waits for the device; a solve does neither. Negative eigenvalues of the sketch are
    set to zero: along them the answer is b's own, where the true inverse may have any sign and size. So it is safe, and
    wrong there.

    Args:
        hessian: H, symmetric, with ``matmat``.
        rank: r, products of the sketch.
        scale: of the system, 1/(λ + λ_damp) in BiSSL.
        like: a vector ``(L,)`` whose dtype and device the solutions have.
        seed: of the random directions.

    Raises:
        ValueError: for a rank outside 1 … L, a scale that is not positive, products that are not finite, or vectors
            that are no tensors.

    Example:
        >>> solve = Nystrom(hessian, rank=20, scale=0.1, like=gradient)  # doctest: +SKIP
        >>> x = solve(hessian, gradient).x  # doctest: +SKIP
    """

    def __init__(self, hessian: SeveralProducts, rank: int, scale: float, like: torch.Tensor, seed: int = 0) -> None:
        check_tensors({"like": like})
        if not 1 <= rank <= like.numel():
            raise ValueError(f"rank must be between 1 and the {like.numel()} entries of a vector, found {rank}")
        if not 0 < scale < float("inf"):  # a negative one has a pole where the sketch has an eigenvalue of -1/scale
            raise ValueError(f"scale must be positive and finite, found {scale}")
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(like.numel(), rank, generator=generator).to(like)
        omega = torch.linalg.qr(drawn).Q.T.contiguous()  # (r, L)
        images = hessian.matmat(omega)  # (r, L)
        core = omega @ images.T  # (r, r), ΩᵀHΩ
        try:
            values, vectors = torch.linalg.eigh((core + core.T) / 2)
        except RuntimeError as error:
            raise ValueError("a sketch needs finite products, found some that are not: is the loss finite?") from error
        floor = torch.finfo(like.dtype).eps * rank * values.abs().max()
        inverse = torch.where(values.abs() > floor, 1 / values, 0.0)
        q, r = torch.linalg.qr(images.T)  # (L, r), (r, r)
        turned = r @ vectors
        eigenvalues, inner = torch.linalg.eigh((turned * inverse) @ turned.T)
        self._basis = q @ inner  # (L, r), U
        self._eigenvalues = eigenvalues.clamp(min=0)
        self._scale, self.products = scale, rank

    @property
    def eigenvalues(self) -> torch.Tensor:
        """``(r,)``: those of the sketch, ascending, negative ones as zero."""
        found: torch.Tensor = self._eigenvalues
        return found

    def __call__(self, A: Operator, b: torch.Tensor, x0: torch.Tensor | None = None) -> Solution:
        """The solution for ``b``; ``A`` and ``x0`` are not looked at, and no residual is measured."""
        check_tensors({"b": b})
        shrunk = self._scale * self._eigenvalues
        x = b - self._basis @ (shrunk / (1 + shrunk) * (self._basis.T @ b))
        return unmeasured(x, b)
