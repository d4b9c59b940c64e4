"""What a solver's own products tell of an operator's spectrum."""

from collections.abc import Sequence

import torch

from bissl_fast.bilevel.operators import Operator
from bissl_fast.ops.krylov import dot

NEW = 1e-4
"""Of a direction's length: what must lie outside the span of those before it, squared, to tell anything new."""


class RitzValues:
    """An operator that remembers its first products, and the eigenvalues that they show.

    By the Rayleigh–Ritz procedure on the span of the vectors that were multiplied: the largest value is a lower bound
    of λmax(A), the smallest an upper bound of λmin(A). The first k directions of a solver span a Krylov space of its
    right-hand side (exactly so for the joint conjugate gradients and for minimal residuals), where the outermost
    eigenvalues show first. It takes no product of its own, and keeps ``2 · capacity · L`` words.

    Args:
        operator: A, symmetric.
        capacity: products that are remembered; later ones pass through.

    Raises:
        ValueError: for a capacity below 1.

    Example:
        >>> seen = RitzValues(operator, capacity=5)  # doctest: +SKIP
        >>> x = conjugate_gradient(seen, gradient, iterations=5).x  # doctest: +SKIP
        >>> largest = seen.values()[-1]  # doctest: +SKIP
    """

    def __init__(self, operator: Operator, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, found {capacity}")
        self._operator, self._left = operator, capacity
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def segments(self) -> Sequence[int]:
        return self._operator.segments

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        """A's product, remembered if it is one of the first."""
        image = self._operator.matvec(vector)
        if self._left:
            self._left -= 1
            self._pairs.append((vector.detach().clone(), image.detach().clone()))
        return image

    def values(self) -> torch.Tensor:
        """The Ritz values ``(k,)``, ascending, float64 on the CPU; none where no product was finite.

        Waits for the device.
        """
        if not self._pairs:
            return torch.empty(0, dtype=torch.float64)
        gram, form = self._products(0), self._products(1)  # (k, k), PᵀP and PᵀAP
        lengths = gram.diagonal().sqrt()
        gram, form = (found / lengths / lengths[:, None] for found in (gram, form))
        if not bool(torch.isfinite(gram).all() and torch.isfinite(form).all()):
            return torch.empty(0, dtype=torch.float64)
        squares, turned = torch.linalg.eigh(gram)
        kept = turned[:, squares > NEW] / squares[squares > NEW].sqrt()
        values: torch.Tensor = torch.linalg.eigvalsh(kept.T @ form @ kept)
        return values

    def _products(self, which: int) -> torch.Tensor:
        """Of each direction with each direction (0) or image (1), ``(k, k)``, float64 on the CPU; symmetric."""
        rows, columns = torch.triu_indices(len(self._pairs), len(self._pairs)).tolist()
        dots = [dot(self._pairs[i][0], self._pairs[j][which]) for i, j in zip(rows, columns, strict=True)]
        found = torch.empty(len(self._pairs), len(self._pairs), dtype=torch.float64)
        found[rows, columns] = found[columns, rows] = torch.stack(dots).double().cpu()
        return found
