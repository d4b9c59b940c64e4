# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, disable-error-code="untyped-decorator"
"""Triton kernels that sum over the channels of a batch norm, in two stages.

``partial_*`` read the tensors once: a program adds up ``steps`` tiles place by place, then its places, and writes one
row of ``partials``: ``(planes, blocks, G · C)``. ``join_*`` add the rows up. Every sum has one writer and a fixed
order. What is a product with xhat is summed as one with x − mean.
"""

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

from bissl_fast.ops.triton.batch_norm_tiles import load, load_channels, load_masked, place_of_program, place_of_tile

SIZES = ["rows", "blocks", "steps", "statistics", "values"]  # compiled for no value in particular


@triton.jit
def over_places(tile):
    """``(ROWS, CHANNELS, SPAN) -> (CHANNELS,)``."""
    return tl.sum(tl.sum(tile, 2), 0)


@triton.jit
def store_partial(partials, PLANE: tl.constexpr, value, block, blocks, group, channel, channels, statistics):
    at = (PLANE * blocks + block).to(tl.int64) * statistics + group * channels + channel
    tl.store(partials + at, value, mask=channel < channels)


@triton.jit(do_not_specialize=SIZES)
def partial_statistics(
    x, partials, rows, channels, run, blocks, steps, statistics,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Planes: how many values a block has, their mean, and their squared distances from it (Welford, 1962)."""
    group, block, channel = place_of_program(blocks, channels, CHANNELS)
    wide: tl.constexpr = partials.dtype.element_ty
    count = tl.zeros((ROWS, 1, SPAN), wide)
    mean = tl.zeros((ROWS, CHANNELS, SPAN), wide)
    squares = tl.zeros((ROWS, CHANNELS, SPAN), wide)
    for i in range(steps):
        base, offset, exists = place_of_tile(block * steps + i, group, channel, rows, channels, run, ROWS, SPAN)
        inside = exists & (channel < channels)[None, :, None]
        value = load(x, base, offset, inside, wide)
        count += exists.to(wide)
        distance = tl.where(inside, value - mean, 0.0)
        mean += distance * (1.0 / tl.maximum(count, 1.0))
        squares += distance * (value - mean)
    seen = over_places(count)  # (1,)
    centre = over_places(mean * count) / seen
    distance = mean - centre[None, :, None]
    excess = over_places(distance * count) / seen  # what rounding left of the centre
    squares = over_places(squares + distance * distance * count) - seen * excess * excess
    everywhere = seen + tl.zeros((CHANNELS,), wide)
    store_partial(partials, 0, everywhere, block, blocks, group, channel, channels, statistics)
    store_partial(partials, 1, centre + excess, block, blocks, group, channel, channels, statistics)
    store_partial(partials, 2, squares, block, blocks, group, channel, channels, statistics)


@triton.jit(do_not_specialize=SIZES)
def partial_moments(
    v, out, x, mean, partials, rows, channels, run, blocks, steps, statistics,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Planes: sums of v and of v · (x − mean), v being masked by ``out`` unless that is None."""
    group, block, channel = place_of_program(blocks, channels, CHANNELS)
    wide: tl.constexpr = partials.dtype.element_ty
    centre = load_channels(mean, group * channels + channel, channel < channels, wide)
    sums = tl.zeros((ROWS, CHANNELS, SPAN), wide)
    products = tl.zeros((ROWS, CHANNELS, SPAN), wide)
    for i in range(steps):
        base, offset, exists = place_of_tile(block * steps + i, group, channel, rows, channels, run, ROWS, SPAN)
        inside = exists & (channel < channels)[None, :, None]
        value = load_masked(v, out, base, offset, inside, wide)
        sums += value
        products += value * (load(x, base, offset, inside, wide) - centre)
    store_partial(partials, 0, over_places(sums), block, blocks, group, channel, channels, statistics)
    store_partial(partials, 1, over_places(products), block, blocks, group, channel, channels, statistics)


@triton.jit(do_not_specialize=SIZES)
def partial_tangent_moments(
    g, out, x, x_t, g_t, mean, partials, rows, channels, run, blocks, steps, statistics,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Planes: sums of x_t, x_t · (x − mean), g · x_t, g_t and g_t · (x − mean); an absent tangent has zeros."""
    group, block, channel = place_of_program(blocks, channels, CHANNELS)
    wide: tl.constexpr = partials.dtype.element_ty
    centre = load_channels(mean, group * channels + channel, channel < channels, wide)
    moved = tl.zeros((ROWS, CHANNELS, SPAN), wide)
    moved_x = tl.zeros((ROWS, CHANNELS, SPAN), wide)
    moved_g = tl.zeros((ROWS, CHANNELS, SPAN), wide)
    turned = tl.zeros((ROWS, CHANNELS, SPAN), wide)
    turned_x = tl.zeros((ROWS, CHANNELS, SPAN), wide)
    for i in range(steps):
        base, offset, exists = place_of_tile(block * steps + i, group, channel, rows, channels, run, ROWS, SPAN)
        inside = exists & (channel < channels)[None, :, None]
        distance = load(x, base, offset, inside, wide) - centre
        if x_t is not None:
            tangent = load(x_t, base, offset, inside, wide)
            moved += tangent
            moved_x += tangent * distance
            moved_g += tangent * load_masked(g, out, base, offset, inside, wide)
        if g_t is not None:
            tangent = load_masked(g_t, out, base, offset, inside, wide)
            turned += tangent
            turned_x += tangent * distance
    store_partial(partials, 0, over_places(moved), block, blocks, group, channel, channels, statistics)
    store_partial(partials, 1, over_places(moved_x), block, blocks, group, channel, channels, statistics)
    store_partial(partials, 2, over_places(moved_g), block, blocks, group, channel, channels, statistics)
    store_partial(partials, 3, over_places(turned), block, blocks, group, channel, channels, statistics)
    store_partial(partials, 4, over_places(turned_x), block, blocks, group, channel, channels, statistics)


@triton.jit
def load_partials(partials, PLANE: tl.constexpr, first, column, blocks, statistics, BLOCKS: tl.constexpr):
    """``(BLOCKS, COLUMNS)`` of a plane."""
    block = first + tl.arange(0, BLOCKS)
    inside = (block < blocks)[:, None] & (column < statistics)[None, :]
    at = (PLANE * blocks + block).to(tl.int64)[:, None] * statistics + column[None, :]
    return tl.load(partials + at, mask=inside, other=0.0)


@triton.jit
def over_blocks(
    partials, PLANE: tl.constexpr, column, blocks, statistics, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """``(COLUMNS,)``: the sums of a plane."""
    total = tl.zeros((BLOCKS, COLUMNS), partials.dtype.element_ty)
    for first in range(0, blocks, BLOCKS):
        total += load_partials(partials, PLANE, first, column, blocks, statistics, BLOCKS)
    return tl.sum(total, 0)


@triton.jit
def inverse_root(value):
    """1 / sqrt(value), rounded as plain PyTorch rounds it."""
    return 1.0 / tl.sqrt(value) if value.dtype.is_fp64() else tl.div_rn(1.0, tl.sqrt_rn(value))


@triton.jit(do_not_specialize=SIZES)
def join_statistics(
    partials, mean, rstd, blocks, statistics, values,
    EPS: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mean and rstd from those of the blocks (Chan, Golub and LeVeque, 1979): nothing cancels. No EPS: variance."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    wide: tl.constexpr = partials.dtype.element_ty
    size = values.to(wide)
    total = tl.zeros((BLOCKS, COLUMNS), wide)
    for first in range(0, blocks, BLOCKS):
        count = load_partials(partials, 0, first, column, blocks, statistics, BLOCKS)
        total += count * load_partials(partials, 1, first, column, blocks, statistics, BLOCKS)
    centre = tl.sum(total, 0) / size
    excess = tl.zeros((BLOCKS, COLUMNS), wide)
    squares = tl.zeros((BLOCKS, COLUMNS), wide)
    for first in range(0, blocks, BLOCKS):
        count = load_partials(partials, 0, first, column, blocks, statistics, BLOCKS)
        distance = load_partials(partials, 1, first, column, blocks, statistics, BLOCKS) - centre[None, :]
        excess += count * distance
        squares += load_partials(partials, 2, first, column, blocks, statistics, BLOCKS) + count * distance * distance
    left = tl.sum(excess, 0) / size  # of the centre, by rounding
    variance = tl.sum(squares, 0) / size - left * left
    variance = tl.where(variance < 0, 0.0, variance)  # a NaN stays
    inside = column < statistics
    tl.store(mean + column, centre + left, mask=inside)
    tl.store(rstd + column, variance if EPS is None else inverse_root(variance + EPS), mask=inside)


@triton.jit
def load_ranks(every, PLANE: tl.constexpr, first, column, ranks, statistics, BLOCKS: tl.constexpr):
    """``(BLOCKS, COLUMNS)`` of what some ranks gave: plane 0 or 1 of each."""
    rank = first + tl.arange(0, BLOCKS)
    inside = (rank < ranks)[:, None] & (column < statistics)[None, :]
    at = (2 * rank + PLANE).to(tl.int64)[:, None] * statistics + column[None, :]
    return tl.load(every + at, mask=inside, other=0.0), (rank < ranks)[:, None]


@triton.jit(do_not_specialize=["ranks", "statistics"])
def join_ranks(
    every, mean, rstd, ranks, statistics, EPS: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Mean and rstd from mean and variance of ranks that have as many values each, likewise."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    wide: tl.constexpr = every.dtype.element_ty
    size = ranks.to(wide)
    total = tl.zeros((BLOCKS, COLUMNS), wide)
    for first in range(0, ranks, BLOCKS):
        total += load_ranks(every, 0, first, column, ranks, statistics, BLOCKS)[0]
    centre = tl.sum(total, 0) / size
    excess = tl.zeros((BLOCKS, COLUMNS), wide)
    squares = tl.zeros((BLOCKS, COLUMNS), wide)
    for first in range(0, ranks, BLOCKS):
        own, there = load_ranks(every, 0, first, column, ranks, statistics, BLOCKS)
        distance = tl.where(there, own - centre[None, :], 0.0)
        excess += distance
        squares += load_ranks(every, 1, first, column, ranks, statistics, BLOCKS)[0] + distance * distance
    left = tl.sum(excess, 0) / size  # of the centre, by rounding
    variance = tl.sum(squares, 0) / size - left * left
    variance = tl.where(variance < 0, 0.0, variance)  # a NaN stays
    inside = column < statistics
    tl.store(mean + column, centre + left, mask=inside)
    tl.store(rstd + column, inverse_root(variance + EPS), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def join_moments(
    partials, rstd, moments, blocks, statistics, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Sums of v and of v · xhat, one plane after the other."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < statistics
    scale = tl.load(rstd + column, mask=inside, other=0.0)
    total = over_blocks(partials, 0, column, blocks, statistics, BLOCKS, COLUMNS)
    product = scale * over_blocks(partials, 1, column, blocks, statistics, BLOCKS, COLUMNS)
    tl.store(moments + column, total, mask=inside)
    tl.store(moments + statistics + column, product, mask=inside)


@triton.jit
def store_turned(
    sums_t, moved, moved_x, own_g, own_t, own_x, sums, scale, column, statistics, size
):  # fmt: skip
    """The tangents of sum_g and sum_gx: of a process's own sums, along the moments of x_t over all ranks."""
    inside = column < statistics
    known = tl.load(sums + column, mask=inside, other=0.0)
    known_x = tl.load(sums + statistics + column, mask=inside, other=0.0)
    tl.store(sums_t + column, own_t, mask=inside)
    turned = own_x + scale * (own_g - (moved * known + moved_x * known_x) / size)
    tl.store(sums_t + statistics + column, turned, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def join_tangent_moments(
    partials, rstd, moments, sums, sums_t, blocks, statistics, values, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Sums of x_t, x_t · xhat, g · x_t, g_t and g_t · xhat; of one process alone also the tangents of its sums."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < statistics
    scale = tl.load(rstd + column, mask=inside, other=0.0)
    moved = over_blocks(partials, 0, column, blocks, statistics, BLOCKS, COLUMNS)
    moved_x = scale * over_blocks(partials, 1, column, blocks, statistics, BLOCKS, COLUMNS)
    moved_g = over_blocks(partials, 2, column, blocks, statistics, BLOCKS, COLUMNS)
    turned = over_blocks(partials, 3, column, blocks, statistics, BLOCKS, COLUMNS)
    turned_x = scale * over_blocks(partials, 4, column, blocks, statistics, BLOCKS, COLUMNS)
    tl.store(moments + column, moved, mask=inside)
    tl.store(moments + statistics + column, moved_x, mask=inside)
    tl.store(moments + 2 * statistics + column, moved_g, mask=inside)
    tl.store(moments + 3 * statistics + column, turned, mask=inside)
    tl.store(moments + 4 * statistics + column, turned_x, mask=inside)
    if sums is not None:
        size = values.to(partials.dtype.element_ty)
        store_turned(sums_t, moved, moved_x, moved_g, turned, turned_x, sums, scale, column, statistics, size)


@triton.jit
def load_plane(planes, PLANE: tl.constexpr, column, statistics):
    """``(COLUMNS,)`` of a plane of sums."""
    return tl.load(planes + PLANE * statistics + column, mask=column < statistics, other=0.0)


@triton.jit(do_not_specialize=SIZES)
def turn_sums(
    moments, own_moments, own_sums, rstd, sums_t, statistics, values, COLUMNS: tl.constexpr
):  # fmt: skip
    """The tangents of a process's own sums, from moments over all ranks and its own."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    size = values.to(moments.dtype.element_ty)
    scale = tl.load(rstd + column, mask=column < statistics, other=0.0)
    moved = load_plane(moments, 0, column, statistics)
    moved_x = load_plane(moments, 1, column, statistics)
    own_g = load_plane(own_moments, 2, column, statistics)
    own_t = load_plane(own_moments, 3, column, statistics)
    own_x = load_plane(own_moments, 4, column, statistics)
    store_turned(sums_t, moved, moved_x, own_g, own_t, own_x, own_sums, scale, column, statistics, size)
