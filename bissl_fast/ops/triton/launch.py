"""The three raw kernels of :mod:`bissl_fast.ops.schemas` on tiles that Triton compiles.

What the schemas call ``lse`` is here a sum over all but the partner, at a precision that a logarithm of the
size of 1 / τ would not have: Σ exp((cos − 1) / τ) where one exponential serves a row and its mirror image,
else the log2 of that sum over the partner's exponential. ``kept`` is the largest 1 − P of a partner, which
no weight of the tiles exceeds.
"""

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor

from bissl_fast.ops.schemas import NORM_EPS, unit_dtype
from bissl_fast.ops.triton import plans, rows, tiles, weights
from bissl_fast.ops.triton.device import on_device_of_first

WEIGHT_GAIN = 4096.0  # lifts softmax weights (≤ 8 with their tangents) into float16's normal range
ONE_EXP_LIMIT = 39.0  # 2 / τ ≤ 78: exp((s − 1) / τ) stays normal, 4096 over it finite, for every cosine s
LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Problem:
    """Sizes and settings that the kernels of one call share."""

    batch: int
    width: int
    temperature: float
    cross_view: bool
    split: bool
    device: torch.device

    @property
    def padded(self) -> int:
        return plans.PAD * -(-self.batch // plans.PAD)

    @property
    def packed_width(self) -> int:
        return plans.padded_width(self.width)

    @property
    def part(self) -> int:
        return 2 * self.padded * self.packed_width

    @property
    def one_exp(self) -> bool:
        return 1 / self.temperature <= ONE_EXP_LIMIT

    @property
    def scale(self) -> float:
        return LOG2E / self.temperature

    @property
    def row_grid(self) -> tuple[int, int]:
        return self.padded // self.row_block, 2

    @property
    def row_block(self) -> int:
        return max(1, min(32, 4096 // self.packed_width))

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def packed(self, tangent: bool) -> Tensor:
        return self.empty(plans.parts(self.split, tangent) * self.part, dtype=torch.float16)


def is_split(dtype: torch.dtype) -> bool:
    """Whether products keep float32's accuracy: follows PyTorch's own setting for float32 matrix products.

    Read by its newer name: the older ones raise where somebody has set both.
    """
    return dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"


def supports(z: Tensor) -> bool:
    """Whether the kernels take embeddings of this dtype and width."""
    return z.dtype != torch.float64 and plans.padded_width(z.shape[1]) <= plans.MAX_WIDTH


@on_device_of_first
def fwd(z1: Tensor, z2: Tensor, temperature: float, cross_view: bool) -> tuple[Tensor, ...]:
    """Loss, unit rows, inverse norms, what normalises the rows of the softmax, and a bound of its weights."""
    z1, z2 = z1.contiguous(), z2.contiguous()  # other strides compile to another order of sums, so to other bits
    batch, width = z1.shape
    problem = Problem(batch, width, temperature, cross_view, is_split(z1.dtype), z1.device)
    units = problem.empty(2 * batch, width, dtype=unit_dtype(z1))
    inv_norms, lse, losses, complements = (problem.empty(2 * batch) for _ in range(4))
    packed = problem.packed(tangent=False)
    rows.normalise_rows[problem.row_grid](
        z1, z2, units, inv_norms, packed, problem.part, batch, problem.padded, width, NORM_EPS,
        ROWS=problem.row_block, WIDTH=problem.packed_width, SPLIT=problem.split,
    )  # fmt: skip
    shifts = packed
    if not problem.one_exp:
        sums = panel_sums(problem, packed, shifts, tiles.MAXIMUM)
        shifts = problem.empty(2 * problem.padded)
        rows.row_maxima[problem.row_grid](
            sums, shifts, batch, problem.padded, len(sums), ROWS=problem.row_block
        )  # fmt: skip
    sums = panel_sums(problem, packed, shifts, tiles.SUM)
    rows.row_losses[problem.row_grid](
        sums, shifts, units, lse, losses, complements, batch, problem.padded, len(sums), width,
        problem.scale, 1 / temperature,
        ROWS=problem.row_block, WIDTH=problem.packed_width, ONE_EXP=problem.one_exp, SPLIT=problem.split,
    )  # fmt: skip
    return losses.mean(), units, inv_norms, lse, complements.amax(0, keepdim=True)


@on_device_of_first
def bwd(
    units: Tensor, inv_norms: Tensor, lse: Tensor, kept: Tensor, temperature: float, cross_view: bool
) -> tuple[Tensor, Tensor]:
    """Gradient with respect to the embeddings, and its radial part before normalisation."""
    problem = problem_of(units, temperature, cross_view)
    packed, factors = pack(problem, units, lse, kept, WEIGHT_GAIN)
    out = weigh(problem, packed, factors, factors, tangent=False)
    grad, radial = torch.empty_like(units, dtype=torch.float32), torch.empty_like(lse)
    rows.finish_gradient[problem.row_grid](
        out, units, inv_norms, lse, kept, grad, radial, problem.part, problem.batch, problem.padded, problem.width,
        len(out), problem.scale, 1 / WEIGHT_GAIN, 1 / (temperature * len(units)), NORM_EPS,
        ROWS=problem.row_block, WIDTH=problem.packed_width, ONE_EXP=problem.one_exp, SPLIT=problem.split,
    )  # fmt: skip
    return grad, radial


@on_device_of_first
def bwd_bwd(
    units: Tensor, inv_norms: Tensor, lse: Tensor, kept: Tensor, grad: Tensor, radial: Tensor,
    tangent: Tensor, temperature: float, cross_view: bool,
) -> Tensor:  # fmt: skip
    """Hessian with respect to the embeddings, times ``tangent``."""
    problem = problem_of(units, temperature, cross_view)
    shape = {"ROWS": problem.row_block, "WIDTH": problem.packed_width}
    sizes = (problem.batch, problem.padded, problem.width)
    changes, product = torch.empty_like(tangent), torch.empty_like(tangent)
    lengths = torch.empty_like(lse)
    rows.unit_tangents[problem.row_grid](tangent, units, inv_norms, changes, lengths, *sizes, NORM_EPS, **shape)
    largest = lengths.amax()
    gain = WEIGHT_GAIN * min(1.0, temperature)
    packed, factors = pack(problem, units, lse, kept, gain, changes, largest)
    sums = panel_sums(problem, packed, factors, tiles.TANGENT_SUM)
    means, pulls = problem.empty(2 * problem.padded), torch.empty_like(lse)
    rows.row_means[problem.row_grid](
        sums, units, changes, largest, lse, kept, factors, means, pulls, problem.batch, problem.padded, len(sums),
        problem.width, problem.scale, 1 / gain, ONE_EXP=problem.one_exp, SPLIT=problem.split, **shape,
    )  # fmt: skip
    out = weigh(problem, packed, factors, means, tangent=True)
    rows.finish_product[problem.row_grid](
        out, units, inv_norms, lse, kept, grad, radial, tangent, changes, largest, pulls, product, problem.part,
        *sizes, len(out), problem.scale, 1 / gain, 1 / (temperature * len(units)), 1 / temperature, NORM_EPS,
        ONE_EXP=problem.one_exp, SPLIT=problem.split, **shape,
    )  # fmt: skip
    return product


def problem_of(units: Tensor, temperature: float, cross_view: bool) -> Problem:
    """The problem behind saved unit rows."""
    split = is_split(units.dtype)
    return Problem(len(units) // 2, units.shape[1], temperature, cross_view, split, units.device)


def pack(
    problem: Problem, units: Tensor, lse: Tensor, peak: Tensor, gain: float, changes: Tensor | None = None,
    largest: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Operands of the tiles, and the factors of the rows."""
    tangent = changes is not None
    packed, factors = problem.packed(tangent), problem.empty(2 * problem.padded)
    rows.pack_rows[problem.row_grid](
        units, units if changes is None else changes, lse if largest is None else largest, lse, peak,
        packed, factors, problem.part, problem.batch, problem.padded, problem.width, problem.scale, gain,
        ROWS=problem.row_block, WIDTH=problem.packed_width, TANGENT=tangent, ONE_EXP=problem.one_exp,
        SPLIT=problem.split,
    )  # fmt: skip
    return packed, factors


def panel_sums(problem: Problem, packed: Tensor, shifts: Tensor, mode: object) -> Tensor:
    """``(panels, 2 padded)`` partial sums (or maxima) over the rows of ``S``."""
    width = problem.packed_width
    device = plans.describe(problem.device)
    plan = plans.sum_plan(width, problem.split, mode is tiles.TANGENT_SUM, device)
    length = problem.padded if problem.cross_view else 2 * problem.padded
    panel = plans.panel_side(length)
    panels = triton.cdiv(length, panel)
    sums = problem.empty(panels, 2 * problem.padded)
    tiles.similarity_sums[panels, panels](
        packed, shifts, sums, problem.part, problem.batch, problem.padded, panel, problem.scale,
        MODE=mode, CROSS=problem.cross_view, ONE_EXP=problem.one_exp, SPLIT=problem.split,
        ROWS=plan.tile.rows, COLS=plan.tile.cols, CHUNK=plan.chunk, WIDTH=width,
        num_warps=plan.tile.warps, num_stages=plan.tile.stages,
    )  # fmt: skip
    return sums


def weigh(problem: Problem, packed: Tensor, factors: Tensor, means: Tensor, tangent: bool) -> Tensor:
    """``(shares, 2 padded, width)``: rows weighted by the softmax or its tangent, per share of columns."""
    width = problem.packed_width
    device = plans.describe(problem.device)
    plan = plans.weight_plan(width, problem.split, tangent, device)
    row_blocks = 2 * problem.padded // plan.tile.rows
    col_blocks = (1 if problem.cross_view else 2) * problem.padded // plan.tile.cols
    out_blocks = 1 if width <= 2 * plan.chunk else width // plan.out
    share = plans.column_share(row_blocks * out_blocks, col_blocks, device)
    shares = triton.cdiv(col_blocks, share)
    out = problem.empty(shares, 2 * problem.padded, width)
    weights.weighted_rows[row_blocks, shares, out_blocks](
        packed, factors, means, out, problem.part, problem.batch, problem.padded, share,
        problem.scale, 1 / problem.temperature,
        TANGENT=tangent, CROSS=problem.cross_view, ONE_EXP=problem.one_exp, SPLIT=problem.split,
        ROWS=plan.tile.rows, COLS=plan.tile.cols, CHUNK=plan.chunk, OUT=plan.out, WIDTH=width,
        num_warps=plan.tile.warps, num_stages=plan.tile.stages,
    )  # fmt: skip
    return out
