"""``bissl-fast bench nt-xent``: the loss beside its peers on this machine."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import torch
import tyro
from rich.console import Console
from rich.table import Table

from bissl_fast.errors import UserError
from bissl_fast.ops import available_backends, bench
from bissl_fast.version import __version__

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


@dataclass(frozen=True)
class BenchSettings:
    """Sizes and machine of a comparison."""

    sizes: tuple[str, ...] = ("1024x256", "4096x256")
    """Pairs x width, as in 1024x256."""
    rounds: int = 10
    """Turns of every loss; the best counts."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu or cuda."""
    precision: str = "fp32"
    """fp32, bf16, fp16 or fp64: the dtype of the embeddings."""


def bench_command(arguments: Sequence[str]) -> None:
    """Parse, measure, print."""
    settings = tyro.cli(BenchSettings, prog="bissl-fast bench nt-xent", args=arguments)
    console = Console(width=None)
    console.print(environment(settings))
    if settings.precision not in DTYPES:
        raise UserError(f"Found --precision {settings.precision}, expected one of {', '.join(DTYPES)}.")
    for size in settings.sizes:
        pairs, width = parse_size(size)
        rows = list(bench.measure(pairs, width, settings.rounds, settings.device, DTYPES[settings.precision]))
        console.print(table_of(rows, f"NT-Xent, 2 x {pairs} x {width}, {settings.precision}"))


def parse_size(size: str) -> tuple[int, int]:
    """``"1024x256"`` -> (1024, 256)."""
    pairs, _, width = size.partition("x")
    if not (pairs.isdigit() and width.isdigit() and int(pairs) and int(width)):
        raise UserError(f"Found the size {size!r}, expected pairs x width, as in 1024x256.")
    return int(pairs), int(width)


def environment(settings: BenchSettings) -> str:
    """Machine, versions and date, which every quoted number carries."""
    name = torch.cuda.get_device_name() if settings.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    active = ", ".join(name for name, reason in available_backends().items() if not reason)
    return (
        f"bissl-fast {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {name}, "
        f"{datetime.now(timezone.utc).date()}; seed 0; backends: {active}"
    )


def table_of(rows: Sequence[bench.Row], title: str) -> Table:
    """Times, how much longer than ours, and the share of the roofline."""
    on_gpu = any(row.launches is not None for row in rows)
    table = Table(title=title)
    for heading in ("task", "loss", "ms", "times ours", "roofline ms", "of roofline"):
        table.add_column(heading, justify="left" if heading in ("task", "loss") else "right")
    for heading in ("launches", "graph ms") if on_gpu else ():
        table.add_column(heading, justify="right")
    longer = bench.ratios(rows)
    for row in rows:
        ratio = longer.get((row.task, row.pairs, row.width, row.loss))
        cells = [
            row.task,
            row.loss,
            f"{row.seconds * 1e3:.2f}",
            "" if ratio is None else f"{ratio:.2f}",
            f"{row.roofline_seconds * 1e3:.2f}",
            f"{100 * row.roofline_seconds / row.seconds:.0f} %",
        ]
        if on_gpu:
            replay = "" if row.replay_seconds is None else f"{row.replay_seconds * 1e3:.3f}"
            cells += [str(row.launches), replay]
        table.add_row(*cells)
    return table
