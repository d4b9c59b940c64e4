"""What every benchmark says of its machine, and how it shows and keeps its numbers."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bissl_fast.errors import UserError
from bissl_fast.ops import available_backends
from bissl_fast.training.console import say
from bissl_fast.training.environment import processor
from bissl_fast.training.files import make_folder_of, write_atomic, write_json
from bissl_fast.training.precision import find_device
from bissl_fast.version import __version__

Cells = tuple[list[str], list[list[str]]]
"""Headings, and the lines under them."""


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


class Page:
    """Tables on the terminal and, one after the other, in a file, with their numbers as .json beside it.

    Args:
        title: of the file.
        machine: as :func:`machine_of` tells it.
        output: the file; none without a path.
        record: what the .json tells beside the tables.
    """

    def __init__(self, title: str, machine: str, output: Path | None, **record: Any) -> None:
        self._output, self._console = output, Console()
        self._text, self._record = [f"# {title}\n\n{machine}\n"], {"machine": machine, **record}
        say(self._console, machine)

    def add(self, title: str, cells: Cells, numbers: Mapping[str, Any], texts: int = 2) -> None:
        """A table whose first ``texts`` columns hold words, and its numbers; kept at once."""
        self._console.print(table_of(*cells, title, texts))
        self._text.append(markdown_of(*cells, title, texts))
        self._record |= numbers
        keep(self._output, self._text, self._record)

    def tell(self, note: str) -> None:
        """Words below the tables so far."""
        say(self._console, note)
        self._text.append(f"{note}\n")
        keep(self._output, self._text, self._record)


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
