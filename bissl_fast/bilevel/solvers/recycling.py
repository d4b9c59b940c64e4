"""What earlier right-hand sides have found out about an operator serves the next ones."""

from collections.abc import Sequence

import torch

from bissl_fast.bilevel.operators import Operator
from bissl_fast.ops.krylov import dot, norm

DEPENDENT = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""An image whose part outside the known space is smaller than this share of it tells nothing but rounding."""

NOISE = 10
"""An image smaller than so many roundings of ‖A‖‖v‖ is rounding as a whole: v lies in A's null space."""


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
        self._directions: list[torch.Tensor] = []
        self._images: list[torch.Tensor] = []
        self._largest: torch.Tensor | None = None  # of ‖A v‖ / ‖v‖ so far: what is known about ‖A‖

    @property
    def segments(self) -> Sequence[int]:
        return self._operator.segments

    @property
    def size(self) -> int:
        """How many pairs are known."""
        return len(self._images)

    @property
    def newest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The last direction and its image, of norm 1, or both zero where it told nothing new."""
        return self._directions[-1], self._images[-1]

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        """A's product, remembered."""
        image = self._operator.matvec(vector)
        self._remember(vector, image)
        return image

    def start(self, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The known x with the smallest ``‖b − A x‖``, and ``b − A x``, each ``(L,)``."""
        x, r = torch.zeros_like(b), b.clone()
        for _ in range(2):  # the second time takes away what rounding left
            for direction, image in zip(self._directions, self._images, strict=True):
                share = dot(image, r)
                x.addcmul_(share, direction)
                r.addcmul_(share, image, value=-1)
        return x, r

    def _remember(self, vector: torch.Tensor, image: torch.Tensor) -> None:
        direction, image = vector.clone(), image.clone()
        before, length = norm(image), norm(vector)
        ratio = torch.where(torch.isfinite(before) & (length > 0), before / length, 0.0)
        self._largest = ratio if self._largest is None else torch.maximum(self._largest, ratio)
        rounding = NOISE * torch.finfo(image.dtype).eps * self._largest * length
        for _ in range(2):  # Gram–Schmidt, twice is enough
            for p, q in zip(self._directions, self._images, strict=True):
                share = dot(q, image)
                image.addcmul_(share, q, value=-1)
                direction.addcmul_(share, p, value=-1)
        left = norm(image)
        is_new = torch.isfinite(left) & (left > DEPENDENT[image.dtype] * before) & (left > rounding)
        # Selected, not multiplied: zero times a number that is not finite is not zero.
        self._directions.append(torch.where(is_new, direction / left, 0.0))
        self._images.append(torch.where(is_new, image / left, 0.0))
        if len(self._images) > self._capacity:
            del self._directions[0], self._images[0]
