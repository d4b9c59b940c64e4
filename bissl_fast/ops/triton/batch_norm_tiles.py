# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, disable-error-code="untyped-decorator"
"""How the tensors of a batch norm are cut into tiles, and how a program finds its own.

A tensor shaped like x is a row-major matrix of (groups · rows) × (channels · run): a channel is ``run`` neighbouring
columns. Channels-last has N · S rows and run 1, contiguous ``(N, C, S)`` has N rows and run S. A tile is
``(ROWS, CHANNELS, SPAN)`` of it and lies in one group, so that both layouts are read along neighbouring addresses by
the same kernels, and a sum over a channel is one over the first and last axis.
"""

from dataclasses import dataclass
from functools import lru_cache

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

TILE = 4096  # values of one tensor that a program of WARPS warps holds
WARPS = 8
LINE = 64  # neighbouring values of a tile's row: a cache line in half precision
SPANS = (1024, 512, 256)  # of a tile, where a channel has more neighbouring values than the last
PROGRAMS = 4  # per processor, of a kernel that sums; their registers let two to four run at once
MAX_STEPS = 64  # tiles that one program sums: an accumulator's error grows with them
JOIN = {"BLOCKS": 256, "COLUMNS": 8}  # tile of the kernels that join partial sums; 8 floats are a memory sector


@dataclass(frozen=True)
class Matrix:
    """Sizes of the matrix that a tensor shaped like x is."""

    groups: int
    rows: int  # of a group
    channels: int
    run: int

    @property
    def values(self) -> int:
        return self.rows * self.run

    @property
    def statistics(self) -> int:
        return self.groups * self.channels


@dataclass(frozen=True)
class Cut:
    """Sides of a tile (powers of two), and how many tiles there are."""

    rows: int
    channels: int
    span: int
    tiles: int  # of a group's channels
    columns: int  # blocks of channels, over all groups

    def shared(self, processors: int) -> tuple[int, int]:
        """Programs that share the tiles of a group's channels, and tiles for each: enough to fill the device."""
        wanted = -(-processors * PROGRAMS // self.columns)
        steps = min(MAX_STEPS, -(-self.tiles // wanted))
        return -(-self.tiles // steps), steps

    @property
    def sides(self) -> dict[str, int]:
        return {"ROWS": self.rows, "CHANNELS": self.channels, "SPAN": self.span}


@lru_cache(1024)  # of a network's few sizes; anew in each call it would take as long as a launch
def cut(matrix: Matrix, tile: int) -> Cut:
    """Tiles of at most ``tile`` values, long in memory and with few places beyond an edge."""
    if matrix.run > SPANS[-1]:
        span = min(SPANS, key=lambda span: triton.cdiv(matrix.run, span) * span)
    else:
        span = power_of_two(matrix.run)
    span = min(span, tile)
    channels = min(power_of_two(matrix.channels), max(1, min(LINE, tile) // span))
    rows = min(power_of_two(matrix.rows), max(1, tile // (span * channels)))
    tiles = triton.cdiv(matrix.rows, rows) * triton.cdiv(matrix.run, span)
    return Cut(rows, channels, span, tiles, matrix.groups * triton.cdiv(matrix.channels, channels))


def power_of_two(size: int) -> int:
    """The smallest that is no less than ``size``."""
    return 1 << (size - 1).bit_length()


@triton.jit
def place_of_program(blocks, channels, CHANNELS: tl.constexpr):
    """Group, block and channels of this program; neighbouring programs have neighbouring channels."""
    across = tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0)
    channel = program % across * CHANNELS + tl.arange(0, CHANNELS)
    return program // across // blocks, program // across % blocks, channel


@triton.jit
def place_of_tile(
    step, group, channel, rows, channels, run, ROWS: tl.constexpr, SPAN: tl.constexpr
):  # fmt: skip
    """Offset of a tile, offsets within it ``(ROWS, CHANNELS, SPAN)``, and which rows and places exist."""
    along = tl.cdiv(run, SPAN)
    first = step // along * ROWS
    row = tl.arange(0, ROWS)
    place = step % along * SPAN + tl.arange(0, SPAN)
    columns = channels * run
    base = (group * rows + first).to(tl.int64) * columns
    offset = row[:, None, None] * columns + channel[None, :, None] * run + place[None, None, :]
    exists = (first + row < rows)[:, None, None] & (place < run)[None, None, :]
    return base, offset, exists


@triton.jit
def load(tensor, base, offset, inside, wide: tl.constexpr):
    """A tile in the dtype of the arithmetic, zero beyond the edges."""
    return tl.load(tensor + base + offset, mask=inside, other=0.0).to(wide)


@triton.jit
def load_masked(tensor, out, base, offset, inside, wide: tl.constexpr):
    """A tile where the ReLU let its input pass (``out`` is None without one); a NaN passes."""
    value = load(tensor, base, offset, inside, wide)
    if out is not None:
        value = tl.where(load(out, base, offset, inside, wide) <= 0, 0.0, value)
    return value


@triton.jit
def load_channels(tensor, at, inside, wide: tl.constexpr):
    """``(1, CHANNELS, 1)`` of a tensor of channels or statistics."""
    return tl.load(tensor + at, mask=inside, other=0.0).to(wide)[None, :, None]
