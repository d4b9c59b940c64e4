"""What a linear operator is: anything with ``matvec`` and ``segments``."""

from collections.abc import Sequence
from typing import Protocol

import torch

from bissl_fast.ops.krylov import check_tensors


class Operator(Protocol):
    """A symmetric linear map on vectors ``(L,)``.

    ``segments`` are the lengths of the parameter tensors that the vector is made of; layer-wise solvers need them.
    """

    @property
    def segments(self) -> Sequence[int]: ...

    def matvec(self, vector: torch.Tensor) -> torch.Tensor: ...


def require_operator(given: object) -> None:
    """Raise unless it can be multiplied: other libraries' solvers take a function or a matrix in its place.

    Raises:
        ValueError: if it has no ``matvec``.
    """
    if not hasattr(given, "matvec"):
        found = f"{type(given).__module__}.{type(given).__name__}"
        raise ValueError(f"an operator is expected, with matvec(vector) and segments as HessianOperator, found {found}")


class ShiftedOperator:
    """``v + scale · A v``: the identity that makes an implicit gradient's system well posed.

    Args:
        operator: A.
        scale: the factor, 1/(λ + λ_damp) in BiSSL (Algorithm 2, line 7).

    Raises:
        ValueError: if A is no operator.
    """

    def __init__(self, operator: Operator, scale: float) -> None:
        require_operator(operator)
        self._operator = operator
        self._scale = scale

    @property
    def segments(self) -> Sequence[int]:
        return self._operator.segments

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        """``(L,)`` to ``(L,)``; the result is detached, as products are."""
        check_tensors({"vector": vector})
        vector = vector.detach()
        return torch.add(vector, self._operator.matvec(vector), alpha=self._scale)
