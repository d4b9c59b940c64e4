"""``bissl-fast bench nt-xent``: the loss beside its peers on this machine."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from bissl_fast.errors import UserError
from bissl_fast.ops import available_backends, bench
from bissl_fast.training.environment import processor
from bissl_fast.training.files import write_atomic, write_json
from bissl_fast.training.precision import find_device
from bissl_fast.training.tracking import say
from bissl_fast.version import __version__

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


USAGE = "usage: bissl-fast bench nt-xent [OPTIONS]     (bissl-fast bench nt-xent --help tells more)"


@dataclass(frozen=True)
class BenchSettings:
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


def bench_command(arguments: Sequence[str]) -> None:
    """Parse, measure, print, keep."""
    subject, *rest = arguments or ["--help"]
    if subject in ("--help", "-h"):
        print(USAGE)
        return
    if subject != "nt-xent":
        raise UserError(f"there is no benchmark {subject!r}; `bissl-fast bench nt-xent` is the one there is.")
    settings = tyro.cli(BenchSettings, prog="bissl-fast bench nt-xent", args=rest)
    if settings.precision not in DTYPES:
        raise UserError(f"--precision must be one of {', '.join(DTYPES)}, found {settings.precision!r}.")
    if settings.rounds < 1:
        raise UserError(f"--rounds must be at least 1, found {settings.rounds}.")
    find_device(settings.device)
    sizes = [parse_size(size) for size in settings.sizes]
    console = Console()
    machine = environment(settings)
    say(console, machine)
    kept: list[bench.Row] = []
    text = [f"# NT-Xent beside its peers\n\n{machine}\n"]
    for pairs, width in sizes:
        rows = list(bench.measure(pairs, width, settings.rounds, settings.device, DTYPES[settings.precision]))
        title = f"2 x {pairs} x {width}, {settings.precision}"
        headings, cells = cells_of(rows)
        console.print(table_of(headings, cells, title))
        text.append(markdown_of(headings, cells, title))
        kept += rows
        if settings.output is not None:
            write_atomic(settings.output, "\n".join(text).encode())
            record = {"machine": machine, "rows": [asdict(row) for row in kept]}
            write_json(settings.output.with_suffix(".json"), record)


def parse_size(size: str) -> tuple[int, int]:
    """``"1024x256"`` -> (1024, 256)."""
    pairs, _, width = size.partition("x")
    if not (pairs.isdigit() and width.isdigit() and int(pairs) and int(width)):
        raise UserError(f"Found the size {size!r}, expected pairs x width, as in 1024x256.")
    return int(pairs), int(width)


def environment(settings: BenchSettings) -> str:
    """Machine, versions and date, which every quoted number carries."""
    on_cpu = f"{torch.get_num_threads()} threads of {processor()}"
    name = torch.cuda.get_device_name() if settings.device == "cuda" else on_cpu
    active = ", ".join(name for name, reason in available_backends().items() if not reason)
    return (
        f"bissl-fast {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {name}, "
        f"{datetime.now(timezone.utc).date()}; seed 0; backends: {active}"
    )


def cells_of(rows: Sequence[bench.Row]) -> tuple[list[str], list[list[str]]]:
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


def table_of(headings: Sequence[str], cells: Sequence[Sequence[str]], title: str) -> Table:
    """The table for the terminal."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for line in cells:
        table.add_row(*line)
    return table


def markdown_of(headings: Sequence[str], cells: Sequence[Sequence[str]], title: str) -> str:
    """The table as Markdown."""
    rule = ["---", "---"] + ["---:"] * (len(headings) - 2)
    lines = [f"| {' | '.join(line)} |" for line in (headings, rule, *cells)]
    return "\n".join([f"## {title}", "", *lines, ""])
