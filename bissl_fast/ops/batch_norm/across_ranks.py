"""The kernels of batch norm where statistics are those of all ranks' values.

Each has the arguments of the raw kernel of its name, behind the ranks and what gives this process's own kernels. All
ranks have as many values, so that a mean over the ranks of what is a mean, or a sum, on each is all that a kernel needs
to know of the others: one small collective. Forward and backward pass are the fused kernels around it. The tangents
are plain PyTorch: their fused kernels take sums and results in one.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bissl_fast.ops.batch_norm.outputs import empty_residual, memory_format
from bissl_fast.ops.collectives import Ranks, gathered, summed
from bissl_fast.ops.schemas import wide_dtype

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
    _, mean, rstd = own("fwd")(x, weight, bias, None, groups, False, eps)
    means, variances = gathered(torch.stack([mean, rstd.pow(-2) - eps])[None], ranks).unbind(1)  # (R, G, C)
    mean = means.mean(0)
    rstd = torch.rsqrt((variances + (means - mean).square()).mean(0) + eps)
    return own("apply")(x, weight, bias, residual, mean, rstd, groups, relu), mean, rstd


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
) -> tuple[Tensor, ...]:
    """``(dx, dresidual, sum_g, sum_gx, mean_g, mean_gx)``: this rank's sums, and their means over the ranks."""
    saved = (grad_out, x, out, weight, mean, rstd)
    *_, sum_g, sum_gx = own("bwd")(*saved, groups, relu, False)
    mean_g, mean_gx = over(ranks, torch.stack([sum_g, sum_gx])).unbind()
    dx, dresidual = own("bwd_apply")(*saved, mean_g, mean_gx, groups, relu, with_residual)
    return dx, dresidual, sum_g, sum_gx, mean_g, mean_gx


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
    at = Place(x, mean, rstd, groups)
    out_t = torch.zeros_like(at.xhat)
    if x_t is not None:
        moved = at.split(x_t)
        a, s = over(ranks, at.means(moved, at.xhat * moved)).unbind()
        out_t = at.per_channel(weight) * at.moved(moved, a, s)
    if weight_t is not None:
        out_t = out_t + at.per_channel(weight_t) * at.xhat
    if bias_t is not None:
        out_t = out_t + at.per_channel(bias_t)
    if residual_t is not None:
        out_t = out_t + at.split(residual_t)
    return at.joined(masked(out_t, at, out, relu))


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
    mean_g: Tensor,
    mean_gx: Tensor,
    groups: int,
    relu: bool,
    with_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(dx_t, dresidual_t, sum_g_t, sum_gx_t)`` with this rank's sums, from :func:`bwd`'s means."""
    at = Place(x, mean, rstd, groups)
    zero = torch.zeros_like(at.xhat)
    moved = zero if x_t is None else at.split(x_t)
    g = masked(at.split(grad_out), at, out, relu)
    g_t = zero if grad_out_t is None else masked(at.split(grad_out_t), at, out, relu)
    of_g, of_gx = (at.spread(sums / at.values) for sums in (mean_g, mean_gx))  # means over all values of g and g·xhat
    own_means = at.means(moved, at.xhat * moved, g * moved, g_t, g_t * at.xhat)
    a, s, gx, of_g_t, of_g_t_x = over(ranks, own_means).unbind()
    xhat_t, rstd_t = at.moved(moved, a, s), -at.rstd.square() * s
    of_gx_t = of_g_t_x + at.rstd * (gx - a * of_g - s * of_gx)  # the mean of g_t·xhat + g·xhat_t
    scale = at.per_channel(weight) * at.rstd
    scale_t = at.per_channel(weight) * rstd_t
    if weight_t is not None:
        scale_t = scale_t + at.per_channel(weight_t) * at.rstd
    dx_t = scale_t * (g - of_g - at.xhat * of_gx) + scale * (g_t - of_g_t - xhat_t * of_gx - at.xhat * of_gx_t)
    dresidual_t = at.joined(g_t) if with_residual else empty_residual(x, False)
    sum_g_t, sum_gx_t = (at.means(g_t, g_t * at.xhat + g * xhat_t) * at.values).flatten(2).unbind()
    return at.joined(dx_t), dresidual_t, sum_g_t, sum_gx_t


def over(ranks: Ranks, values: Tensor) -> Tensor:
    """The mean over the ranks."""
    return summed(values, ranks) / ranks.size


def masked(values: Tensor, at: "Place", out: Tensor, relu: bool) -> Tensor:
    """What passes the ReLU: values where the output is not zero, a NaN among them."""
    return torch.where(at.split(out) <= 0, 0.0, values) if relu else values


class Place:
    """Where a batch norm is differentiated: its input, wide and cut into groups ``(G, N/G, C, *spatial)``.

    Attributes:
        xhat: the input, normalised.
        rstd: ``(G, 1, C, 1, …)``.
        values: M, per group and channel on this rank.
    """

    def __init__(self, x: Tensor, mean: Tensor, rstd: Tensor, groups: int) -> None:
        self._x, self._groups = x, groups
        self.rstd = self.spread(rstd)
        self.xhat = (self.split(x) - self.spread(mean)) * self.rstd
        self.values = len(x) // groups * math.prod(x.shape[2:])

    def split(self, t: Tensor) -> Tensor:
        """A tensor shaped like the input."""
        return t.to(wide_dtype(t.dtype)).reshape(self._groups, -1, *t.shape[1:])

    def joined(self, t: Tensor) -> Tensor:
        """Back, in the dtype and layout of the input."""
        whole = t.reshape(self._x.shape).to(self._x.dtype)
        return whole.contiguous(memory_format=memory_format(self._x))

    def spread(self, t: Tensor) -> Tensor:
        """Statistics ``(G, C)``, to be broadcast."""
        return t.reshape(len(t), 1, -1, *[1] * (self._x.dim() - 2))

    def per_channel(self, t: Tensor) -> Tensor:
        """A weight ``(C,)``, to be broadcast."""
        return self.spread(t.to(self.xhat.dtype)[None])

    def means(self, *of_values: Tensor) -> Tensor:
        """Means over this rank's values, one above the other: ``(…, G, 1, C, 1, …)``."""
        axes = (1, *range(3, self.xhat.dim()))
        return torch.stack([t.mean(axes, keepdim=True) for t in of_values])

    def moved(self, x_t: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The tangent of xhat, from the means over all values of x_t and xhat·x_t."""
        return self.rstd * (x_t - a - self.xhat * s)
