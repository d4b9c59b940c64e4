"""``bissl-fast bench products``: what a Hessian-vector product costs on this machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console

from bissl_fast.bilevel.products.hessian import ProductsDtype
from bissl_fast.cli.bench.tables import Cells, keep, machine_of, make_place, markdown_of, measured, table_of
from bissl_fast.measuring.products import Cost, measure, problem
from bissl_fast.methods.checks import require
from bissl_fast.training.console import say
from bissl_fast.training.precision import apply_precision


@dataclass(frozen=True)
class ProductsSettings:
    """Network and images of the measurement.

    Attributes:
        backbone: any timm CNN.
        size: side of the images in pixels.
        pairs: images per stored batch, each in two views.
        stored_batches: if more than one, also products of all of them, in turn and at once.
        rounds: turns of every way; the best counts.
        device: cpu or cuda.
        products_dtype: float32, tf32 or bfloat16.
        output: file to keep the table in, row by row: Markdown here, and the same numbers as .json beside it.
    """

    backbone: str = "resnet18"
    size: int = 96
    pairs: int = 32
    stored_batches: int = 1
    rounds: int = 5
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    products_dtype: ProductsDtype = "float32"
    output: Path | None = None

    def __post_init__(self) -> None:
        for name in ("size", "pairs", "stored_batches", "rounds"):
            require(getattr(self, name) >= 1, name.replace("_", "-"), getattr(self, name), "at least 1")


def run(arguments: Sequence[str]) -> None:
    """Parse, measure, print, keep."""
    settings = tyro.cli(ProductsSettings, prog="bissl-fast bench products", args=arguments)
    make_place(settings.output)
    console = Console()
    with measured(settings.device) as device:
        apply_precision("tf32" if settings.products_dtype == "tf32" else "fp32", torch.device(device))
        machine = machine_of(device)
        say(console, machine)
        case = problem(settings.backbone, settings.size, settings.pairs, settings.stored_batches, device)
        title = f"{settings.backbone}, {settings.size} px, 2 x {settings.pairs} images, {settings.products_dtype}"
        rows: list[Cost] = []
        for row in measure(case, settings.rounds, settings.products_dtype):
            rows.append(row)
            headings, cells = cells_of(rows, 2 * settings.pairs)
            text = [f"# Second-order products\n\n{machine}\n", markdown_of(headings, cells, title, 1)]
            keep(settings.output, text, {"machine": machine, "rows": [asdict(row) for row in rows]})
    console.print(table_of(headings, cells, title, 1))


def cells_of(rows: Sequence[Cost], views: int) -> Cells:
    """Headings and cells: times in milliseconds and in gradients, arithmetic, and memory per view."""
    headings = ["", "ms", "gradients", "operations, in gradients", "of matrix-product rate", "kept, MB per view"]
    return headings, [cell_row(row, rows[0].flops, views) for row in rows]


def cell_row(row: Cost, gradient_flops: int, views: int) -> list[str]:
    if row.seconds is None or row.gradients is None or row.roofline is None:
        return [row.what, "out of memory", "", "", "", ""]
    return [
        row.what,
        f"{row.seconds * 1e3:.0f}",
        f"{row.gradients:.2f}",
        f"{row.flops / gradient_flops:.2f}" if gradient_flops else "",
        f"{100 * row.roofline:.0f} %",
        f"{row.kept_bytes / views / 1e6:.2f}" if row.kept_bytes else "",
    ]
