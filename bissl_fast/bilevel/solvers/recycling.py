"""What earlier right-hand sides have found out about an operator serves the next ones."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from bissl_fast.bilevel.operators import Operator
from bissl_fast.ops.krylov import check_tensors, dot, norm

TRUST = 0.5
"""Digits of a pair, of those that its dtype has, that must be left: ``‖A p − q‖`` is at most about ``eps ** TRUST``."""


class Pair(NamedTuple):
    """A direction p, its image q = A p of norm 1 (both zero where it told nothing new), and about ‖A p − q‖."""

    direction: torch.Tensor
    image: torch.Tensor
    error: torch.Tensor


class Recycler:
    """An operator that remembers every product: directions P with orthonormal images Q = A P.

    It is used in place of A while A stays as it is (one upper phase: N_U right-hand sides, one Hessian); it cannot see
    a change, so every phase takes a new one. ``start`` then gives, without a product, the x of span(P) with the
    smallest residual, for positive definite and for indefinite A alike. This is the recycling of GCRO-type methods
    (Parks et al., 2006) with all directions kept.

    Args:
        operator: A.
        capacity: pairs of vectors that are kept; the oldest go first. Memory: ``2 · capacity · L`` words.

    Raises:
        ValueError: for a capacity below 1.

    Example:
        >>> known = Recycler(operator)  # doctest: +SKIP
        >>> for v in right_hand_sides:  # doctest: +SKIP
        ...     x = minimal_residual(known, v, iterations=3).x
    """

    def __init__(self, operator: Operator, capacity: int = 40) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, found {capacity}")
        self._operator, self._capacity = operator, capacity
        self._pairs: list[Pair] = []
        self._largest: torch.Tensor | None = None  # of ‖A v‖ / ‖v‖ so far: what is known about ‖A‖

    @property
    def segments(self) -> Sequence[int]:
        return self._operator.segments

    @property
    def size(self) -> int:
        """How many pairs are known."""
        return len(self._pairs)

    @property
    def newest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The last direction and its image, of norm 1, or both zero where it told nothing new."""
        return self._pairs[-1][:2]

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        """A's product, remembered."""
        image = self._operator.matvec(vector)
        self._remember(vector, image)
        return image

    def start(self, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The known x with the smallest ``‖b − A x‖``, and ``b − A x``, each ``(L,)``."""
        check_tensors({"b": b})
        x, r = torch.zeros_like(b), b.clone()
        for _ in range(2):  # the second time takes away what rounding left
            for direction, image, _ in self._pairs:
                share = dot(image, r)
                x.addcmul_(share, direction)
                r.addcmul_(share, image, value=-1)
        return x, r

    def _remember(self, vector: torch.Tensor, image: torch.Tensor) -> None:
        length = norm(vector)
        direction, image = (torch.where(length > 0, v / length, 0.0) for v in (vector, image))
        size, eps = norm(image), torch.finfo(image.dtype).eps
        known = torch.where(torch.isfinite(size), size, 0.0)
        self._largest = known if self._largest is None else torch.maximum(self._largest, known)
        squares = (eps * self._largest).square()
        for _ in range(2):  # Gram–Schmidt, twice is enough
            for p, q, error in self._pairs:
                share = dot(q, image)
                image.addcmul_(share, q, value=-1)
                direction.addcmul_(share, p, value=-1)
                squares = squares + (share * error).square()
        left = norm(image)
        # The less is left, the more its rounding weighs, and from pair to pair it would grow without a bound.
        error = squares.sqrt() / left
        is_new = torch.isfinite(left) & (error < eps**TRUST)
        # Selected, not multiplied: zero times a number that is not finite is not zero.
        self._pairs.append(
            Pair(*(torch.where(is_new, v, 0.0) for v in (direction.div_(left), image.div_(left), error)))
        )
        del self._pairs[: -self._capacity]
