"""Log-sums of products, with derivatives exact to second order: reverse, forward, and either over the other.

``LogSums`` → ``LogSumsGradient`` → ``LogSumsProduct``, each the derivative of the one before, and ``LogSumsTangent``
for forward mode alone. With ``ℓ = Σ_i c_i lse_i``, the gradient is ∇ℓ in (x, y), and its tangent along (x_t, y_t) is
∇²ℓ times that: symmetric, so that reverse over reverse and forward over reverse meet in one kernel. The last of the
chain refuses to be differentiated.
"""

from typing import Any

import torch
from torch import Tensor

from bissl_fast.ops.contrastive import FORWARD_TWICE, NO_VMAP, THIRD_ORDER, refuse_forward_over_forward
from bissl_fast.ops.functions import TwiceDifferentiable
from bissl_fast.ops.log_sums import kernels as kernels  # declares the ops
from bissl_fast.ops.schemas import wide_dtype


def log_sums(x: Tensor, y: Tensor, scale: float, skip_diagonal: bool = False) -> Tensor:
    """``log Σ_j exp(scale · x_i·y_j)``, in O((N + M) D) memory.

    Args:
        x: ``(N, D)``, floating-point.
        y: ``(M, D)``.
        scale: a finite number, 1/τ.
        skip_diagonal: leave out j = i; then M = N ≥ 2.

    Returns:
        ``(N,)``: float64 for float64 rows, float32 for all others.

    Raises:
        ValueError: Shapes that do not fit.
        NotImplementedError: A third derivative was asked for.

    Example:
        >>> log_sums(torch.zeros(2, 3), torch.zeros(4, 3), scale=2.0)
        tensor([1.3863, 1.3863])
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or len(x) == 0 or len(y) == 0:
        raise ValueError(f"Log-sums take rows (N, D) and (M, D), found {tuple(x.shape)} and {tuple(y.shape)}.")
    if skip_diagonal and (len(x) != len(y) or len(x) < 2):
        raise ValueError(f"Log-sums without a diagonal take 2 rows or more, as many of both, found {len(x)}, {len(y)}.")
    wide = wide_dtype(x.dtype)
    found: Tensor = LogSums.apply(x.to(wide), y.to(wide), float(scale), skip_diagonal)
    return found


class LogSums(TwiceDifferentiable):
    """``(x, y) -> lse``."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(x: Tensor, y: Tensor, scale: float, skip: bool) -> Tensor:
        lse: Tensor = torch.ops.bissl_fast.log_sums_fwd(x, y, scale, skip)
        return lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, y, *ctx.settings = inputs
        ctx.save_for_backward(x, y, output)
        ctx.save_for_forward(x, y, output)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
        x, y, lse = ctx.saved_tensors
        return *LogSumsGradient.apply(c, x, y, lse.detach(), *ctx.settings), None, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, y_t: Tensor, *_: None) -> Tensor:
        refuse_forward_over_forward(FORWARD_TWICE)
        x, y, lse = ctx.saved_tensors
        lse_t: Tensor = LogSumsTangent.apply(x_t, y_t, x, y, lse.detach(), *ctx.settings)
        return lse_t


class LogSumsTangent(TwiceDifferentiable):
    """The tangent of ``lse`` along ``(x_t, y_t)``."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(x_t: Tensor, y_t: Tensor, x: Tensor, y: Tensor, lse: Tensor, scale: float, skip: bool) -> Tensor:
        lse_t: Tensor = torch.ops.bissl_fast.log_sums_jvp(x_t, y_t, x, y, lse, scale, skip)
        return lse_t

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, scale, skip = inputs
        ctx.settings = (scale, skip)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
        x_t, y_t, *saved = ctx.saved_tensors
        of_tangents = LogSumsGradient.apply(c, *saved, *ctx.settings)
        _, *of_rows = LogSumsProduct.apply(None, x_t, y_t, c, *saved, *ctx.settings)
        return *of_tangents, *of_rows, None, None, None

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> Tensor:
        refuse_forward_over_forward(FORWARD_TWICE)
        raise NotImplementedError(THIRD_ORDER)


class LogSumsGradient(TwiceDifferentiable):
    """The gradient of ``Σ c_i lse_i`` in x and y."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(c: Tensor, x: Tensor, y: Tensor, lse: Tensor, scale: float, skip: bool) -> tuple[Tensor, Tensor]:
        gx, gy = torch.ops.bissl_fast.log_sums_bwd(c, x, y, lse, scale, skip)
        return gx, gy

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, scale, skip = inputs
        ctx.settings = (scale, skip)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, vx: Tensor, vy: Tensor) -> tuple[Tensor | None, ...]:
        slope, *products = LogSumsProduct.apply(None, vx, vy, *ctx.saved_tensors, *ctx.settings)
        return slope, *products, None, None, None

    @staticmethod
    def jvp(ctx: Any, c_t: Tensor, x_t: Tensor, y_t: Tensor, *_: None) -> tuple[Tensor, ...]:
        refuse_forward_over_forward(FORWARD_TWICE)
        _, *products = LogSumsProduct.apply(c_t, x_t, y_t, *ctx.saved_tensors, *ctx.settings)
        return tuple(products)


class LogSumsProduct(TwiceDifferentiable):
    """``lse_t`` and the tangents of ``LogSumsGradient`` along (c_t, x_t, y_t); without c_t, ∇²ℓ times (x_t, y_t)."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(
        c_t: Tensor | None,
        x_t: Tensor,
        y_t: Tensor,
        c: Tensor,
        x: Tensor,
        y: Tensor,
        lse: Tensor,
        scale: float,
        skip: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        lse_t, gx_t, gy_t = torch.ops.bissl_fast.log_sums_bwd_jvp(c_t, x_t, y_t, c, x, y, lse, scale, skip)
        return lse_t, gx_t, gy_t

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(THIRD_ORDER)

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(THIRD_ORDER)
