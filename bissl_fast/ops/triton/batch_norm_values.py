# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, disable-error-code="untyped-decorator"
"""Triton kernels that write the tensors of a batch norm, given its sums: one tile per program, each value once.

What is written is linear in x − mean and the other tensors, by factors of the channel. Tensors that are None are
absent, ``out`` without a ReLU.
"""

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

from bissl_fast.ops.triton.batch_norm_tiles import load, load_channels, load_masked, place_of_program, place_of_tile

SIZES = ["rows", "blocks", "statistics", "values"]  # compiled for no value in particular


@triton.jit(do_not_specialize=SIZES)
def write_output(
    x, weight, bias, residual, mean, rstd, out, rows, channels, run, blocks,
    RELU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """relu(weight · xhat + bias + residual)."""
    group, block, channel = place_of_program(blocks, channels, CHANNELS)
    base, offset, exists = place_of_tile(block, group, channel, rows, channels, run, ROWS, SPAN)
    wide: tl.constexpr = mean.dtype.element_ty
    there = channel < channels
    at = group * channels + channel
    inside = exists & there[None, :, None]
    slope = load_channels(weight, channel, there, wide) * load_channels(rstd, at, there, wide)
    distance = load(x, base, offset, inside, wide) - load_channels(mean, at, there, wide)
    z = slope * distance + load_channels(bias, channel, there, wide)
    if residual is not None:
        z += load(residual, base, offset, inside, wide)
    if RELU:
        z = tl.where(z <= 0, 0.0, z)  # a NaN stays
    tl.store(out + base + offset, z, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def write_gradient(
    g, out, x, weight, mean, rstd, sums, dx, dresidual, rows, channels, run, blocks, statistics, values,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """weight · rstd · (g − sum_g/M − xhat · sum_gx/M), and g."""
    group, block, channel = place_of_program(blocks, channels, CHANNELS)
    base, offset, exists = place_of_tile(block, group, channel, rows, channels, run, ROWS, SPAN)
    wide: tl.constexpr = mean.dtype.element_ty
    there = channel < channels
    at = group * channels + channel
    inside = exists & there[None, :, None]
    size = values.to(wide)
    scale = load_channels(rstd, at, there, wide)
    slope = load_channels(weight, channel, there, wide) * scale
    of_x = -slope * scale * load_channels(sums, statistics + at, there, wide) / size
    constant = -slope * load_channels(sums, at, there, wide) / size
    value = load_masked(g, out, base, offset, inside, wide)
    distance = load(x, base, offset, inside, wide) - load_channels(mean, at, there, wide)
    tl.store(dx + base + offset, slope * value + of_x * distance + constant, mask=inside)
    if dresidual is not None:
        tl.store(dresidual + base + offset, value, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def write_tangent(
    x_t, weight_t, bias_t, residual_t, x, out, weight, mean, rstd, moments, out_t,
    rows, channels, run, blocks, statistics, values,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """mask · (weight_t · xhat + weight · rstd · (x_t − a − xhat · s) + bias_t + residual_t)."""
    group, block, channel = place_of_program(blocks, channels, CHANNELS)
    base, offset, exists = place_of_tile(block, group, channel, rows, channels, run, ROWS, SPAN)
    wide: tl.constexpr = mean.dtype.element_ty
    there = channel < channels
    at = group * channels + channel
    inside = exists & there[None, :, None]
    scale = load_channels(rstd, at, there, wide)
    of_x = tl.zeros((1, CHANNELS, 1), wide)
    constant = tl.zeros((1, CHANNELS, 1), wide)
    if weight_t is not None:
        of_x += scale * load_channels(weight_t, channel, there, wide)
    if bias_t is not None:
        constant += load_channels(bias_t, channel, there, wide)
    if x_t is not None:
        size = values.to(wide)
        slope = load_channels(weight, channel, there, wide) * scale
        of_x -= scale * slope * load_channels(moments, statistics + at, there, wide) / size
        constant -= slope * load_channels(moments, at, there, wide) / size
    distance = load(x, base, offset, inside, wide) - load_channels(mean, at, there, wide)
    z_t = of_x * distance + constant
    if x_t is not None:
        z_t += slope * load(x_t, base, offset, inside, wide)
    if residual_t is not None:
        z_t += load(residual_t, base, offset, inside, wide)
    if out is not None:
        z_t = tl.where(load(out, base, offset, inside, wide) <= 0, 0.0, z_t)
    tl.store(out_t + base + offset, z_t, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def write_gradient_tangent(
    g, out, x, x_t, g_t, weight, weight_t, mean, rstd, sums, moments, dx_t, dresidual_t,
    rows, channels, run, blocks, statistics, values,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """The derivative of :func:`write_gradient`, with xhat_t = rstd (x_t − a − xhat s) and rstd_t = −rstd² s put in."""
    group, block, channel = place_of_program(blocks, channels, CHANNELS)
    base, offset, exists = place_of_tile(block, group, channel, rows, channels, run, ROWS, SPAN)
    wide: tl.constexpr = mean.dtype.element_ty
    there = channel < channels
    at = group * channels + channel
    inside = exists & there[None, :, None]
    size = values.to(wide)
    scale = load_channels(rstd, at, there, wide)
    slope = load_channels(weight, channel, there, wide) * scale
    a = load_channels(moments, at, there, wide) / size
    s = load_channels(moments, statistics + at, there, wide) / size
    mean_g = load_channels(sums, at, there, wide) / size
    mean_gx = load_channels(sums, statistics + at, there, wide) / size
    slope_t = -slope * scale * s
    if weight_t is not None:
        slope_t += load_channels(weight_t, channel, there, wide) * scale
    of_x_t = -slope * scale * mean_gx
    along_g = load_channels(moments, 2 * statistics + at, there, wide) / size
    turned_x = load_channels(moments, 4 * statistics + at, there, wide) / size
    pull = turned_x + scale * (along_g - a * mean_g - s * mean_gx)
    of_x = scale * ((slope * scale * s - slope_t) * mean_gx - slope * pull)
    constant = -of_x_t * a - slope_t * mean_g - slope * load_channels(moments, 3 * statistics + at, there, wide) / size
    distance = load(x, base, offset, inside, wide) - load_channels(mean, at, there, wide)
    value = of_x * distance + constant + slope_t * load_masked(g, out, base, offset, inside, wide)
    if x_t is not None:
        value += of_x_t * load(x_t, base, offset, inside, wide)
    if g_t is not None:
        tangent = load_masked(g_t, out, base, offset, inside, wide)
        value += slope * tangent
        if dresidual_t is not None:
            tl.store(dresidual_t + base + offset, tangent, mask=inside)
    tl.store(dx_t + base + offset, value, mask=inside)
