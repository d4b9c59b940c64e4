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


class ShiftedOperator:
    """``v + scale · A v``: the identity that makes an implicit gradient's system well posed.

    Args:
        operator: A.
        scale: the factor, 1/(λ + λ_damp) in BiSSL (Algorithm 2, line 7).
    """

    def __init__(self, operator: Operator, scale: float) -> None:
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
