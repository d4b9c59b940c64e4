"""The three raw kernels of :mod:`bissl_fast.ops.schemas` on tiles that Triton compiles, with their ends joined on.

What the schemas call ``lse`` is here a sum over all but the partner, at a precision that a logarithm of the
size of 1 / τ would not have: Σ exp((cos − 1) / τ) where one exponential serves a row and its mirror image,
else the log2 of that sum over the partner's exponential. ``kept`` is the largest 1 − P of a partner, which
no weight of the tiles exceeds.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from bissl_fast.ops.schemas import NORM_EPS, unit_dtype
from bissl_fast.ops.triton import plans, rows, tiles, weights
from bissl_fast.ops.triton.device import on_device_of_first
from bissl_fast.ops.triton.handles import launch

WEIGHT_GAIN = 4096.0  # lifts softmax weights (≤ 8 with their tangents) into float16's normal range
ONE_EXP_LIMIT = 39.0  # 2 / τ ≤ 78: exp((s − 1) / τ) stays normal, 4096 over it finite, for every cosine s
LOG2E = 1.4426950408889634
SUMMED_AT_ONCE = 4096  # values of rows


@dataclass(frozen=True)
class Problem:
    """Sizes and settings that the kernels of one call share; `problem_for` makes each once."""

    batch: int
    width: int
    temperature: float
    cross_view: bool
    split: bool
    device: torch.device

    @cached_property
    def padded(self) -> int:
        return plans.PAD * -(-self.batch // plans.PAD)

    @cached_property
    def packed_width(self) -> int:
        return plans.padded_width(self.width)

    @cached_property
    def part(self) -> int:
        return 2 * self.padded * self.packed_width

    @cached_property
    def one_exp(self) -> bool:
        return 1 / self.temperature <= ONE_EXP_LIMIT

    @cached_property
    def scale(self) -> float:
        return LOG2E / self.temperature

    @cached_property
    def row_grid(self) -> tuple[int, int]:
        return self.padded // self.row_block, 2

    @cached_property
    def row_block(self) -> int:
        return max(1, min(32, 4096 // self.packed_width))

    @cached_property
    def shape(self) -> dict[str, int]:
        """Constants of the kernels over rows."""
        return {"ROWS": self.row_block, "WIDTH": self.packed_width}

    @cached_property
    def numbers(self) -> dict[str, bool]:
        """Constants of the kernels that compute with similarities."""
        return {"ONE_EXP": self.one_exp, "SPLIT": self.split}

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def view(self, dtype: torch.dtype) -> Tensor:
        return self.empty(self.batch, self.width, dtype=dtype)

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


@lru_cache(maxsize=1024)
def problem_for(
    batch: int, width: int, temperature: float, cross_view: bool, split: bool, device: torch.device
) -> Problem:
    """A problem, with what its numbers imply."""
    return Problem(batch, width, temperature, cross_view, split, device)


def problem_of(units: Tensor, temperature: float, cross_view: bool) -> Problem:
    """The problem behind saved unit rows."""
    rows_, width = units.shape
    return problem_for(rows_ // 2, width, temperature, cross_view, is_split(units.dtype), units.device)


@on_device_of_first
def fwd(z1: Tensor, z2: Tensor, temperature: float, cross_view: bool) -> tuple[Tensor, ...]:
    """Loss, unit rows, inverse norms, what normalises the rows of the softmax, and a bound of its weights."""
    z1, z2 = z1.contiguous(), z2.contiguous()  # other strides compile to another order of sums, so to other bits
    batch, width = z1.shape
    problem = problem_for(batch, width, temperature, cross_view, is_split(z1.dtype), z1.device)
    units = problem.empty(2 * batch, width, dtype=unit_dtype(z1))
    inv_norms, lse, values = problem.empty(2 * batch), problem.empty(2 * batch), problem.empty(2, 2 * batch)
    packed = problem.packed(tangent=False)
    launch(
        rows.normalise_rows, problem.row_grid, z1, z2, units, inv_norms, packed, problem.part, batch, problem.padded,
        width, NORM_EPS, SPLIT=problem.split, **problem.shape,
    )  # fmt: skip
    shifts = packed
    if not problem.one_exp:
        sums = panel_sums(problem, packed, shifts, tiles.MAXIMUM)
        shifts = problem.empty(2 * problem.padded)
        launch(
            rows.row_maxima, problem.row_grid, sums, shifts, batch, problem.padded, len(sums), ROWS=problem.row_block
        )  # fmt: skip
    sums = panel_sums(problem, packed, shifts, tiles.SUM)
    launch(
        rows.row_losses, problem.row_grid, sums, shifts, units, lse, values, batch, problem.padded, len(sums), width,
        problem.scale, 1 / temperature, **problem.numbers, **problem.shape,
    )  # fmt: skip
    loss, kept = reduce(problem, values, 0.5 / batch)
    return loss, units, inv_norms, lse, kept


@on_device_of_first
def bwd(
    cotangent: Tensor, units: Tensor, inv_norms: Tensor, lse: Tensor, kept: Tensor, dtype: torch.dtype,
    temperature: float, cross_view: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``cotangent`` times the gradients of both views in their dtype, the gradient, and its radial part."""
    problem = problem_of(units, temperature, cross_view)
    packed, factors = pack(problem, units, lse, kept, WEIGHT_GAIN)
    out = weigh(problem, packed, factors, factors, tangent=False)
    g1, g2 = problem.view(dtype), problem.view(dtype)
    grad, radial = torch.empty_like(units, dtype=torch.float32), torch.empty_like(lse)
    launch(
        rows.finish_gradient, problem.row_grid, out, units, inv_norms, lse, kept, cotangent, g1, g2, grad, radial,
        problem.part, problem.batch, problem.padded, problem.width, len(out), problem.scale, 1 / WEIGHT_GAIN,
        0.5 / (temperature * problem.batch), NORM_EPS, **problem.numbers, **problem.shape,
    )  # fmt: skip
    return g1, g2, grad, radial


@on_device_of_first
def bwd_bwd(
    cotangent: Tensor, v1: Tensor, v2: Tensor, units: Tensor, inv_norms: Tensor, lse: Tensor, kept: Tensor,
    grad: Tensor, radial: Tensor, temperature: float, cross_view: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``⟨grad, v⟩``, and ``cotangent`` times the Hessian times ``v`` for both views, in the dtype of ``v``."""
    problem = problem_of(units, temperature, cross_view)
    sizes = (problem.batch, problem.padded, problem.width)
    v1, v2, changes, values = v1.contiguous(), v2.contiguous(), torch.empty_like(grad), problem.empty(4, len(units))
    launch(
        rows.unit_tangents, problem.row_grid, v1, v2, units, inv_norms, grad, changes, values, *sizes, NORM_EPS,
        **problem.shape,
    )  # fmt: skip
    slope, largest = reduce(problem, values, 1.0)
    gain = WEIGHT_GAIN * min(1.0, temperature)
    packed, factors = pack(problem, units, lse, kept, gain, changes, largest)
    sums, means = panel_sums(problem, packed, factors, tiles.TANGENT_SUM), problem.empty(2 * problem.padded)
    launch(
        rows.row_means, problem.row_grid, sums, units, changes, largest, lse, kept, factors, means, values,
        problem.batch, problem.padded, len(sums), problem.width, problem.scale, 1 / gain, **problem.numbers,
        **problem.shape,
    )  # fmt: skip
    out = weigh(problem, packed, factors, means, tangent=True)
    h1, h2 = problem.view(v1.dtype), problem.view(v2.dtype)
    launch(
        rows.finish_product, problem.row_grid, out, units, inv_norms, lse, kept, grad, radial, changes, largest,
        values, cotangent, h1, h2, problem.part, *sizes, len(out), problem.scale, 1 / gain,
        0.5 / (temperature * problem.batch), 1 / temperature, NORM_EPS, **problem.numbers, **problem.shape,
    )  # fmt: skip
    return slope, h1, h2


def reduce(problem: Problem, values: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """``factor`` times the sum of ``values[0]``, ``()``, and the largest of ``values[1]``, ``(1,)``."""
    total, largest = problem.empty(), problem.empty(1)
    launch(
        rows.sum_and_largest, (1,), values, total, largest, 2 * problem.batch, factor, BLOCK=SUMMED_AT_ONCE,
        num_warps=8,
    )  # fmt: skip
    return total, largest


def pack(
    problem: Problem, units: Tensor, lse: Tensor, peak: Tensor, gain: float, changes: Tensor | None = None,
    largest: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Operands of the tiles, and the factors of the rows."""
    tangent = changes is not None
    packed, factors = problem.packed(tangent), problem.empty(2 * problem.padded)
    launch(
        rows.pack_rows, problem.row_grid, units, units if changes is None else changes,
        lse if largest is None else largest, lse, peak, packed, factors, problem.part, problem.batch, problem.padded,
        problem.width, problem.scale, gain, TANGENT=tangent, **problem.numbers, **problem.shape,
    )  # fmt: skip
    return packed, factors


def panel_sums(problem: Problem, packed: Tensor, shifts: Tensor, mode: Any) -> Tensor:
    """``(panels, 2 padded)`` partial sums (or maxima) over the rows of ``S``."""
    width = problem.packed_width
    device = plans.describe(problem.device)
    plan = plans.sum_plan(width, problem.split, mode is tiles.TANGENT_SUM, device)
    length = problem.padded if problem.cross_view else 2 * problem.padded
    panel = plans.panel_side(length)
    panels = -(-length // panel)
    sums = problem.empty(panels, 2 * problem.padded)
    launch(
        tiles.similarity_sums, (panels, panels), packed, shifts, sums, problem.part, problem.batch, problem.padded,
        panel, problem.scale, MODE=mode.value, CROSS=problem.cross_view, **problem.numbers,
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
    shares = -(-col_blocks // share)
    out = problem.empty(shares, 2 * problem.padded, width)
    launch(
        weights.weighted_rows, (row_blocks, shares, out_blocks), packed, factors, means, out, problem.part,
        problem.batch, problem.padded, share, problem.scale, 1 / problem.temperature,
        TANGENT=tangent, CROSS=problem.cross_view, **problem.numbers,
        ROWS=plan.tile.rows, COLS=plan.tile.cols, CHUNK=plan.chunk, OUT=plan.out, WIDTH=width,
        num_warps=plan.tile.warps, num_stages=plan.tile.stages,
    )  # fmt: skip
    return out
