"""Times of NT-Xent's two Triton kernels over tile shapes: the part ``sweep`` of ``benchmarks.gpu_nt_xent``."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_report import Report
from benchmarks.gpu_timing import median_ms
from bissl_fast.measuring.nt_xent import TEMPERATURE

SHAPES = [(128, 128, 8), (128, 64, 8), (64, 128, 4), (64, 64, 4), (128, 32, 8), (64, 32, 4)]  # rows, columns, warps
EXACT_PRODUCT = {  # of float32 at width 256: rows, columns, warps, stages, chunk, columns of the result at a time
    "sum_plan": [(64, 64, 4, 1, 64, 256), (128, 64, 8, 1, 64, 256)],
    "weight_plan": [(64, 64, 4, 1, 64, 128), (64, 64, 8, 2, 64, 128), (128, 64, 8, 1, 64, 128)],
}


def sweep_tiles(report: Report, device: torch.device, pairs: int, exact_product: bool = False) -> None:
    """Times of the two kernels over tile shapes, at first order and for products.

    Args:
        report: what the rows go to.
        device: where the kernels run.
        pairs: of embeddings.
        exact_product: only the plans that might serve float32's products at width 256, beside the one that does.
    """
    if device.type != "cuda":
        report.row("sweep", lambda: {"left_out": "these kernels run on a GPU alone"})
        return
    from bissl_fast.ops.triton import launch, plans, tiles

    def sums(problem: Any, packed: Tensor, factors: Tensor, tangent: bool) -> Tensor:
        return launch.panel_sums(problem, packed, factors, tiles.TANGENT_SUM if tangent else tiles.SUM)

    def products_with_rows(problem: Any, packed: Tensor, factors: Tensor, tangent: bool) -> Tensor:
        return launch.weigh(problem, packed, factors, factors, tangent)

    kernels = {"sum_plan": sums, "weight_plan": products_with_rows}
    kinds = [(256, True, True)] if exact_product else itertools.product((128, 256), (False, True), (False, True))
    for width, split, tangent in kinds:
        problem = launch.problem_for(pairs, width, TEMPERATURE, False, split, device)
        units = torch.nn.functional.normalize(torch.randn(2 * pairs, width, device=device), dim=1)
        tangents = (torch.randn_like(units) / width, torch.ones(1, device=device)) if tangent else ()
        norms = torch.full((2 * pairs,), 2.0 * pairs, device=device)
        operands = launch.pack(problem, units, norms, norms.new_ones(1), launch.WEIGHT_GAIN, *tangents)
        for name, kernel in kernels.items():
            chosen = getattr(plans, name)(width, split, tangent, plans.describe(device))
            others = [(*shape, stages, chosen.chunk, chosen.out) for shape in SHAPES for stages in (2, 3)]
            if exact_product:
                tile = chosen.tile
                others = [(tile.rows, tile.cols, tile.warps, tile.stages, chosen.chunk, chosen.out)]
                others += EXACT_PRODUCT[name]
            for *tile_of, chunk, out in others:
                plan = plans.Plan(plans.Tile(*tile_of), chunk, out)
                call = functools.partial(kernel, problem, *operands, tangent)
                labels = {"kernel": name, "width": width, "split": split, "tangent": tangent}
                labels |= {"tile": [*tile_of, chunk], "chosen": plan == chosen}
                report.row("sweep", functools.partial(forced, plans, name, plan, call, device), **labels)


def forced(plans: Any, name: str, plan: Any, call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Time of a call while one function of `plans` answers with ``plan``."""
    original = getattr(plans, name)
    setattr(plans, name, lambda *_: plan)
    try:
        return {"ms": median_ms(call, device, 30.0)}
    finally:
        setattr(plans, name, original)
