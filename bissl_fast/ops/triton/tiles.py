# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, disable-error-code="untyped-decorator"
"""Triton kernels over tiles of the similarity matrix ``S = U Uᵀ``, none of which is ever stored.

Operands are float16 whatever the embeddings are: rows have length at most one, so float16 neither overflows
nor loses to tf32 (both carry 11 bits) and runs at twice its rate. ``SPLIT`` carries float32 as two float16
terms, ``x = hi + lo / 2048``, and multiplies them in three products, or four for a cosine, whose rounding τ
divides: float32's own accuracy, or better.

Packed rows: ``[part, 2, padded batch, padded width]``, both views padded with zeros to whole tiles; the parts
are ``hi`` [, ``lo``] of the unit rows and then, for a product, of their tangents.
"""

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

MAXIMUM: tl.constexpr = tl.constexpr(0)  # modes of `similarity_sums`
SUM: tl.constexpr = tl.constexpr(1)
TANGENT_SUM: tl.constexpr = tl.constexpr(2)

LOW_TERM: tl.constexpr = tl.constexpr(2048.0)  # lifts the second float16 term out of the subnormals
GRID: tl.constexpr = tl.constexpr(3072.0)  # 1.5 · 2¹¹: a float32 of its size is a multiple of 1/4096


@triton.jit
def split_half(x, SPLIT: tl.constexpr):
    """float32 -> the two float16 terms (the second unused, and a copy, without ``SPLIT``)."""
    high = x.to(tl.float16)
    low = high
    if SPLIT:
        low = ((x - high.to(tl.float32)) * LOW_TERM).to(tl.float16)
    return high, low


@triton.jit
def split_unit(u, SPLIT: tl.constexpr):
    """The same of entries of unit rows, with ``hi`` on a grid of 1/4096.

    Products of such terms are multiples of 2⁻²⁴, and no partial sum of a cosine exceeds one: float32 holds every
    one of them, so tensor cores, which truncate, have nothing to cut, and any order gives the same sum.
    """
    high, low = split_half(u, SPLIT)
    if SPLIT:
        high = ((u + GRID) - GRID).to(tl.float16)  # above 1/2, float16's own grid is 1/2048
        low = ((u - high.to(tl.float32)) * LOW_TERM).to(tl.float16)
    return high, low


@triton.jit
def split_dot(a, a_low, b, b_low, total, SPLIT: tl.constexpr):
    """``total + a @ b``. Split products join ``total`` by an ordinary addition, which rounds to nearest:
    tensor cores truncate, and over thousands of tiles that bias would outgrow float32's own error."""
    if SPLIT:
        small = tl.dot(a, b_low)
        small = tl.dot(a_low, b, small)
        return total + tl.dot(a, b, small * (1.0 / LOW_TERM))
    return tl.dot(a, b, total)


@triton.jit
def split_cosines(u, u_low, w, w_low, total, SPLIT: tl.constexpr):
    """``total + u wᵀ`` of `split_unit` rows. Low terms times low terms count: between close rows they have one sign."""
    if SPLIT:
        small = tl.dot(u_low, tl.trans(w_low)) * (1.0 / LOW_TERM)
        small = tl.dot(u, tl.trans(w_low), small)
        small = tl.dot(u_low, tl.trans(w), small)
        return total + (tl.dot(u, tl.trans(w)) + small * (1.0 / LOW_TERM))
    return tl.dot(u, tl.trans(w), total)


@triton.jit
def load_rows(
    packed, part, first, dim, ROWS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
    TANGENT: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Unit rows, their low terms, tangents, their low terms; what is not asked for repeats the first."""
    block = packed + (tl.cast(first, tl.int64) * WIDTH + dim)  # one wide address, 32-bit offsets: saves registers
    at = block + (tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, CHUNK)[None, :])
    u = tl.load(at)  # (ROWS, CHUNK)
    u_low = u
    v = u
    v_low = u
    if SPLIT:
        u_low = tl.load(at + part)
    if TANGENT:
        tangents = at + part  # part by part: a multiple of it could leave 32 bits
        if SPLIT:
            tangents += part
        v = tl.load(tangents)
        v_low = v
        if SPLIT:
            v_low = tl.load(tangents + part)
    return u, u_low, v, v_low


@triton.jit
def add_similarities(
    s, t, u, u_low, v, v_low, w, w_low, x, x_low, TANGENT: tl.constexpr, SPLIT: tl.constexpr
):  # fmt: skip
    """``s + u wᵀ`` and, with tangents ``v`` of ``u`` and ``x`` of ``w``, ``t + v wᵀ + u xᵀ``."""
    s = split_cosines(u, u_low, w, w_low, s, SPLIT)
    if TANGENT:
        t = split_dot(v, v_low, tl.trans(w), tl.trans(w_low), t, SPLIT)
        t = split_dot(u, u_low, tl.trans(x), tl.trans(x_low), t, SPLIT)
    return s, t


@triton.jit
def chunked_similarities(
    packed, part, row, col, ROWS: tl.constexpr, COLS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
    TANGENT: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """``s`` and ``t`` of a tile whose rows are too wide to stay in shared memory."""
    s = tl.zeros((ROWS, COLS), tl.float32)
    t = tl.zeros((ROWS, COLS), tl.float32)
    for dim in range(0, WIDTH, CHUNK):
        u, u_low, v, v_low = load_rows(packed, part, row, dim, ROWS, CHUNK, WIDTH, TANGENT, SPLIT)
        w, w_low, x, x_low = load_rows(packed, part, col, dim, COLS, CHUNK, WIDTH, TANGENT, SPLIT)
        s, t = add_similarities(s, t, u, u_low, v, v_low, w, w_low, x, x_low, TANGENT, SPLIT)
    return s, t


@triton.jit
def keep_pairs(s, row, col, batch, padded, ROWS: tl.constexpr, COLS: tl.constexpr, CROSS: tl.constexpr):
    """``s`` with −∞, whose exponential is zero, for padding, a row with itself, and a row with its partner.

    Partners are left to the kernels over rows: 1 − P of a well separated pair would drown in rounding here.
    """
    rows = row + tl.arange(0, ROWS)
    cols = col + tl.arange(0, COLS)
    kept = (rows % padded < batch)[:, None] & (cols % padded < batch)[None, :]
    kept &= ((rows + padded) % (2 * padded))[:, None] != cols[None, :]
    if not CROSS:
        kept &= rows[:, None] != cols[None, :]
    return tl.where(kept, s, float("-inf"))


@triton.jit
def overlap(first, other, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Whether ``ROWS`` from ``first`` and ``COLS`` from ``other`` share an index."""
    return (first < other + COLS) & (other < first + ROWS)


@triton.jit
def similarity_sums(
    packed, shifts, sums, part, batch, padded, panel, scale,
    MODE: tl.constexpr, CROSS: tl.constexpr, ONE_EXP: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Partial row sums (or maxima) of ``exp``, or of ``exp ∘ Ṡ``, from one square panel of ``S`` per program.

    ``S`` is symmetric: panel (I, J) above the diagonal serves the rows of I (kept in ``sums[J]``) and, by its
    column sums, the rows of J (``sums[I]``). No atomics: every partial sum has one writer.

    Within a tile, sums along a row cost four shuffles and sums along a column a hundred. So a block of
    columns stays while the rows stream past: column sums pile up in registers, row sums in memory.

    Exponents are formed from ``s − 1``, which is exact for rows that are close, before τ divides any rounding.
    """
    TANGENT: tl.constexpr = MODE == TANGENT_SUM
    START: tl.constexpr = float("-inf") if MODE == MAXIMUM else 0.0
    i = tl.program_id(0)
    j = tl.program_id(1)
    if CROSS:
        limit = padded
        offset = padded
    else:
        limit = 2 * padded
        offset = 0
        if j < i:
            return
    row_end = tl.minimum((i + 1) * panel, limit)
    col_end = tl.minimum((j + 1) * panel, limit)
    sums_of_rows = sums + j.to(tl.int64) * 2 * padded
    sums_of_cols = sums + i.to(tl.int64) * 2 * padded
    for col in range(offset + j * panel, offset + col_end, COLS):
        cols = col + tl.arange(0, COLS)
        first = col == offset + j * panel
        if WIDTH == CHUNK:
            w, w_low, x, x_low = load_rows(packed, part, col, 0, COLS, CHUNK, WIDTH, TANGENT, SPLIT)
        pile = tl.full((ROWS, COLS), START, tl.float32)
        for row in range(i * panel, row_end, ROWS):
            rows = row + tl.arange(0, ROWS)
            before = tl.load(sums_of_rows + rows, mask=(rows >= 0) & (not first), other=START)
            if WIDTH == CHUNK:
                u, u_low, v, v_low = load_rows(packed, part, row, 0, ROWS, CHUNK, WIDTH, TANGENT, SPLIT)
                zero = tl.zeros((ROWS, COLS), tl.float32)
                s, t = add_similarities(
                    zero, zero, u, u_low, v, v_low, w, w_low, x, x_low, TANGENT, SPLIT
                )  # fmt: skip
            else:
                s, t = chunked_similarities(packed, part, row, col, ROWS, COLS, CHUNK, WIDTH, TANGENT, SPLIT)
            pads = (row % padded + ROWS > batch) | (col % padded + COLS > batch)
            if pads | (i == j) | overlap((row + padded) % (2 * padded), col, ROWS, COLS):
                s = keep_pairs(s, row, col, batch, padded, ROWS, COLS, CROSS)
            if MODE == MAXIMUM:
                by_row = (s - 1.0) * scale
                by_col = by_row
            elif ONE_EXP:
                by_row = tl.exp2((s - 1.0) * scale)
                if TANGENT:
                    by_row *= t
                by_col = by_row
            else:
                by_row = tl.exp2((s - 1.0) * scale - tl.load(shifts + rows)[:, None])
                by_col = tl.exp2((s - 1.0) * scale - tl.load(shifts + cols)[None, :])
                if TANGENT:
                    by_row *= t
                    by_col *= t
            if MODE == MAXIMUM:
                tl.store(sums_of_rows + rows, tl.maximum(before, tl.max(by_row, 1)))
                pile = tl.maximum(pile, by_col)
            else:
                tl.store(sums_of_rows + rows, before + tl.sum(by_row, 1))
                pile += by_col
        if CROSS or j > i:
            if MODE == MAXIMUM:
                tl.store(sums_of_cols + cols, tl.max(pile, 0))
            else:
                tl.store(sums_of_cols + cols, tl.sum(pile, 0))
        tl.debug_barrier()  # the next block of columns reads the row sums that other threads stored
