"""Tile shapes, from a table and the device's shared memory.

Never from timing: no first call is slow, and the same device gives the same bits. The table holds what
compiles without spilling, or nearly so, with the most reuse per byte; `benchmarks/gpu_nt_xent.py --sweep`
times others.
"""

from dataclasses import dataclass
from functools import cache

import torch

PAD = 128  # views are padded to a multiple of the largest tile side
MAX_WIDTH = 2048  # widest rows (after padding to a power of two) that the kernels take
STAYING_WIDTH = 256  # widest rows that stay in shared memory; wider ones are streamed in chunks
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


# In order of preference; the first that fits into shared memory is taken. The last fits everywhere.
SUM_TILES = (
    Tile(128, 128, 8, 3),
    Tile(128, 128, 8, 2),
    Tile(64, 64, 4, 2),
    Tile(64, 64, 4, 1),
    Tile(64, 32, 4, 1),
    Tile(32, 32, 4, 1),
    Tile(16, 16, 4, 1),
)
TANGENT_SUM_TILES = (Tile(128, 64, 8, 2), *SUM_TILES[2:])
# Keyed by (split, tangent); each of the two doubles the operands, so the tile shrinks.
WEIGHT_TILES = {
    (False, False): (Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(128, 64, 8, 2)),
    (True, False): (Tile(128, 64, 8, 2), Tile(128, 32, 8, 2)),
    (False, True): (Tile(128, 64, 8, 2), Tile(128, 32, 8, 2)),
    (True, True): (Tile(128, 32, 8, 2), Tile(64, 32, 4, 1)),
}
SMALL_WEIGHT_TILES = (Tile(64, 32, 4, 2), Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(16, 16, 4, 1))


@dataclass(frozen=True)
class Device:
    """What a plan depends on."""

    processors: int
    shared_memory: int  # bytes that one program may take


@cache
def describe(device: torch.device) -> Device:
    """Properties of ``device``; a CPU (Triton's interpreter) is given a Hopper's."""
    if device.type != "cuda":
        return Device(132, 232_448)
    properties = torch.cuda.get_device_properties(device)
    return Device(properties.multi_processor_count, properties.shared_memory_per_block_optin)


def padded_width(width: int) -> int:
    """Columns of a packed row: a power of two that the matrix units accept."""
    return max(16, 1 << (width - 1).bit_length())


def parts(split: bool, tangent: bool) -> int:
    """float16 copies of the rows that a kernel reads."""
    return (1 + split) * (1 + tangent)


def row_bytes(width: int, split: bool, tangent: bool) -> int:
    """Shared memory of a row, or of what is streamed of it."""
    return 2 * parts(split, tangent) * (width if width <= STAYING_WIDTH else 2 * STREAMED_CHUNK)


def sum_chunk(width: int) -> int:
    """Columns of a row that `similarity_sums` loads at a time."""
    return width if width <= STAYING_WIDTH else STREAMED_CHUNK


def sum_tile(width: int, split: bool, tangent: bool, device: Device) -> Tile:
    """Tile of `similarity_sums` for packed rows of ``width``: rows are streamed past columns."""
    room = (device.shared_memory - MARGIN) // row_bytes(width, split, tangent)
    tiles = TANGENT_SUM_TILES if tangent else SUM_TILES
    return next((t for t in tiles if t.cols + t.stages * t.rows <= room), tiles[-1])


def weight_chunk(width: int) -> int:
    """Columns of a row that `weighted_rows` loads at a time; halves need fewer registers for partial products."""
    if width > STAYING_WIDTH:
        return STREAMED_CHUNK
    return width // 2 if width >= 128 else width


def weight_out(width: int) -> int:
    """Columns of an accumulator of `weighted_rows`."""
    return 128 if width > STAYING_WIDTH else weight_chunk(width)


def weight_tile(width: int, split: bool, tangent: bool, device: Device) -> Tile:
    """Tile of `weighted_rows` for packed rows of ``width``: columns are streamed past rows."""
    room = (device.shared_memory - MARGIN) // row_bytes(width, split, tangent)
    tiles = WEIGHT_TILES[split, tangent] + SMALL_WEIGHT_TILES
    if width >= STAYING_WIDTH and not (split or tangent):
        tiles = tiles[1:]  # the accumulators of a wide row leave no registers for 128 × 128
    return next((t for t in tiles if t.rows + t.stages * t.cols <= room), tiles[-1])


def panel_side(length: int) -> int:
    """Rows of a panel of `similarity_sums` over ``length`` padded rows."""
    return PAD * -(-length // (PAD * LIVE_PANELS))


def column_share(programs: int, col_blocks: int, device: Device) -> int:
    """Column blocks per program of `weighted_rows`: enough programs to fill the device twice."""
    shares = max(1, min(col_blocks, 2 * device.processors // programs))
    return -(-col_blocks // shares)
