"""What every benchmark says of its machine, and how it shows and keeps its numbers."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bissl_fast.errors import UserError
from bissl_fast.ops import available_backends
from bissl_fast.training.environment import processor
from bissl_fast.training.files import make_folder_of, write_atomic, write_json
from bissl_fast.training.precision import find_device
from bissl_fast.version import __version__


@contextmanager
def measured(name: str) -> Iterator[str]:
    """Makes a device the current one, which is what is timed, and gives its type: `cuda` for ``cuda:1``.

    Raises:
        UserError: if the device does not exist on this machine.
    """
    device = find_device(name)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield device.type


def machine_of(device: str) -> str:
    """Machine, versions and date, which every quoted number carries."""
    on_cpu = f"{torch.get_num_threads()} threads of {processor()}"
    name = torch.cuda.get_device_name() if device == "cuda" else on_cpu
    active = ", ".join(name for name, reason in available_backends().items() if not reason)
    return (
        f"bissl-fast {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {name}, "
        f"{datetime.now(timezone.utc).date()}; seed 0; backends: {active}"
    )


def make_place(output: Path | None) -> None:
    """Make the folder of what is to be kept, before anything is measured.

    Raises:
        UserError: if that is not allowed, or Markdown would be written where the numbers go.
    """
    if output is not None:
        if output.suffix == ".json":
            raise UserError(f"--output names the Markdown, with the numbers as .json beside it; found {output}.")
        make_folder_of(output)


def keep(output: Path | None, text: Sequence[str], record: dict[str, Any]) -> None:
    """Write Markdown to ``output`` and the same numbers as .json beside it; nothing without a path."""
    if output is not None:
        write_atomic(output, "\n".join(text).encode())
        write_json(output.with_suffix(".json"), record)


def table_of(headings: Sequence[str], cells: Sequence[Sequence[str]], title: str, texts: int = 2) -> Table:
    """The table for the terminal; the first ``texts`` columns hold words."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < texts else "right")
    for line in cells:
        table.add_row(*line)
    return table


def markdown_of(headings: Sequence[str], cells: Sequence[Sequence[str]], title: str, texts: int = 2) -> str:
    """The table as Markdown."""
    rule = ["---"] * texts + ["---:"] * (len(headings) - texts)
    lines = [f"| {' | '.join(line)} |" for line in (headings, rule, *cells)]
    return "\n".join([f"## {title}", "", *lines, ""])
