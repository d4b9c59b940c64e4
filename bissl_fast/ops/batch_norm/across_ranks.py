"""The kernels of batch norm where statistics are those of all ranks' values.

Each has the arguments of the raw kernel of its name, behind the ranks and what gives this process's own kernels. All
ranks have as many values, so that a mean over the ranks of what is a mean, or a sum, on each is all that a kernel needs
to know of the others: one small collective, around which this process's fused kernels run. Those of the tangents take
sums and results in one, so that others stand in for them: ``bwd`` sums any tensor and its product with xhat, and
``bwd_apply``, without a mask, is the Jacobian in x, which is symmetric.
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
    at = Place(own, x, mean, rstd, groups)
    moved = None if x_t is None else at.wide(x_t)
    out_t = torch.zeros_like(at.x) if moved is None else at.jacobian(moved, weight, over(ranks, at.sums(moved)))
    if residual_t is not None:
        out_t = out_t + at.wide(residual_t)
    if weight_t is not None or bias_t is not None:
        scale, shift = (torch.zeros_like(weight) if t is None else t for t in (weight_t, bias_t))
        out_t = own("apply")(at.x, scale, shift, out_t, mean, rstd, groups, False)
    return at.narrow(masked(out_t, out, relu))


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
    """``(dx_t, dresidual_t, sum_g_t, sum_gx_t)`` with this rank's sums, from :func:`bwd`'s means.

    With a, s, b, p, q the means over all values of x_t, xhat x_t, g x_t, g_t and g_t xhat, and m, n those of g and
    g xhat, dx_t = weight rstd (y − m' − xhat n') for y = g_t − rstd s g − rstd n x_t, m' = p − rstd (s m + n a) and
    n' = q + rstd (b − a m − 3 s n); weight_t adds weight_t rstd (g − m − xhat n).
    """
    at = Place(own, x, mean, rstd, groups)
    g, y = masked(at.wide(grad_out), out, relu), None
    of_g_t = of_x_t = mean.new_zeros(2, *mean.shape)
    g_x = torch.zeros_like(mean)
    if grad_out_t is not None:
        y = masked(at.wide(grad_out_t), out, relu)
        of_g_t = at.sums(y)
    dresidual_t = at.narrow(torch.zeros_like(g) if y is None else y) if with_residual else empty_residual(x, False)
    if x_t is not None:
        moved = at.wide(x_t)
        of_x_t, g_x = at.sums(moved), at.sum(g * moved)
    a, s, b, p, q = over(ranks, torch.stack([*of_x_t, g_x, *of_g_t]) / at.values).unbind()
    m, n = mean_g / at.values, mean_gx / at.values
    dx_t = torch.zeros_like(g)
    if x_t is not None:
        turned = at.spread(rstd * s) * g + at.spread(rstd * n) * moved
        y = -turned if y is None else y - turned
    if y is not None:
        means = (p - rstd * (s * m + n * a), q + rstd * (b - a * m - 3 * s * n))
        dx_t = at.jacobian(y, weight, torch.stack(means) * at.values)
    if weight_t is not None:
        dx_t = dx_t + at.jacobian(g, weight_t, torch.stack([mean_g, mean_gx]))
    own_g, own_gx = at.sums(g)
    sum_gx_t = of_g_t[1] + rstd * (g_x - a * own_g - s * own_gx)
    return at.narrow(dx_t), dresidual_t, of_g_t[0].clone(), sum_gx_t


def over(ranks: Ranks, values: Tensor) -> Tensor:
    """The mean over the ranks."""
    return summed(values, ranks) / ranks.size


def masked(values: Tensor, out: Tensor, relu: bool) -> Tensor:
    """What passes the ReLU: values where the output is not zero, a NaN among them."""
    return torch.where(out <= 0, 0.0, values) if relu else values


class Place:
    """Where a batch norm is differentiated, and this process's kernels there, in its wide dtype.

    Args:
        own: the kernels.
        x: the input.
        mean: ``(G, C)``.
        rstd: likewise.
        groups: G.

    Attributes:
        x: wide.
        values: M, per group and channel on this rank.
    """

    def __init__(self, own: Own, x: Tensor, mean: Tensor, rstd: Tensor, groups: int) -> None:
        self._own, self._dtype, self._statistics, self._groups = own, x.dtype, (mean, rstd), groups
        self.x = self.wide(x)
        self.values = len(x) // groups * math.prod(x.shape[2:])

    def wide(self, t: Tensor) -> Tensor:
        """A tensor shaped like the input, as the kernels here take it."""
        return t.to(wide_dtype(t.dtype))

    def narrow(self, t: Tensor) -> Tensor:
        """Back, in the input's dtype and layout."""
        return t.to(self._dtype).contiguous(memory_format=memory_format(self.x))

    def sums(self, t: Tensor) -> Tensor:
        """Sums of a tensor and of its product with xhat over this rank's values, ``(2, G, C)``."""
        weight = torch.ones_like(self._statistics[0][0])
        *_, plain, with_xhat = self._own("bwd")(
            t, self.x, self.x, weight, *self._statistics, self._groups, False, False
        )
        return torch.stack([plain, with_xhat])

    def sum(self, t: Tensor) -> Tensor:
        """Its sum over this rank's values, ``(G, C)``."""
        grouped = t.reshape(self._groups, -1, *t.shape[1:])
        return grouped.sum((1, *range(3, grouped.dim())))

    def jacobian(self, t: Tensor, weight: Tensor, sums: Tensor) -> Tensor:
        """``weight rstd (t − sum / M − xhat sum_x / M)``, from sums ``(2, G, C)``."""
        at = (t, self.x, self.x, weight, *self._statistics, *sums.unbind(), self._groups, False, False)
        found: Tensor = self._own("bwd_apply")(*at)[0]
        return found

    def spread(self, t: Tensor) -> Tensor:
        """``(G, C)`` to be broadcast with a tensor shaped like the input."""
        rows = t.repeat_interleave(len(self.x) // self._groups, 0) if self._groups > 1 else t
        return rows.reshape(*rows.shape, *[1] * (self.x.dim() - 2))
