"""Tile shapes, from a table and the device's shared memory.

Never from timing: no first call is slow, and the same device gives the same bits. The table holds what
compiles without spilling, or nearly so, with the most reuse per byte; `benchmarks/gpu_nt_xent.py --sweep all`
times others.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

PAD = 128  # views are padded to a multiple of the largest tile side
MAX_WIDTH = 2048  # widest rows (after padding to a power of two) that the kernels take
MAX_STAYING_WIDTH = 256  # widest rows whose accumulators fit into registers
STREAMED_CHUNK = 64
LIVE_PANELS = 32  # partial sums kept per row: scratch stays O(N)
MARGIN = 8192  # bytes of shared memory that Triton takes for itself


@dataclass(frozen=True)
class Tile:
    """Side lengths of a tile of ``S``, and how its program runs."""

    rows: int
    cols: int
    warps: int
    stages: int  # tiles in flight


SMALL_TILES = (Tile(64, 32, 4, 2), Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(16, 16, 4, 1))


@dataclass(frozen=True, eq=False)
class Table:
    """Tiles in order of preference, by (split, tangent): each of the two doubles the operands of a tile.

    The first tile that fits into shared memory is taken; the last of `SMALL_TILES` fits everywhere.
    """

    sums: dict[tuple[bool, bool], tuple[Tile, ...]]
    weights: dict[tuple[bool, bool], tuple[Tile, ...]]
    staying_sums: int  # bytes of the longest row that stays in shared memory; longer ones are streamed
    staying_weights: int
    wide_area: int  # largest tile of `weighted_rows` beside the accumulators of a row of 256 or more


# Matrix instructions of sm_90 and sm_100 read operands from shared memory; older ones, and sm_120, hold them
# in registers, which leaves room for smaller tiles only.
LARGE = Table(
    sums={
        (False, False): (Tile(128, 128, 8, 3), Tile(128, 128, 8, 2), Tile(64, 64, 4, 2)),
        (True, False): (Tile(128, 128, 8, 3), Tile(128, 128, 8, 2), Tile(64, 64, 4, 2)),
        (False, True): (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
        (True, True): (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
    },
    weights={
        (False, False): (Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(128, 64, 8, 2)),
        (True, False): (Tile(128, 64, 8, 2), Tile(128, 32, 8, 2)),
        (False, True): (Tile(128, 64, 8, 2), Tile(128, 32, 8, 2)),
        (True, True): (Tile(128, 32, 8, 2),),
    },
    staying_sums=1024,
    staying_weights=2048,
    wide_area=128 * 64,
)
COMPACT = Table(
    sums={
        (False, False): (Tile(128, 128, 8, 2), Tile(64, 64, 4, 2)),
        (True, False): (Tile(64, 64, 4, 2),),
        (False, True): (Tile(64, 64, 4, 2),),
        (True, True): (Tile(64, 32, 4, 1),),
    },
    weights={
        (False, False): (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
        (True, False): (),
        (False, True): (),
        (True, True): (Tile(32, 32, 4, 1),),
    },
    staying_sums=1024,
    staying_weights=1024,
    wide_area=64 * 64,
)


@dataclass(frozen=True, eq=False)
class Device:
    """What a plan depends on."""

    processors: int
    shared_memory: int  # bytes that one program may take
    table: Table = LARGE


@cache
def describe(device: torch.device) -> Device:
    """Properties of ``device``; a CPU (Triton's interpreter) is given a Hopper's."""
    if device.type != "cuda":
        return Device(132, 232_448)
    properties: Any = torch.cuda.get_device_properties(device)  # PyTorch's types lack one of them
    table = LARGE if properties.major in (9, 10) else COMPACT
    return Device(properties.multi_processor_count, properties.shared_memory_per_block_optin, table)


def padded_width(width: int) -> int:
    """Columns of a packed row: a power of two that the matrix units accept."""
    return max(16, 1 << (width - 1).bit_length())


def parts(split: bool, tangent: bool) -> int:
    """float16 copies of the rows that a kernel reads."""
    return (1 + split) * (1 + tangent)


@dataclass(frozen=True)
class Plan:
    """A tile, and the columns of a row that it loads (``chunk``) and accumulates (``out``) at a time."""

    tile: Tile
    chunk: int
    out: int


@cache
def sum_plan(width: int, split: bool, tangent: bool, device: Device) -> Plan:
    """Plan of `similarity_sums` for packed rows of ``width``: rows are streamed past columns."""
    row = 2 * parts(split, tangent) * width  # bytes
    stays = row <= device.table.staying_sums
    room = (device.shared_memory - MARGIN) // (row if stays else 2 * row * STREAMED_CHUNK // width)
    tiles = device.table.sums[split, tangent] + SMALL_TILES
    tile = next((t for t in tiles if t.cols + t.stages * t.rows <= room), tiles[-1])
    return Plan(tile, width if stays else STREAMED_CHUNK, width)


@cache
def weight_plan(width: int, split: bool, tangent: bool, device: Device) -> Plan:
    """Plan of `weighted_rows` for packed rows of ``width``: columns are streamed past rows."""
    row = 2 * parts(split, tangent) * width  # bytes
    stays = row <= device.table.staying_weights and width <= MAX_STAYING_WIDTH
    room = (device.shared_memory - MARGIN) // (row if stays else 2 * row * STREAMED_CHUNK // width)
    tiles = device.table.weights[split, tangent] + SMALL_TILES
    if width >= MAX_STAYING_WIDTH:
        tiles = tuple(tile for tile in tiles if tile.rows * tile.cols <= device.table.wide_area)
    tile = next((t for t in tiles if t.rows + t.stages * t.cols <= room), tiles[-1])
    if not stays:
        return Plan(tile, STREAMED_CHUNK, 128)
    halved = width > 128 or (split and width == 128)  # fewer registers for partial products
    chunk = width // 2 if halved else width
    return Plan(tile, chunk, chunk)


def panel_side(length: int) -> int:
    """Rows of a panel of `similarity_sums` over ``length`` padded rows."""
    return PAD * -(-length // (PAD * LIVE_PANELS))


def column_share(programs: int, col_blocks: int, device: Device) -> int:
    """Column blocks per program of `weighted_rows`: enough programs to fill the device twice."""
    shares = max(1, min(col_blocks, 2 * device.processors // programs))
    return -(-col_blocks // shares)
