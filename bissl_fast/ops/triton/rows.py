# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, disable-error-code="untyped-decorator"
"""Triton kernels that pass once over the rows: packing before the tiles, normalising's derivatives after.

Every program takes ``ROWS`` rows of one view (grid: blocks of the padded view × 2); ``row`` counts in the
``(2B, D)`` arrays of the op, ``place`` in the packed and padded ones.
"""

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

from bissl_fast.ops.triton.tiles import LOW_TERM, split_half, split_unit

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def positions(batch, padded, ROWS: tl.constexpr):
    """Rows in the op's arrays, their partners, places in the padded ones, and which of them exist."""
    inside = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    view = tl.program_id(1)
    exists = inside < batch
    return view * batch + inside, (1 - view) * batch + inside, view * padded + inside, exists


@triton.jit
def load_matrix(x, row, exists, width, WIDTH: tl.constexpr):
    """``(ROWS, WIDTH)`` in float32 from a contiguous matrix, zero beyond its edges."""
    dims = tl.arange(0, WIDTH)
    inside = exists[:, None] & (dims < width)[None, :]
    return tl.load(x + row.to(tl.int64)[:, None] * width + dims[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_matrix(x, row, exists, width, value, WIDTH: tl.constexpr):
    dims = tl.arange(0, WIDTH)
    inside = exists[:, None] & (dims < width)[None, :]
    tl.store(x + row.to(tl.int64)[:, None] * width + dims[None, :], value, mask=inside)


@triton.jit
def load_views(first, second, place, padded, exists, width, WIDTH: tl.constexpr):
    """`load_matrix` of the view that the program works on, from two matrices of one view each."""
    row = place - tl.program_id(1) * padded
    if tl.program_id(1) == 0:
        x = load_matrix(first, row, exists, width, WIDTH)
    else:
        x = load_matrix(second, row, exists, width, WIDTH)
    return x


@triton.jit
def store_views(first, second, place, padded, exists, width, value, cotangent, inv_norm, eps, WIDTH: tl.constexpr):
    """``cotangent · value`` to the matrix of the program's view. The derivative of a zero row has a factor 1/ε, which
    float16 does not hold: there it saturates, to stay finite; elsewhere an overflow is infinite, as gradient scalers
    want to see it."""
    row = place - tl.program_id(1) * padded
    value *= tl.load(cotangent).to(tl.float32)
    if first.dtype.element_ty == tl.float16:
        held = tl.clamp(value, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
        value = tl.where((inv_norm >= 0.999 / eps)[:, None], held, value)
    if tl.program_id(1) == 0:
        store_matrix(first, row, exists, width, value, WIDTH)
    else:
        store_matrix(second, row, exists, width, value, WIDTH)


@triton.jit
def store_packed(packed, part, place, high, low, WIDTH: tl.constexpr, SPLIT: tl.constexpr):
    """Write two float16 terms into consecutive parts."""
    at = packed + place.to(tl.int64)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(at, high)
    if SPLIT:
        tl.store(at + part, low)


@triton.jit
def cosines(u, w, SPLIT: tl.constexpr):
    """``u·w`` of each row, from the terms that the tiles multiply: what these leave out cancels against negatives."""
    if SPLIT:
        u_high, u_low = split_unit(u, SPLIT)
        w_high, w_low = split_unit(w, SPLIT)
        u = u_high.to(tl.float32)
        w = w_high.to(tl.float32)
        u_rest = u_low.to(tl.float32) * (1.0 / LOW_TERM)
        w_rest = w_low.to(tl.float32) * (1.0 / LOW_TERM)
        return tl.sum(u * w, 1) + tl.sum(u * w_rest + u_rest * (w + w_rest), 1)
    return tl.sum(u * w, 1)


@triton.jit
def power_of_two(x):
    """The power of two above ``x``, 1 for 0: scaling by it is exact."""
    bits = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.where(bits > 0, tl.minimum(bits, 1e38) * 2.0, 1.0)


@triton.jit
def normalise_rows(
    z1, z2, units, inv_norms, packed, part, batch, padded, width, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Unit rows, the inverse norms, and the packed operands of the tiles."""
    row, _, place, exists = positions(batch, padded, ROWS)
    z = load_views(z1, z2, place, padded, exists, width, WIDTH)
    norm = tl.sqrt_rn(tl.sum(z * z, 1))
    inv_norm = tl.div_rn(1.0, tl.maximum(norm, eps, propagate_nan=tl.PropagateNan.ALL))
    unit = (z * inv_norm[:, None]).to(units.dtype.element_ty)
    store_matrix(units, row, exists, width, unit, WIDTH)
    tl.store(inv_norms + row, inv_norm, mask=exists)
    high, low = split_unit(unit.to(tl.float32), SPLIT)
    store_packed(packed, part, place, high, low, WIDTH, SPLIT)


@triton.jit
def partner_odds(others, positive, scale, ONE_EXP: tl.constexpr):
    """Σ over all but the partner / the partner's exponential; ``others`` as `launch` describes it."""
    if ONE_EXP:
        return others / tl.exp2((positive - 1.0) * scale)
    return tl.exp2(others)


@triton.jit
def log2_one_plus_exp2(x):
    """log2(1 + 2ˣ) for every x."""
    return tl.maximum(x, 0.0) + tl.log2(1.0 + tl.exp2(-tl.abs(x)))


@triton.jit
def share_of_others(odds):
    """1 − P of the partner, precise where it is small and where the odds are infinite."""
    return tl.where(odds > 1.0, 1.0 / (1.0 + 1.0 / tl.maximum(odds, 1.0)), odds / (1.0 + tl.minimum(odds, 1.0)))


@triton.jit
def both_shares(others, row, partner, exists, positive, scale, ONE_EXP: tl.constexpr):
    """What remains of the pull of a row and its partner on each other: their two shares of others."""
    here = partner_odds(tl.load(others + row, mask=exists, other=0.0), positive, scale, ONE_EXP)
    there = partner_odds(tl.load(others + partner, mask=exists, other=0.0), positive, scale, ONE_EXP)
    return share_of_others(here) + share_of_others(there)


@triton.jit
def above_weights(peak):
    """A power of two above every softmax weight of the tiles; ``peak`` is the largest 1 − P of a partner.

    Where all pairs are well separated, all these weights are tiny: divided by it they stay in float16's range.
    """
    largest = tl.load(peak)
    return power_of_two(tl.where(largest > 0.0, tl.maximum(largest, 1e-30), 0.0))


@triton.jit
def pack_rows(
    units, tangents, largest, others, peak, packed, factors, part, batch, padded, width, scale, gain,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
    TANGENT: tl.constexpr, ONE_EXP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Operands of the tiles from unit rows (and tangents, scaled below length 1), and factors of the rows."""
    row, partner, place, exists = positions(batch, padded, ROWS)
    u = load_matrix(units, row, exists, width, WIDTH)
    positive = cosines(u, load_matrix(units, partner, exists, width, WIDTH), SPLIT)
    high, low = split_unit(u, SPLIT)
    store_packed(packed, part, place, high, low, WIDTH, SPLIT)
    if TANGENT:
        tangent = load_matrix(tangents, row, exists, width, WIDTH) * (1.0 / power_of_two(tl.load(largest)))
        high, low = split_half(tangent, SPLIT)
        store_packed(packed + part + (part if SPLIT else 0), part, place, high, low, WIDTH, SPLIT)
    total = tl.load(others + row, mask=exists, other=0.0)
    gain *= 1.0 / above_weights(peak)
    if ONE_EXP:
        factor = tl.div_rn(gain, total + tl.exp2((positive - 1.0) * scale))
    else:
        factor = (positive - 1.0) * scale + log2_one_plus_exp2(total) - tl.log2(gain)
    tl.store(factors + place, tl.where(exists, factor, 0.0))


@triton.jit
def total_of(sums, place, panels, stride, MAXIMUM: tl.constexpr):
    """Add up (or take the maximum of) the partial sums of a row, in a fixed order."""
    total = tl.load(sums + place)
    for panel in range(1, panels):
        value = tl.load(sums + panel * stride + place)
        total = tl.maximum(total, value) if MAXIMUM else total + value
    return total


@triton.jit
def row_maxima(sums, shifts, batch, padded, panels, ROWS: tl.constexpr):
    """The largest exponent of each row; a row without others gets 0."""
    _, _, place, _ = positions(batch, padded, ROWS)
    total = total_of(sums, place, panels, 2 * padded, True)
    tl.store(shifts + place, tl.where(total == float("-inf"), 0.0, total))


@triton.jit
def row_losses(
    sums, shifts, units, others, values, batch, padded, panels, width, scale, inv_temperature,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ONE_EXP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """The sum over all but the partner (see `launch`) of each row; its loss and 1 − P of the partner in ``values``."""
    row, partner, place, exists = positions(batch, padded, ROWS)
    total = tl.where(exists, total_of(sums, place, panels, 2 * padded, False), 1.0)
    u = load_matrix(units, row, exists, width, WIDTH)
    positive = cosines(u, load_matrix(units, partner, exists, width, WIDTH), SPLIT)
    if ONE_EXP:
        loss = tl.log(total + tl.exp2((positive - 1.0) * scale)) + (1.0 - positive) * inv_temperature
    else:
        total = tl.log2(total) + tl.fma(1.0 - positive, scale, tl.load(shifts + place))
        loss = log2_one_plus_exp2(total) * LN2
    odds = partner_odds(total, positive, scale, ONE_EXP)
    rounded = 1.0 + odds
    slope = tl.log(rounded) / tl.where(rounded == 1.0, 1.0, rounded - 1.0)  # log(1 + x) / x undoes the rounding
    small = tl.where(rounded == 1.0, odds, odds * slope)
    tl.store(others + row, total, mask=exists)
    tl.store(values + row, tl.where(odds < 1.0, small, loss), mask=exists)
    tl.store(values + 2 * batch + row, share_of_others(odds), mask=exists)


@triton.jit
def sum_and_largest(values, total, largest, count, factor, BLOCK: tl.constexpr):
    """``factor`` times the sum of ``values[0]``, and the largest of ``values[1]``, which is positive; ``(2, count)``.

    One program, so that nothing but the order of its lanes decides the bits.
    """
    sums = tl.zeros((BLOCK,), tl.float64)
    most = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        sums += tl.load(values + at, mask=at < count, other=0.0).to(tl.float64)
        value = tl.load(values + count + at, mask=at < count, other=0.0)
        most = tl.maximum(most, value, propagate_nan=tl.PropagateNan.ALL)
    tl.store(total, tl.sum(sums, 0) * factor)
    tl.store(largest, tl.where(tl.max((most != most).to(tl.int32), 0) > 0, float("nan"), tl.max(most, 0)))


@triton.jit
def row_means(
    sums, units, changes, largest, others, peak, factors, means, values, batch, padded, panels, width,
    scale, inv_gain,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ONE_EXP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Tangents of the row log-sums, as the tiles need them, and of P of the partner (``values[3]``)."""
    row, partner, place, exists = positions(batch, padded, ROWS)
    u = load_matrix(units, row, exists, width, WIDTH)
    w = load_matrix(units, partner, exists, width, WIDTH)
    t = tl.sum(load_matrix(changes, row, exists, width, WIDTH) * w, 1)
    t += tl.sum(load_matrix(changes, partner, exists, width, WIDTH) * u, 1)
    t *= 1.0 / power_of_two(tl.load(largest))
    odds = partner_odds(tl.load(others + row, mask=exists, other=0.0), cosines(u, w, SPLIT), scale, ONE_EXP)
    p = 1.0 / (1.0 + odds)
    factor = tl.load(factors + place)
    rest = total_of(sums, place, panels, 2 * padded, False) * (inv_gain * above_weights(peak))
    if ONE_EXP:
        rest *= factor
    mean = rest + p * t
    tl.store(values + 6 * batch + row, p * (share_of_others(odds) * t - rest), mask=exists)
    tl.store(means + place, tl.where(exists, mean * factor if ONE_EXP else mean, 0.0))


@triton.jit
def through_norm(change, u, inv_norm, eps):
    """``J change``: the derivative of normalising, symmetric; a row shorter than ``eps`` was only scaled."""
    radial = tl.where(inv_norm == tl.div_rn(1.0, eps), 0.0, tl.sum(u * change, 1))
    return (change - u * radial[:, None]) * inv_norm[:, None]


@triton.jit
def unit_tangents(
    v1, v2, units, inv_norms, grad, changes, values, batch, padded, width, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``u̇ = J v``; in ``values[:3]``, for each row, ``grad·v``, the length of ``u̇``, and ``u·v / n``."""
    row, _, place, exists = positions(batch, padded, ROWS)
    u = load_matrix(units, row, exists, width, WIDTH)
    v = load_views(v1, v2, place, padded, exists, width, WIDTH)
    inv_norm = tl.load(inv_norms + row, mask=exists, other=1.0)
    change = through_norm(v, u, inv_norm, eps)
    store_matrix(changes, row, exists, width, change, WIDTH)
    tl.store(values + row, tl.sum(load_matrix(grad, row, exists, width, WIDTH) * v, 1), mask=exists)
    tl.store(values + 2 * batch + row, tl.sqrt_rn(tl.sum(change * change, 1)), mask=exists)
    tl.store(values + 4 * batch + row, tl.sum(u * v, 1) * inv_norm, mask=exists)


@triton.jit
def sum_shares(out, part, place, shares, WIDTH: tl.constexpr):
    """Add up the shares of the columns, in a fixed order."""
    at = out + place.to(tl.int64)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    total = tl.load(at)
    for _ in range(1, shares):
        at += part
        total += tl.load(at)
    return total


@triton.jit
def finish_gradient(
    out, units, inv_norms, others, peak, cotangent, g1, g2, grad, radials, part, batch, padded, width, shares,
    scale, inv_gain, weight, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ONE_EXP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """``grad = J G``, ``cotangent`` times it, and ``radial = u·G``.

    ``G = weight · (Σ shares − (2 − P − Pᵀ) u_partner)``.
    """
    row, partner, place, exists = positions(batch, padded, ROWS)
    u = load_matrix(units, row, exists, width, WIDTH)
    w = load_matrix(units, partner, exists, width, WIDTH)
    away = both_shares(others, row, partner, exists, cosines(u, w, SPLIT), scale, ONE_EXP)
    inv_gain *= above_weights(peak)
    change = weight * (sum_shares(out, part, place, shares, WIDTH) * inv_gain - away[:, None] * w)
    inv_norm = tl.load(inv_norms + row, mask=exists, other=1.0)
    gradient = through_norm(change, u, inv_norm, eps)
    store_matrix(grad, row, exists, width, gradient, WIDTH)
    store_views(g1, g2, place, padded, exists, width, gradient, cotangent, inv_norm, eps, WIDTH)
    tl.store(radials + row, tl.sum(u * change, 1), mask=exists)


@triton.jit
def finish_product(
    out, units, inv_norms, others, peak, grad, radials, changes, largest, values, cotangent, h1, h2,
    part, batch, padded, width, shares, scale, inv_gain, weight, inv_temperature, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ONE_EXP: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """``cotangent`` times the Hessian times the tangent, by the formula of :mod:`bissl_fast.ops.schemas`."""
    row, partner, place, exists = positions(batch, padded, ROWS)
    u = load_matrix(units, row, exists, width, WIDTH)
    w = load_matrix(units, partner, exists, width, WIDTH)
    away = both_shares(others, row, partner, exists, cosines(u, w, SPLIT), scale, ONE_EXP)
    unscale = power_of_two(tl.load(largest))
    pulls = values + 6 * batch
    pull = tl.load(pulls + row, mask=exists, other=0.0) + tl.load(pulls + partner, mask=exists, other=0.0)
    pull *= unscale * inv_temperature
    inv_gain *= above_weights(peak)
    curved = sum_shares(out, part, place, shares, WIDTH) * inv_gain * unscale + pull[:, None] * w
    curved = weight * (curved - away[:, None] * load_matrix(changes, partner, exists, width, WIDTH))
    inv_norm = tl.load(inv_norms + row, mask=exists, other=1.0)
    clamped = inv_norm == tl.div_rn(1.0, eps)
    change = load_matrix(changes, row, exists, width, WIDTH)
    radial = tl.where(clamped, 0.0, tl.load(radials + row, mask=exists, other=0.0))
    g = load_matrix(grad, row, exists, width, WIDTH)
    along = tl.where(clamped, 0.0, tl.sum(g * change, 1))
    stretch = tl.where(clamped, 0.0, tl.load(values + 4 * batch + row, mask=exists, other=0.0))
    result = through_norm(curved - radial[:, None] * change, u, inv_norm, eps)
    result -= u * along[:, None] + g * stretch[:, None]
    store_views(h1, h2, place, padded, exists, width, result, cotangent, inv_norm, eps, WIDTH)
