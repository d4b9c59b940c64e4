"""One upper phase of BiSSL beside the reference: the same systems, the same answer; then other solvers, fewer products.

The reference runs timm's own network; ours the same weights with fused batch norms.

python -m benchmarks.upper_phase --output docs/results/upper_phase_cpu     # 8 steps x 5 products x 5 batches, minutes
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, get_args

import torch

from benchmarks.reference import upper_phase
from bissl_fast.bilevel import HessianOperator, ShiftedOperator
from bissl_fast.bilevel.hessian import ProductsDtype
from bissl_fast.evaluation.products import Problem, problem
from bissl_fast.methods.bilevel import BilevelSettings, SolverName
from bissl_fast.training.environment import describe_environment
from bissl_fast.training.precision import apply_precision

T = TypeVar("T")
WEIGHT, DAMPING = 1e-3, 10.0  # λ, λ_damp


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


def true_residual(operator: ShiftedOperator, x: torch.Tensor, v: torch.Tensor) -> float:
    """‖v − A x‖ / ‖v‖ with one more product."""
    return float((v - operator.matvec(x)).norm() / v.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="writes .json")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--products-dtype", choices=get_args(ProductsDtype), default="float32", help="of ours")
    parser.add_argument("--weights", type=Path, help="safetensors of a trained network (backbone. and head.)")
    arguments = parser.parse_args()
    record = compare(arguments)
    arguments.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def compare(arguments: argparse.Namespace) -> dict[str, object]:
    """Reference first, then ours with the same solver, then ours with the others. Both in TF32 unless in float32."""
    apply_precision("fp32" if arguments.products_dtype == "float32" else "tf32", torch.device(arguments.device))
    case = problem("resnet18", arguments.size, arguments.pairs, arguments.batches, arguments.device)
    if arguments.weights:
        from safetensors.torch import load_file

        for network in (case.network, case.plain):
            network.load_state_dict(load_file(arguments.weights), strict=True)
    vectors = right_hand_sides(case, arguments.steps, 0.9)
    pieces = [case.theta.unflatten(v) for v in vectors]
    scale = 1 / (WEIGHT + DAMPING)
    seconds, found = timed(
        lambda: [
            case.theta.flatten(x)
            for x in upper_phase(
                case.loss,
                case.plain,
                list(case.plain.backbone.parameters()),
                case.batches,
                pieces,
                scale,
                arguments.iterations,
            )
        ],
        arguments.device,
    )
    started = time.perf_counter()
    hessian = BilevelSettings(products_dtype=arguments.products_dtype).build(case.loss, case.theta, case.batches)
    setup = time.perf_counter() - started
    exact = ShiftedOperator(HessianOperator(case.loss, case.theta, case.batches, "linearized"), scale)
    residuals = [true_residual(exact, x, v) for x, v in zip(found, vectors, strict=True)]
    rows: list[dict[str, object]] = [{"what": "reference", "seconds": seconds, "residuals": residuals}]
    for settings, iterations in variants(arguments.iterations, arguments.device):

        def phase(settings: BilevelSettings = settings, iterations: int = iterations) -> list[torch.Tensor]:
            hessian.update(case.batches)  # the primal halves are part of a phase
            solve = settings.solver_of(hessian, WEIGHT, DAMPING, iterations)
            return [solve(v).x for v in vectors]

        took, ours = timed(phase, arguments.device)
        rows.append(
            {
                "what": f"{described(settings)}, {iterations} products",
                "seconds": took,
                "times_faster": seconds / took,
                "residuals": [true_residual(exact, x, v) for x, v in zip(ours, vectors, strict=True)],
                "difference_from_reference": max(
                    float((x - y).norm() / y.norm()) for x, y in zip(ours, found, strict=True)
                ),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return {
        "environment": describe_environment(torch.device(arguments.device)),
        "settings": {name: str(value) for name, value in vars(arguments).items() if name != "output"},
        "trace_and_first_linearisation_seconds": setup,
        "rows": rows,
    }


def variants(iterations: int, device: str) -> Iterator[tuple[BilevelSettings, int]]:
    """Settings, and products per right-hand side."""
    solvers: tuple[SolverName, ...] = ("layerwise-cg", "minimal-residual")
    for solver in solvers:
        for capture in (False, True) if torch.device(device).type == "cuda" else (False,):
            yield BilevelSettings(solver=solver, capture=capture), iterations
    for few in (2, 3):
        yield BilevelSettings(solver="minimal-residual", recycle=True), few


def described(settings: BilevelSettings) -> str:
    names = [settings.solver, "recycled" if settings.recycle else "", "captured" if settings.capture else ""]
    return ", ".join(filter(None, names))


if __name__ == "__main__":
    main()
