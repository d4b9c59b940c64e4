"""One Hessian by two operators: cheap products to solve with, and those that tell how well it was solved."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from bissl_fast.bilevel.parameters import ParameterVector
from bissl_fast.bilevel.products.hessian import HessianOperator, Mode, ProductsDtype
from bissl_fast.bilevel.products.loss import Loss
from bissl_fast.ops.collectives import Ranks

HALVED = "{reason} (each of two precisions has half of the budget)"


class TwoPrecisions:
    """A :class:`HessianOperator` in the parameters' dtype and one in a cheaper dtype, at the same point.

    Both hold linearisations: in memory it is two operators, and each has half of the budget. Where the loss draws
    random numbers both have the same masks.

    Args:
        loss: as of :class:`HessianOperator`.
        parameters: as there.
        batches: as there.
        mode: as there.
        dtype: of the rough products.
        memory_budget: bytes for both together.
        compiled: as there.
        weights: as there.
        ranks: as there.
        check_every: as there.

    Attributes:
        exact: the operator whose products are ``matvec``.
        rough: the other one.

    Raises:
        ValueError: as :class:`HessianOperator` does.

    Example:
        >>> both = TwoPrecisions(loss, theta, batches, dtype="bfloat16")  # doctest: +SKIP
        >>> x = refined(both, v, solve=lambda r: minimal_residual(both.rough, r)).x  # doctest: +SKIP
    """

    def __init__(
        self,
        loss: Loss,
        parameters: ParameterVector,
        batches: Sequence[Any],
        mode: Mode = "linearized",
        dtype: ProductsDtype = "bfloat16",
        memory_budget: int | None = None,
        compiled: bool | None = None,
        weights: Sequence[float] | None = None,
        ranks: Ranks | None = None,
        check_every: int | None = None,
    ) -> None:
        def operator(dtype: ProductsDtype) -> HessianOperator:
            shared: Any = {"weights": weights, "ranks": ranks, "check_every": check_every}
            return HessianOperator(loss, parameters, batches, mode, None, half, dtype, compiled, **shared)

        half = None if memory_budget is None else memory_budget // 2
        try:
            with same_draws() as again:
                self.exact = operator("float32")
                again()
                self.rough = operator(dtype)
        except ValueError as error:
            raise ValueError(HALVED.format(reason=error) if "memory budget" in str(error) else str(error)) from error

    def update(self, batches: Sequence[Any], weights: Sequence[float] | None = None) -> None:
        """Both move, as :meth:`HessianOperator.update` says."""
        with same_draws() as again:
            self.exact.update(batches, weights)
            again()
            self.rough.update(batches, weights)

    def release(self) -> None:
        """Let both go of batches and linearisations."""
        self.exact.release()
        self.rough.release()

    @property
    def kept_bytes(self) -> int:
        """Bytes that the kept linearisations of both hold."""
        return self.exact.kept_bytes + self.rough.kept_bytes

    @property
    def segments(self) -> Sequence[int]:
        return self.exact.segments

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        """The exact operator's product ``(L,)``."""
        return self.exact.matvec(vector)

    def matmat(self, vectors: torch.Tensor) -> torch.Tensor:
        """Its products with the rows of ``(R, L)``."""
        return self.exact.matmat(vectors)


@contextmanager
def same_draws() -> Iterator[Callable[[], None]]:
    """Yields what puts PyTorch's generator back to where the block began."""
    state = torch.get_rng_state()
    yield lambda: torch.set_rng_state(state)
