"""The raw kernels of :mod:`bissl_fast.ops.batch_norm.schemas` in Triton, for both layouts and all four dtypes.

Each reads its tensors once for the sums (``batch_norm_sums``, two launches: partial sums, then their sum) and once for
the result (``batch_norm_values``, one launch): a reduction over a channel ends before its first result can be written,
and a channel does not stay on the chip. The arithmetic is float32, of float64 tensors float64. Values of tensors as
large as x that are moved, with a residual and a ReLU:

    ===========  ==========================  ==========================  =====
    kernel       read for the sums           read and written after      moved
    ===========  ==========================  ==========================  =====
    fwd          x                           x, residual, out                4
    apply                                    x, residual, out                3
    bwd          g, out, x                   g, out, x, dx, dresidual        8
    bwd_apply                                g, out, x, dx, dresidual        5
    jvp          x_t, x                      x_t, x, out, residual_t,        7
                                             out_t
    bwd_jvp      x_t, g_t, g, out, x         x_t, g_t, g, out, x,           12
                                             dx_t, dresidual_t
    ===========  ==========================  ==========================  =====

What ranks join (statistics, moments, tangent_moments) is the first half alone; given that, a kernel does the second.
Partial sums are at most five values per program and channel. The same inputs give the same bits on the same kind of
device.
"""

from typing import Any, overload

import torch
from torch import Tensor

from bissl_fast.ops.batch_norm.outputs import (
    empty_like,
    empty_planes,
    empty_residual,
    empty_statistics,
    memory_format,
)
from bissl_fast.ops.schemas import wide_dtype
from bissl_fast.ops.triton import batch_norm_sums as sums
from bissl_fast.ops.triton import batch_norm_tiles as tiles
from bissl_fast.ops.triton import batch_norm_values as values
from bissl_fast.ops.triton import plans
from bissl_fast.ops.triton.device import on_device_of_first
from bissl_fast.ops.triton.handles import launch


class Problem:
    """The matrix that x is on one of some ranks, and how kernels are launched on it."""

    def __init__(self, x: Tensor, groups: int, ranks: int = 1) -> None:
        if x.dim() < 2 or x.numel() == 0 or groups < 1 or x.shape[0] % groups:
            raise ValueError(f"x must be (N, C, ...), not empty and a multiple of {groups}, found {tuple(x.shape)}.")
        self.shape, self.device, self.wide = x.shape, x.device, wide_dtype(x.dtype)
        self.format = memory_format(x)
        rows, channels = x.shape[0] // groups, x.shape[1]
        run = x.numel() // (x.shape[0] * channels)
        last = self.format != torch.contiguous_format
        self.matrix = tiles.Matrix(groups, rows * run if last else rows, channels, 1 if last else run)
        self.sizes = {"statistics": self.matrix.statistics, "values": ranks * self.matrix.values}  # values of all ranks

    @overload
    def like_x(self, tensor: Tensor) -> Tensor: ...
    @overload
    def like_x(self, tensor: None) -> None: ...
    @overload
    def like_x(self, tensor: Tensor | None) -> Tensor | None: ...
    def like_x(self, tensor: Tensor | None) -> Tensor | None:
        """A tensor shaped like x, in x's layout."""
        if tensor is not None and tensor.shape != self.shape:
            raise ValueError(f"A tensor like x must be {tuple(self.shape)}, found {tuple(tensor.shape)}.")
        return None if tensor is None else tensor.contiguous(memory_format=self.format)

    def per_channel(self, tensor: Tensor | None) -> Tensor | None:
        """A weight or a bias."""
        if tensor is not None and tensor.shape != (self.matrix.channels,):
            raise ValueError(f"It must be ({self.matrix.channels},), found {tuple(tensor.shape)}.")
        return None if tensor is None else tensor.contiguous()

    def statistics(self, *found: Tensor) -> tuple[Tensor, ...]:
        """Statistics or sums."""
        for tensor in found:
            if tensor.shape != (self.matrix.groups, self.matrix.channels) or tensor.dtype != self.wide:
                expected = f"({self.matrix.groups}, {self.matrix.channels}) of {self.wide}"
                raise ValueError(f"Statistics must be {expected}, found {tuple(tensor.shape)} of {tensor.dtype}.")
        return tuple(tensor.contiguous() for tensor in found)

    def planes(self, found: Tensor, count: int) -> Tensor:
        """Several statistics or sums in one."""
        expected = (count, self.matrix.groups, self.matrix.channels)
        if found.shape != expected or found.dtype != self.wide:
            found_text = f"{tuple(found.shape)} of {found.dtype}"
            raise ValueError(f"Sums must be {expected} of {self.wide}, found {found_text}.")
        return found.contiguous()

    def partials(self, kernel: Any, planes: int, *operands: Tensor | None, tile: int | None = None) -> Tensor:
        """``(planes, blocks, G · C)``: what ``kernel`` sums of the operands."""
        matrix, cut = self.matrix, tiles.cut(self.matrix, tile or tiles.TILE)
        blocks, steps = cut.shared(plans.describe(self.device).processors)
        out = torch.empty((planes, blocks, matrix.statistics), dtype=self.wide, device=self.device)
        launch(
            kernel, (cut.columns * blocks,), *operands, out, matrix.rows, matrix.channels, matrix.run, blocks, steps,
            matrix.statistics, **cut.sides, num_warps=tiles.WARPS,
        )  # fmt: skip
        return out

    def join(self, kernel: Any, partials: Tensor, *operands: Tensor | None, **settings: Any) -> None:
        """Let ``kernel`` add up partial sums."""
        self.over_statistics(kernel, partials, *operands, blocks=partials.shape[1], **tiles.JOIN, **settings)

    def over_statistics(self, kernel: Any, *operands: Tensor | None, **settings: Any) -> None:
        """Let ``kernel`` work on what is there once per group and channel."""
        statistics = self.matrix.statistics
        grid = (-(-statistics // tiles.JOIN["COLUMNS"]),)
        launch(kernel, grid, *operands, statistics=statistics, **settings)

    def write(self, kernel: Any, *operands: Tensor | None, tile: int | None = None, **settings: Any) -> None:
        """Let ``kernel`` write every value once."""
        matrix, cut = self.matrix, tiles.cut(self.matrix, tile or tiles.TILE)
        launch(
            kernel, (cut.columns * cut.tiles,), *operands, matrix.rows, matrix.channels, matrix.run, cut.tiles,
            **settings, **cut.sides, num_warps=tiles.WARPS,
        )  # fmt: skip


@on_device_of_first
def statistics(x: Tensor, groups: int) -> Tensor:
    """Mean and variance."""
    problem = Problem(x, groups)
    x, found = problem.like_x(x), empty_planes(x, 2, groups)
    partials = problem.partials(sums.partial_statistics, 3, x)
    problem.join(sums.join_statistics, partials, *found.unbind(), values=problem.matrix.values, EPS=None)
    return found


@on_device_of_first
def fwd(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, relu: bool, eps: float,
    every: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, mean and rstd."""
    problem = Problem(x, groups)
    x = problem.like_x(x)
    mean, rstd = empty_statistics(x, groups), empty_statistics(x, groups)
    if every is None:
        partials = problem.partials(sums.partial_statistics, 3, x)
        problem.join(sums.join_statistics, partials, mean, rstd, values=problem.matrix.values, EPS=eps)
    else:
        ranks = every.shape[0] // 2
        given = problem.planes(every, 2 * ranks)
        problem.over_statistics(sums.join_ranks, given, mean, rstd, ranks=ranks, EPS=eps, **tiles.JOIN)
    return write_out(problem, x, weight, bias, residual, (mean, rstd), relu), mean, rstd


@on_device_of_first
def apply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    relu: bool,
) -> Tensor:
    """Output once more."""
    problem = Problem(x, groups)
    return write_out(problem, problem.like_x(x), weight, bias, residual, problem.statistics(mean, rstd), relu)


def write_out(
    problem: Problem,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    statistics: tuple[Tensor, ...],
    relu: bool,
) -> Tensor:
    """Output, given x in its layout, mean and rstd."""
    out = empty_like(x)
    problem.write(
        values.write_output, x, problem.per_channel(weight), problem.per_channel(bias), problem.like_x(residual),
        *statistics, out, RELU=relu,
    )  # fmt: skip
    return out


@on_device_of_first
def moments(
    v: Tensor, x: Tensor, out: Tensor, mean: Tensor, rstd: Tensor, groups: int, relu: bool
) -> Tensor:  # fmt: skip
    """Sums of v and of v · xhat."""
    problem = Problem(x, groups)
    mask = problem.like_x(out) if relu else None
    return moments_of(problem, problem.like_x(v), problem.like_x(x), mask, *problem.statistics(mean, rstd))


def moments_of(
    problem: Problem, v: Tensor, x: Tensor, mask: Tensor | None, mean: Tensor, rstd: Tensor
) -> Tensor:  # fmt: skip
    """The same, given tensors in x's layout; without a ReLU there is no mask."""
    found = empty_planes(x, 2, problem.matrix.groups)
    problem.join(sums.join_moments, problem.partials(sums.partial_moments, 2, v, mask, x, mean), rstd, found)
    return found


@on_device_of_first
def bwd(
    grad_out: Tensor, x: Tensor, out: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, groups: int, relu: bool,
    with_residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x and the residual, and the sums behind those of weight and bias."""
    problem = Problem(x, groups)
    grad_out, x, mask = problem.like_x(grad_out), problem.like_x(x), problem.like_x(out) if relu else None
    statistics = problem.statistics(mean, rstd)
    found = moments_of(problem, grad_out, x, mask, *statistics)
    return *write_gradients(problem, grad_out, x, mask, weight, statistics, found, with_residual), found


@on_device_of_first
def bwd_apply(
    grad_out: Tensor, x: Tensor, out: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, known: Tensor, groups: int,
    relu: bool, with_residual: bool, ranks: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x and the residual, given the sums."""
    problem = Problem(x, groups, ranks)
    grad_out, x, mask = problem.like_x(grad_out), problem.like_x(x), problem.like_x(out) if relu else None
    statistics = problem.statistics(mean, rstd)
    return write_gradients(problem, grad_out, x, mask, weight, statistics, problem.planes(known, 2), with_residual)


def write_gradients(
    problem: Problem,
    grad_out: Tensor,
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    statistics: tuple[Tensor, ...],
    known: Tensor,
    with_residual: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients, given tensors in x's layout, mean and rstd, and the sums; without a ReLU there is no mask."""
    dx, dresidual = empty_like(x), empty_residual(x, with_residual)
    problem.write(
        values.write_gradient, grad_out, mask, x, problem.per_channel(weight), *statistics, known, dx,
        dresidual if with_residual else None, **problem.sizes,
    )  # fmt: skip
    return dx, dresidual


@on_device_of_first
def jvp(
    x_t: Tensor | None, x: Tensor, out: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, weight_t: Tensor | None,
    bias_t: Tensor | None, residual_t: Tensor | None, groups: int, relu: bool, known: Tensor | None = None,
    ranks: int = 1,
) -> Tensor:  # fmt: skip
    """The output's tangent."""
    problem = Problem(x, groups, ranks)
    out_t = empty_like(x)
    x_t, x, residual_t = problem.like_x(x_t), problem.like_x(x), problem.like_x(residual_t)
    mask = problem.like_x(out) if relu else None
    mean, rstd = problem.statistics(mean, rstd)
    if known is not None:
        known = problem.planes(known, 2)
    elif x_t is not None:
        known = moments_of(problem, x_t, x, None, mean, rstd)
    problem.write(
        values.write_tangent, x_t, problem.per_channel(weight_t), problem.per_channel(bias_t), residual_t, x, mask,
        problem.per_channel(weight), mean, rstd, known, out_t, **problem.sizes,
    )  # fmt: skip
    return out_t


TANGENT_SHARE = 2
"""Of a tile, where five tensors and sums need the registers."""


@on_device_of_first
def tangent_moments(
    grad_out_t: Tensor | None, x_t: Tensor | None, grad_out: Tensor, x: Tensor, out: Tensor, mean: Tensor,
    rstd: Tensor, groups: int, relu: bool,
) -> Tensor:  # fmt: skip
    """Sums of x_t, x_t · xhat, g · x_t, g_t and g_t · xhat."""
    problem = Problem(x, groups)
    found = empty_planes(x, 5, groups)
    mask, (mean, rstd) = problem.like_x(out) if relu else None, problem.statistics(mean, rstd)
    along = (problem.like_x(x_t), problem.like_x(grad_out_t))
    read = (problem.like_x(grad_out), mask, problem.like_x(x), *along, mean)
    join_tangents(problem, read, rstd, found)
    return found


def join_tangents(
    problem: Problem, read: tuple[Tensor | None, ...], rstd: Tensor, found: Tensor, *turned: Tensor
) -> None:
    """The same, given g, the mask, x, both tangents and mean; and tangents of the sums, if these are given, too."""
    if read[3] is None and read[4] is None:
        for tensor in (found, *turned[1:]):
            tensor.zero_()
        return
    tile = max(1, tiles.TILE // TANGENT_SHARE)
    partials = problem.partials(sums.partial_tangent_moments, 5, *read, tile=tile)
    given = turned or (None, None)
    problem.join(sums.join_tangent_moments, partials, rstd, found, *given, values=problem.sizes["values"])


@on_device_of_first
def bwd_jvp(
    grad_out_t: Tensor | None, x_t: Tensor | None, weight_t: Tensor | None, grad_out: Tensor, x: Tensor, out: Tensor,
    weight: Tensor, mean: Tensor, rstd: Tensor, known: Tensor, groups: int, relu: bool, with_residual: bool,
    own_known: Tensor | None = None, joined: Tensor | None = None, own_joined: Tensor | None = None, ranks: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The tangents of what ``bwd`` gives."""
    problem = Problem(x, groups, ranks)
    dx_t, dresidual_t, sums_t = empty_like(x), empty_residual(x, with_residual), empty_planes(x, 2, groups)
    g_t, x_t, g, x = problem.like_x(grad_out_t), problem.like_x(x_t), problem.like_x(grad_out), problem.like_x(x)
    mask = problem.like_x(out) if relu else None
    (mean, rstd), known = problem.statistics(mean, rstd), problem.planes(known, 2)
    if joined is None or own_joined is None or own_known is None:
        joined = empty_planes(x, 5, groups)
        join_tangents(problem, (g, mask, x, x_t, g_t, mean), rstd, joined, known, sums_t)
    else:
        joined, own_joined = problem.planes(joined, 5), problem.planes(own_joined, 5)
        own = (own_joined, problem.planes(own_known, 2), rstd, sums_t)
        problem.over_statistics(
            sums.turn_sums, joined, *own, values=problem.sizes["values"], COLUMNS=tiles.JOIN["COLUMNS"]
        )
    if with_residual and g_t is None:
        dresidual_t.zero_()
    problem.write(
        values.write_gradient_tangent, g, mask, x, x_t, g_t, problem.per_channel(weight),
        problem.per_channel(weight_t), mean, rstd, known, joined, dx_t,
        dresidual_t if with_residual else None, tile=max(1, tiles.TILE // TANGENT_SHARE), **problem.sizes,
    )  # fmt: skip
    return dx_t, dresidual_t, sums_t
