"""The kernels of batch norm where statistics are those of all ranks' values.

Each has the arguments of the raw kernel of its name, behind the ranks and what gives this process's own kernels, and is
three steps: one kernel forms this process's sums, one collective joins them, one kernel does the rest. All ranks have
as many values.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bissl_fast.ops.collectives import Ranks, gathered, summed

Own = Callable[[str], Callable[..., Any]]
"""A raw kernel of this process by its name."""


def fwd(
    ranks: Ranks,
    own: Own,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    groups: int,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(out, mean, rstd)``; variances are joined as by Chan, Golub and LeVeque, without a difference of squares."""
    every = gathered(own("statistics")(x, groups), ranks)
    found: tuple[Tensor, Tensor, Tensor] = own("fwd")(x, weight, bias, residual, groups, relu, eps, every)
    return found


def bwd(
    ranks: Ranks,
    own: Own,
    grad_out: Tensor,
    x: Tensor,
    out: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    relu: bool,
    with_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(dx, dresidual, sums, own_sums)``."""
    own_sums = own("moments")(grad_out, x, out, mean, rstd, groups, relu)
    sums = summed(own_sums, ranks)
    saved = (grad_out, x, out, weight, mean, rstd)
    dx, dresidual = own("bwd_apply")(*saved, sums, groups, relu, with_residual, ranks.size)
    return dx, dresidual, sums, own_sums


def jvp(
    ranks: Ranks,
    own: Own,
    x_t: Tensor | None,
    x: Tensor,
    out: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight_t: Tensor | None,
    bias_t: Tensor | None,
    residual_t: Tensor | None,
    groups: int,
    relu: bool,
) -> Tensor:
    """``out_t``."""
    moments = None if x_t is None else summed(own("moments")(x_t, x, out, mean, rstd, groups, False), ranks)
    saved = (x, out, weight, mean, rstd)
    out_t: Tensor = own("jvp")(x_t, *saved, weight_t, bias_t, residual_t, groups, relu, moments, ranks.size)
    return out_t


def bwd_jvp(
    ranks: Ranks,
    own: Own,
    grad_out_t: Tensor | None,
    x_t: Tensor | None,
    weight_t: Tensor | None,
    grad_out: Tensor,
    x: Tensor,
    out: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    groups: int,
    relu: bool,
    with_residual: bool,
    own_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(dx_t, dresidual_t, sums_t)``, the last of this rank's own sums."""
    own_moments = own("tangent_moments")(grad_out_t, x_t, grad_out, x, out, mean, rstd, groups, relu)
    moments = summed(own_moments, ranks)
    along, saved = (grad_out_t, x_t, weight_t), (grad_out, x, out, weight, mean, rstd, sums)
    found: tuple[Tensor, Tensor, Tensor] = own("bwd_jvp")(
        *along, *saved, groups, relu, with_residual, own_sums, moments, own_moments, ranks.size
    )
    return found
