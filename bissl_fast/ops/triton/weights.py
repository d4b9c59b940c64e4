# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, disable-error-code="untyped-decorator"
"""Triton kernel of the gradient and the product: a tile of ``S``, its softmax weights, times rows."""

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

from bissl_fast.ops.triton.tiles import (
    LOW_TERM,
    add_similarities,
    chunked_similarities,
    keep_pairs,
    load_rows,
    overlap,
    split_dot,
    split_half,
)

GOLDEN: tl.constexpr = tl.constexpr(-1640531527)  # 2³² (φ − 2): multiples of the golden ratio, less whole turns
NUDGE: tl.constexpr = tl.constexpr(2.0**-42)  # from 32 bits to one unit of float16's last place, 2⁻¹⁰


@triton.jit
def softmax_weights(
    s, t, factor, col_factor, mean, col_mean, scale, inv_temperature,
    TANGENT: tl.constexpr, ONE_EXP: tl.constexpr,
):  # fmt: skip
    """``P + Pᵀ`` and, with tangents, ``Ṗ + Ṗᵀ``, of a tile."""
    if ONE_EXP:
        e = tl.exp2((s - 1.0) * scale)
        weight = e * (factor[:, None] + col_factor[None, :])
        change = weight
        if TANGENT:
            change = (weight * t - e * (mean[:, None] + col_mean[None, :])) * inv_temperature
    else:
        p = tl.exp2((s - 1.0) * scale - factor[:, None])
        q = tl.exp2((s - 1.0) * scale - col_factor[None, :])
        weight = p + q
        change = weight
        if TANGENT:
            change = (p * (t - mean[:, None]) + q * (t - col_mean[None, :])) * inv_temperature
    return weight, change


@triton.jit
def split_weights(x, cols, SPLIT: tl.constexpr):
    """float32 -> two float16 terms, the first rounded up or down as a number of the column's own decides.

    Rows that are alike have equal weights. Rounded alike, these would have equal second terms, and what the product
    leaves out, second terms times second terms, would add up over the columns.
    """
    high, low = split_half(x, SPLIT)
    if SPLIT:
        nudge = (cols * GOLDEN).to(tl.float32) * NUDGE  # evenly over half a unit of the last place to either side
        place = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        high = (x + place * nudge[None, :]).to(tl.float16)
        low = ((x - high.to(tl.float32)) * LOW_TERM).to(tl.float16)
    return high, low


@triton.jit
def weighted_rows(
    packed, factors, means, out, part, batch, padded, share, scale, inv_temperature,
    TANGENT: tl.constexpr, CROSS: tl.constexpr, ONE_EXP: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``out[share, rows, dims]``: ``(P + Pᵀ) U`` over a share of the columns, partners left out.

    With tangents it is ``(Ṗ + Ṗᵀ) U + (P + Pᵀ) U̇``. ``factors`` hold, per row, 1 / Σ exp (``ONE_EXP``: one
    exponential serves a row and its mirror image) or log2 Σ exp((cos − 1) / τ) (two exponentials, safe at any
    temperature); ``means`` the tangents of the row log-sums.

    Rows of up to two ``CHUNK`` stay in shared memory, and a program writes all their dimensions. Wider rows
    are streamed chunk by chunk, and a program writes ``OUT`` dimensions (grid axis 2).
    """
    STAYS: tl.constexpr = WIDTH <= 2 * CHUNK
    HALVES: tl.constexpr = WIDTH == 2 * CHUNK
    row = tl.program_id(0) * ROWS
    dim = tl.program_id(2) * OUT
    rows = row + tl.arange(0, ROWS)
    factor = tl.load(factors + rows)
    mean = factor
    if TANGENT:
        mean = tl.load(means + rows)
    if STAYS:
        u, u_low, v, v_low = load_rows(packed, part, row, 0, ROWS, CHUNK, WIDTH, TANGENT, SPLIT)
        if HALVES:
            u2, u2_low, v2, v2_low = load_rows(packed, part, row, CHUNK, ROWS, CHUNK, WIDTH, TANGENT, SPLIT)
    first_col = 0
    last_col = 2 * padded
    if CROSS:
        first_col = tl.where(row < padded, padded, 0)
        last_col = first_col + padded
    begin = first_col + tl.program_id(1) * share * COLS
    total = tl.zeros((ROWS, OUT), tl.float32)
    total2 = tl.zeros((ROWS, OUT), tl.float32)
    for col in range(begin, tl.minimum(begin + share * COLS, last_col), COLS):
        cols = col + tl.arange(0, COLS)
        col_factor = tl.load(factors + cols)
        col_mean = col_factor
        if TANGENT:
            col_mean = tl.load(means + cols)
        if STAYS:
            w, w_low, x, x_low = load_rows(packed, part, col, 0, COLS, CHUNK, WIDTH, TANGENT, SPLIT)
            zero = tl.zeros((ROWS, COLS), tl.float32)
            s, t = add_similarities(zero, zero, u, u_low, v, v_low, w, w_low, x, x_low, TANGENT, SPLIT)
            if HALVES:
                w2, w2_low, x2, x2_low = load_rows(packed, part, col, CHUNK, COLS, CHUNK, WIDTH, TANGENT, SPLIT)
                s, t = add_similarities(
                    s, t, u2, u2_low, v2, v2_low, w2, w2_low, x2, x2_low, TANGENT, SPLIT
                )  # fmt: skip
        else:
            s, t = chunked_similarities(packed, part, row, col, ROWS, COLS, CHUNK, WIDTH, TANGENT, SPLIT)
            w, w_low, x, x_low = load_rows(packed, part, col, dim, COLS, OUT, WIDTH, TANGENT, SPLIT)
        special = overlap(row, col, ROWS, COLS) | overlap((row + padded) % (2 * padded), col, ROWS, COLS)
        if special | (col % padded + COLS > batch):
            s = keep_pairs(s, row, col, batch, padded, ROWS, COLS, CROSS)
        weight, change = softmax_weights(
            s, t, factor, col_factor, mean, col_mean, scale, inv_temperature, TANGENT, ONE_EXP
        )  # fmt: skip
        c, c_low = split_weights(change, cols, SPLIT)
        total = split_dot(c, c_low, w, w_low, total, SPLIT)
        if HALVES:
            total2 = split_dot(c, c_low, w2, w2_low, total2, SPLIT)
        if TANGENT:
            p, p_low = split_weights(weight, cols, SPLIT)
            total = split_dot(p, p_low, x, x_low, total, SPLIT)
            if HALVES:
                total2 = split_dot(p, p_low, x2, x2_low, total2, SPLIT)
    at = out + (tl.program_id(1).to(tl.int64) * 2 * padded + row) * WIDTH + dim
    at += tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, OUT)[None, :]
    tl.store(at, total)
    if HALVES:
        tl.store(at + OUT, total2)
