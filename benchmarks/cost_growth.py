"""How the cost of an upper phase grows with images, stored batches, upper steps and iterations: counts beside seconds.

python -m benchmarks.cost_growth --output docs/results/cost_growth_cpu

One quantity at a time grows from a small phase of the paper's solver, layer-wise CG. Counted, the same on any machine:
products times images, and the arithmetic of convolutions and matrix products. Seconds are those of the processor, the
least of some rounds in which all sizes take turns. Writes .json and .png.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import begun, keep, options
from bissl_fast.measuring.products import Problem, problem
from bissl_fast.methods.bilevel import BilevelSettings, Hessian

WEIGHT, DAMPING = 1e-3, 10.0
NAMES = {
    "pairs": "image pairs of a stored batch",
    "batches": "stored batches, K",
    "steps": "upper steps, N_U",
    "iterations": "iterations of a solve, N_c",
}
COUNTS = {"product_images": "products × images", "flops": "arithmetic", "seconds": "processor's seconds"}


def main() -> None:
    parser = options(__doc__, "writes .json and .png")
    parser.add_argument("--size", type=int, default=32)
    for name, default in {"pairs": 8, "batches": 2, "steps": 2, "iterations": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{NAMES[name]}, where others grow")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    base = {name: getattr(arguments, name) for name in NAMES}
    most = {name: value * max(arguments.factors) for name, value in base.items()}
    case = problem("resnet18", arguments.size, most["pairs"], most["batches"], "cpu")
    hessian = BilevelSettings().build(case.loss, case.theta, case.batches)
    vectors = [torch.randn(len(case.theta), generator=torch.Generator().manual_seed(k)) for k in range(most["steps"])]
    record = begun(arguments)
    record["growth"] = {name: [base | {name: base[name] * factor} for factor in arguments.factors] for name in NAMES}
    phases = [(row, phase_of(hessian, case, vectors, row)) for rows in record["growth"].values() for row in rows]
    for row, phase in phases:
        print({name: row[name] for name in NAMES}, flush=True)
        row.update(counted(hessian, phase, row["pairs"]), seconds=float("inf"))
    for _ in range(arguments.rounds):
        for row, phase in phases:
            started = time.process_time()
            phase()
            row["seconds"] = min(row["seconds"], time.process_time() - started)
    record["lines"] = {name: lines(rows, name) for name, rows in record["growth"].items()}
    keep(arguments.output, record)
    draw(record, arguments.output.with_suffix(".png"))
    for name, told in record["lines"].items():
        print(NAMES[name], told)


def phase_of(hessian: Hessian, case: Problem, vectors: list[torch.Tensor], row: dict[str, int]) -> Callable[[], None]:
    """A call that linearises and solves."""
    batches = [tree_map(lambda view: view[: row["pairs"]], batch) for batch in case.batches[: row["batches"]]]
    hessian.update(batches)  # which traces what has not been yet

    def phase() -> None:
        hessian.update(batches)
        solve = BilevelSettings().solver_of(hessian, WEIGHT, DAMPING, row["iterations"])
        for v in vectors[: row["steps"]]:
            solve(v)

    return phase


def counted(hessian: Any, phase: Callable[[], None], pairs: int) -> dict[str, int]:
    """Products of one batch that are really taken, times its images; and floating-point operations."""
    taken: list[int] = []
    products = hessian._products
    once = products.product

    def product(point: Any, tangents: Any, last: bool) -> Any:
        taken.append(2 * pairs)
        return once(point, tangents, last)

    products.product = product
    try:
        with FlopCounterMode(display=False) as counter:
            phase()
    finally:
        del products.product
    return {"product_images": sum(taken), "flops": counter.get_total_flops()}


def lines(rows: list[dict[str, Any]], name: str) -> dict[str, dict[str, float]]:
    """For each count the straight line through its values that fits best, and the largest departure from it."""
    sizes, found = np.array([row[name] for row in rows], dtype=float), {}
    for count in COUNTS:
        values = np.array([row[count] for row in rows], dtype=float)
        slope, start = np.polyfit(sizes, values, 1)
        departure = float(np.abs((slope * sizes + start) / values - 1).max())
        found[count] = {"slope": float(slope), "start": float(start), "departure": departure}
    return found


def draw(record: dict[str, Any], path: Path) -> None:
    """A panel per quantity; each count relative to its smallest value."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(NAMES), sharey=True)
    for panel, (name, rows) in zip(axes, record["growth"].items(), strict=True):
        sizes = [row[name] for row in rows]
        for (count, label), style in zip(COUNTS.items(), ("s-", "^--", "o:"), strict=True):
            panel.plot(sizes, [row[count] / rows[0][count] for row in rows], style, label=label, markersize=4)
        panel.set_xlabel(NAMES[name])
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("over the smallest")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
