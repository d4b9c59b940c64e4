"""One upper phase of BiSSL beside the reference: the same systems, the same answer; then other solvers, fewer products.

The reference runs timm's own network; ours the same weights with fused batch norms.

    python -m benchmarks.upper_phase --output docs/results/upper_phase_cpu  # 8 steps x 5 products x 5 batches: minutes
    python -m benchmarks.upper_phase --output upper_phase --brief --bfloat16  # the rows that count
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch

from benchmarks.gpu_report import Report, add_budget, peak
from benchmarks.reference import upper_phase
from bissl_fast.bilevel import HessianOperator, Solution
from bissl_fast.bilevel.products.hessian import ProductsDtype
from bissl_fast.measuring.products import Problem, problem
from bissl_fast.methods.bilevel import BilevelSettings, Hessian
from bissl_fast.training.files import load_weights
from bissl_fast.training.precision import Precision, apply_precision

T = TypeVar("T")
WEIGHT, DAMPING = 1e-3, 10.0  # λ, λ_damp
REACHED = 0.012  # true residual that recycled solves come to, and that a refinement is asked for


def right_hand_sides(case: Problem, count: int, overlap: float) -> list[torch.Tensor]:
    """Vectors as alike as the gradients of consecutive steps: a common part of weight ``overlap`` and a part each."""
    generator = torch.Generator().manual_seed(1)
    common, *own = (torch.randn(len(case.theta), generator=generator) for _ in range(count + 1))
    return [(overlap * common + (1 - overlap**2) ** 0.5 * part).to(case.vector.device) for part in own]


def timed(call: Callable[[], T], device: str) -> tuple[float, T]:
    """Seconds of one call, the device being waited for at both ends, and what it gives."""
    wait: Callable[[], object] = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    found = call()
    wait()
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="writes .json and .md, row by row")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--products-dtype", choices=get_args(ProductsDtype), default="float32", help="of ours")
    parser.add_argument("--memory-budget", type=float, help="gigabytes for ours; left out: as in training")
    parser.add_argument("--weights", type=Path, help="safetensors of a trained network (backbone. and head.)")
    parser.add_argument("--bfloat16", action="store_true", help="rows with bfloat16 products, plain and refined, too")
    parser.add_argument(
        "--brief",
        action="store_true",
        help="no other variants; reference and paper's solver solve one system, its time told for all, which cost "
        "them alike; residuals of the last two",
    )
    add_budget(parser)
    compare(parser.parse_args())


def compare(arguments: argparse.Namespace) -> None:
    """Reference first, then ours with the same solver, then ours with the others. Both in TF32 unless in float32."""
    device = torch.device(arguments.device)
    precision: Precision = "fp32" if arguments.products_dtype == "float32" else "tf32"
    apply_precision(precision, device)
    case = problem("resnet18", arguments.size, arguments.pairs, arguments.batches, arguments.device)
    if arguments.weights:
        for network in (case.network, case.plain):
            network.load_state_dict(load_weights(arguments.weights), strict=True)
    report = Report(arguments.output, "One upper phase", device, arguments, arguments.budget_seconds)
    phases = Phases(case, arguments, right_hand_sides(case, arguments.steps, 0.9))
    report.row("rows", phases.reference, what=f"reference, {precision}")
    report.row("setup", phases.set_up, what=f"trace, compile and first product, {arguments.products_dtype}")
    for variant, products in variants(phases.settings, arguments, device):
        measure = partial(phases.ours, variant, products)
        report.row("rows", measure, what=f"{described(variant)}, {products} products")


class Phases:
    """The same upper phase by the reference and by ours, which hold the device's memory one after the other.

    Args:
        case: network, loss and stored batches.
        arguments: of the command line.
        vectors: the right-hand sides, each ``(L,)``.
    """

    def __init__(self, case: Problem, arguments: argparse.Namespace, vectors: list[torch.Tensor]) -> None:
        self._case, self._arguments, self._vectors = case, arguments, vectors
        self.settings = BilevelSettings(products_dtype=arguments.products_dtype, memory_budget=arguments.memory_budget)
        self._scale = 1 / (WEIGHT + DAMPING)
        self._found: list[torch.Tensor] = []
        self._seconds = 0.0
        self._hessian: Hessian | None = None
        self._built = self.settings
        self._exact: HessianOperator | None = None

    def reference(self) -> dict[str, Any]:
        """Plain PyTorch, warmed up by a product."""
        case, iterations = self._case, self._arguments.iterations
        pieces = [case.theta.unflatten(v) for v in self._timed(recycles=False)]
        parameters = list(case.plain.backbone.parameters())

        def phase(batches: list[Any], vectors: list[Any], iterations: int) -> list[list[torch.Tensor]]:
            return upper_phase(case.loss, case.plain, parameters, batches, vectors, self._scale, iterations)

        phase(case.batches[:1], pieces[:1], 1)
        took, found = timed(lambda: phase(case.batches, pieces, iterations), self._arguments.device)
        self._seconds = took * len(self._vectors) / len(pieces)
        self._found = [case.theta.flatten(x) for x in found]
        row = {"seconds": self._seconds, **peak(case.vector.device)}
        return {**row, "residuals": self._true_residuals(self._found)}

    def set_up(self) -> dict[str, Any]:
        """What a run pays once."""
        started = time.perf_counter()
        hessian = self._operator(self.settings)
        hessian.matvec(self._case.vector)
        kept = {"kept_gigabytes": hessian.kept_bytes / 1e9}
        if isinstance(hessian, HessianOperator):
            kept["batches_kept"] = hessian.retained
        hessian.release()
        return {"seconds": time.perf_counter() - started, **kept}

    def ours(self, settings: BilevelSettings, products: int) -> dict[str, Any]:
        """A phase with its primal halves, warmed up by a system with one product."""
        hessian, batches = self._operator(settings), self._case.batches
        vectors = self._timed(settings.recycle)

        def phase(
            settings: BilevelSettings, vectors: list[torch.Tensor], products: int
        ) -> tuple[float, list[Solution]]:
            took, _ = timed(lambda: hessian.update(batches), self._arguments.device)
            solve = settings.solver_of(hessian, WEIGHT, DAMPING, products)
            return took, [solve(v) for v in vectors]

        try:
            phase(replace(settings, capture=False, first_iterations=None, corrections=1), vectors[:1], 1)
            took, (once, found) = timed(lambda: phase(settings, vectors, products), self._arguments.device)
        finally:
            hessian.release()
        took = once + (took - once) * len(self._vectors) / len(vectors)
        x = [solution.x for solution in found]
        row: dict[str, Any] = {"seconds": took, **peak(x[0].device)}
        if self._found:
            row["times_faster"] = self._seconds / took
            pairs = zip(x, self._found, strict=False)
            row["difference_from_reference"] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        row["products"] = [[solution.products, solution.rough_products] for solution in found]
        return {**row, "residuals": self._true_residuals(x)}

    def _timed(self, recycles: bool) -> list[torch.Tensor]:
        """The right-hand sides that are solved: all, or one of them where that tells the time of all."""
        return self._vectors[:1] if self._arguments.brief and not recycles else self._vectors

    def _operator(self, settings: BilevelSettings) -> Hessian:
        """The operator of these settings, one at a time."""

        def decides(settings: BilevelSettings) -> tuple[Any, ...]:
            return settings.products_dtype, settings.refine_to is None

        if self._hessian is None or decides(settings) != decides(self._built):
            self._hessian = None
            self._hessian, self._built = settings.build(self._case.loss, self._case.theta, self._case.batches), settings
        return self._hessian

    def _true_residuals(self, solutions: list[torch.Tensor]) -> list[float]:
        """‖v − A x‖ / ‖v‖ in float32, by a product that keeps nothing and is let go of."""
        pairs = list(zip(solutions, self._vectors, strict=False))[-2 if self._arguments.brief else 0 :]
        case, (x, v) = self._case, map(torch.stack, zip(*pairs, strict=True))
        if self._exact is None:
            self._exact = HessianOperator(case.loss, case.theta, case.batches, "linearized", retain=0, compiled=False)
        else:
            self._exact.update(case.batches)
        rest = v - x - self._scale * self._exact.matmat(x)
        self._exact.release()
        return [float(r.norm() / b.norm()) for r, b in zip(rest, v, strict=True)]


def variants(
    settings: BilevelSettings, arguments: argparse.Namespace, device: torch.device
) -> Iterator[tuple[BilevelSettings, int]]:
    """Settings, and products per right-hand side; those that matter most first."""
    iterations = arguments.iterations
    yield replace(settings, solver="layerwise-cg"), iterations
    recycled = replace(settings, solver="minimal-residual", recycle=True)
    first = replace(recycled, first_iterations=max(1, iterations - 1))
    yield first, 1
    if arguments.bfloat16:
        yield replace(first, products_dtype="bfloat16"), 1
        yield replace(recycled, products_dtype="bfloat16", refine_to=REACHED), 2
    if arguments.brief:
        return
    for few in (2, 3):
        yield recycled, few
    yield replace(settings, solver="minimal-residual"), iterations
    if device.type == "cuda":
        yield replace(settings, solver="layerwise-cg", capture=True), iterations
        yield replace(settings, solver="minimal-residual", capture=True), iterations


def described(settings: BilevelSettings) -> str:
    names = [
        settings.solver,
        "recycled" if settings.recycle else "",
        "" if settings.first_iterations is None else f"first {settings.first_iterations}",
        "captured" if settings.capture else "",
        "" if settings.products_dtype == "float32" else settings.products_dtype,
        "" if settings.refine_to is None else f"refined to {settings.refine_to:g}",
    ]
    return ", ".join(filter(None, names))


if __name__ == "__main__":
    main()
