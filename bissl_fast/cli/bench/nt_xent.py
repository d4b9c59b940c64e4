"""``bissl-fast bench nt-xent``: the loss beside its peers on this machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from bissl_fast.cli.bench.tables import Cells, Page, machine_of, make_place, measured
from bissl_fast.errors import UserError
from bissl_fast.measuring import nt_xent as bench

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


@dataclass(frozen=True)
class NTXentSettings:
    """Sizes and machine of a comparison.

    Attributes:
        sizes: pairs x width, as in 1024x256.
        rounds: turns of every loss; the best counts.
        device: cpu or cuda.
        precision: fp32, bf16, fp16 or fp64: the dtype of the embeddings.
        output: file to keep the tables in: Markdown here, and the same numbers as .json beside it.
    """

    sizes: tuple[str, ...] = ("1024x256", "4096x256")
    rounds: int = 10
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    precision: str = "fp32"
    output: Path | None = None


def run(arguments: Sequence[str]) -> None:
    """Parse, measure, print, keep."""
    settings = tyro.cli(NTXentSettings, prog="bissl-fast bench nt-xent", args=arguments)
    if settings.precision not in DTYPES:
        raise UserError(f"--precision must be one of {', '.join(DTYPES)}, found {settings.precision!r}.")
    if settings.rounds < 1:
        raise UserError(f"--rounds must be at least 1, found {settings.rounds}.")
    make_place(settings.output)
    sizes = [parse_size(size) for size in settings.sizes]
    with measured(settings.device) as device:
        measure_sizes(settings, sizes, device)


def measure_sizes(settings: NTXentSettings, sizes: Sequence[tuple[int, int]], device: str) -> None:
    """All sizes, one after the other; what is known is kept at once."""
    page, kept = Page("NT-Xent beside its peers", machine_of(device), settings.output), list[bench.Row]()
    for pairs, width in sizes:
        rows = list(bench.measure(pairs, width, settings.rounds, device, DTYPES[settings.precision]))
        kept += rows
        title = f"2 x {pairs} x {width}, {settings.precision}"
        page.add(title, cells_of(rows), {"rows": [asdict(row) for row in kept]})


def parse_size(size: str) -> tuple[int, int]:
    """``"1024x256"`` -> (1024, 256)."""
    pairs, _, width = size.partition("x")
    if not (pairs.isdigit() and width.isdigit() and int(pairs) and int(width)):
        raise UserError(f"Found the size {size!r}, expected pairs x width, as in 1024x256.")
    return int(pairs), int(width)


def cells_of(rows: Sequence[bench.Row]) -> Cells:
    """Headings and cells: times, how many times longer than ours, and the share of the roofline."""
    on_gpu = any(row.launches is not None for row in rows)
    headings = ["task", "loss", "ms", "times ours", "roofline ms", "of roofline"]
    headings += ["launches", "graph ms"] if on_gpu else []
    longer = bench.ratios(rows)
    cells = []
    for row in rows:
        ratio = longer.get((row.task, row.pairs, row.width, row.loss))
        line = [
            row.task,
            row.loss,
            f"{row.seconds * 1e3:.2f}",
            "" if ratio is None else f"{ratio:.2f}",
            f"{row.roofline_seconds * 1e3:.2f}",
            f"{100 * row.roofline_seconds / row.seconds:.0f} %",
        ]
        if on_gpu:
            line += [str(row.launches), "" if row.replay_seconds is None else f"{row.replay_seconds * 1e3:.3f}"]
        cells.append(line)
    return headings, cells
