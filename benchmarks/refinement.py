"""What refined implicit gradients cost and reach on a trained backbone. Products and residuals, no times.

python -m benchmarks.refinement --run runs/NAME --output docs/results/refinement_cpu

Takes a finished run of `bissl-fast train`: weights after the pretext warm-up, a pretext batch that BiSSL would store,
and as right-hand side the downstream gradient. The measure is a float64 solve of the same system to a residual of 1e-6.
A system that float64 itself does not solve with the products that it is given has that in place of rows.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from benchmarks.product_precision import relative
from benchmarks.record import begun, keep, machine, options
from benchmarks.solver_residuals import real_system
from bissl_fast.bilevel import HessianOperator, ParameterVector, Recycler, ShiftedOperator, minimal_residual
from bissl_fast.methods.bilevel import BilevelSettings

PROXIMITY = 1e-3
SOLVED = 1e-6


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--dampings", type=float, nargs="+", default=[100.0])
    parser.add_argument("--solvers", nargs="+", default=["minimal-residual", "cg", "layerwise-cg"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--corrections", type=int, default=12)
    parser.add_argument("--refine-to", type=float, default=1e-4)
    parser.add_argument("--float64-products", type=int, default=40, help="of the measure, at most")
    arguments = parser.parse_args()
    record = begun(arguments) | {"run": arguments.run.name, "float64": {}, "rows": []}
    hessian, (v, *_), _ = real_system(arguments.run, 1)
    theta, (stored,), loss = hessian._parameters, hessian._batches, hessian._products._loss  # type: ignore[attr-defined]
    hessian.release()
    batch = tree_map(lambda view: view[: arguments.pairs].clone(), stored)
    doubled = ParameterVector(copy.deepcopy(theta.module).double(), "backbone.")
    exact = HessianOperator(loss, doubled, [tree_map(torch.Tensor.double, batch)], "linearized")
    for damping in arguments.dampings:
        system = ShiftedOperator(exact, 1 / (PROXIMITY + damping))
        answer, told = solved(system, v.double(), arguments.float64_products)
        record["float64"][f"{damping:g}"] = told
        print(f"float64 at damping {damping:g}: {told}", flush=True)
        for dtype in arguments.dtypes if told["residual"] < SOLVED else ():
            build = BilevelSettings(products_dtype=dtype, refine_to=arguments.refine_to)
            products = build.build(loss, theta, [batch])
            for solver in arguments.solvers:
                for refine_to in (None, arguments.refine_to):
                    plain = getattr(products, "rough", products)
                    found = BilevelSettings(
                        solver=solver,
                        products_dtype=dtype,
                        refine_to=refine_to,
                        corrections=arguments.corrections,
                    ).solver_of(products if refine_to else plain, PROXIMITY, damping, arguments.iterations)(v)
                    row = {
                        "damping": damping,
                        "products": dtype,
                        "solver": solver,
                        "refined": refine_to is not None,
                        "float32_products": found.products if refine_to else 0,
                        "rough_products": found.rough_products if refine_to else found.products,
                        "residual_told": float(found.relative_residuals[-1]),
                        "residual_in_float64": relative(system.matvec(found.x.double()), v.double()),
                        "error_of_v_IG": relative(found.x, answer),
                        "troubles": found.troubles(),
                    }
                    record["rows"].append(row)
                    print(row, flush=True)
                    keep(arguments.output, record, markdown(record))
            products.release()
        keep(arguments.output, record, markdown(record))
    print(markdown(record))


def solved(system: ShiftedOperator, v: torch.Tensor, most: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """The answer in float64, the products that it took, and its true residual."""
    space, x, reached = Recycler(system, most), torch.zeros_like(v), 1.0
    while reached >= SOLVED and space.size < most:
        found = minimal_residual(space, v, iterations=min(5, most - space.size))
        x, reached = found.x, float(found.relative_residuals[-1])
    return x, {"products": space.size, "residual": reached}


def markdown(record: dict[str, Any]) -> str:
    settings = record["settings"]
    lines = [
        "# Refined implicit gradients on a trained backbone\n",
        f"ResNet-18 after the warm-up of {record['run']}, one stored batch of 2×{settings['pairs']} images, "
        f"{settings['iterations']} products a correction, asked for ‖v − A x‖ / ‖v‖ ≤ {settings['refine_to']:g} in at "
        f"most {settings['corrections']} corrections; errors against a float64 solve.\n",
        "| λ_damp | products | solver | refined | products: float32 | rough | residual told | true | error of v_IG |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        lines.append(
            f"| {row['damping']:g} | {row['products']} | {row['solver']} | {'yes' if row['refined'] else 'no'} "
            f"| {row['float32_products']} | {row['rough_products']} | {row['residual_told']:.1e} "
            f"| {row['residual_in_float64']:.1e} | {row['error_of_v_IG']:.1e} |"
        )
    told = [
        f"At λ_damp = {damping} {found['products']} products in float64 leave {found['residual']:.1e}."
        + ("" if found["residual"] < SOLVED else " That is no measure of others, so there are no rows.")
        for damping, found in record["float64"].items()
    ]
    lines += ["", " ".join(told)]
    return "\n".join([*lines, "", f"{machine(record)}.", ""])


if __name__ == "__main__":
    main()
