"""What benchmarks leave: machine, settings and numbers as .json, and a page of Markdown beside them."""

import argparse
from pathlib import Path
from typing import Any

import torch

from bissl_fast.training.environment import describe_environment
from bissl_fast.training.files import make_folder_of, write_atomic, write_json

Record = dict[str, Any]
APART = ("output", "run", "page")
"""Options that say where things lie."""


def options(about: str | None, left: str = "writes .json and .md") -> argparse.ArgumentParser:
    """A parser with `--output`.

    Args:
        about: the first lines of the benchmark.
        left: what it writes.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help=left)
    return parser


def begun(arguments: argparse.Namespace, device: torch.device | str = "cpu") -> Record:
    """A record of the machine and of what was asked for."""
    settings = {name: value for name, value in vars(arguments).items() if name not in APART}
    return {"environment": describe_environment(torch.device(device)), "settings": settings}


def keep(output: Path, record: Record, page: str = "") -> None:
    """Write the record, and the page if there is one yet."""
    make_folder_of(output)
    write_json(output.with_suffix(".json"), record)
    if page:
        write_atomic(output.with_suffix(".md"), page.encode())


def machine(record: Record, *packages: str) -> str:
    """Versions, processor and date, which every quoted number carries.

    Args:
        record: as :func:`begun` made it.
        packages: that are named beside torch.
    """
    about = record["environment"]
    versions = ", ".join(f"{name} {about['packages'][name]}" for name in ("torch", *packages))
    return (
        f"bissl-fast {about['bissl-fast']}, {versions}, Python {about['python']}, {about['threads']} thread(s) of "
        f"{about['processor']}, seed 0; {about['date']}"
    )


def line(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"
