"""How far off are estimated and low-precision products? Errors, no times.

python -m benchmarks.product_precision --run runs/NAME --output docs/results/product_precision.json

On a ResNet-18 with NT-Xent: the error of finite differences along one vector, by step, against the exact product in
float64, where the network has its ReLUs and maxima, and where a softplus and a mean stand for them. On the weights of
a finished run of `bissl-fast train`: the error of v_IG with products in float32 and in bfloat16 against float64.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch.utils._pytree import tree_map

from benchmarks.solver_residuals import real_system
from bissl_fast import ops
from bissl_fast.bilevel import (
    HessianOperator,
    ParameterVector,
    ShiftedOperator,
    Solution,
    conjugate_gradient,
    minimal_residual,
)
from bissl_fast.measuring.products import loss_of_views
from bissl_fast.models import Network, build_backbone, build_projector
from bissl_fast.pretext import SimCLR
from bissl_fast.training.environment import describe_environment
from bissl_fast.training.files import write_json

STEPS = (1e-2, 1e-3, 1e-4, 1e-5)
SOLVERS: dict[str, Callable[..., Solution]] = {
    "layer-wise CG": lambda A, b: conjugate_gradient(A, b, iterations=5, layerwise=True),
    "minimal residual": lambda A, b: minimal_residual(A, b, iterations=5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--damping", type=float, default=10.0)
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "environment": describe_environment(torch.device("cpu")),
        "seed": 0,
        "pairs": arguments.pairs,
        "size": arguments.size,
        "relative_error_of_finite_differences": finite_differences(arguments.pairs, arguments.size),
        "run": arguments.run.name,
        "damping": arguments.damping,
        "relative_error_on_trained_weights": trained(arguments.run, arguments.damping),
    }
    write_json(arguments.output, record)
    Console().print_json(data=record)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def finite_differences(pairs: int, size: int) -> dict[str, dict[str, float]]:
    """‖estimate − H v‖ / ‖H v‖ by network, dtype and step; v random, H in float64."""
    network = Network(build_backbone("resnet18", 0), build_projector(512, (256, 256, 256), 0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # timm starts every block's last weight at 0, which hides what is behind it
        for parameter in network.backbone.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    views = tuple(torch.randn(pairs, 3, size, size, generator=generator) for _ in range(2))
    v = torch.randn(len(ParameterVector(network, "backbone.")), generator=generator)
    found: dict[str, dict[str, float]] = {}
    smooth = copy.deepcopy(network)
    smooth.backbone.maxpool = torch.nn.AvgPool2d(3, 2, 1)
    for kind, variant in (("ReLU and max-pooling", network), ("softplus and mean pooling", smooth)):
        with activations(kind):
            exact = operator(variant, views, torch.float64, "reverse").matvec(v.double())
            for dtype in (torch.float32, torch.float64):
                estimates = {
                    f"{step:g}": operator(variant, views, dtype, "finite_difference", step).matvec(v.to(dtype))
                    for step in STEPS
                }
                key = f"{kind}, {str(dtype).removeprefix('torch.')}"
                found[key] = {step: relative(estimate, exact) for step, estimate in estimates.items()}
    return found


@contextmanager
def activations(kind: str) -> Iterator[None]:
    """A smooth twin of every ReLU inside the block; plain PyTorch ops, whose ReLU it is."""
    relu = torch.relu
    if kind.startswith("softplus"):
        torch.relu = lambda x: F.softplus(x, beta=10)
    try:
        with ops.backend("reference"):
            yield
    finally:
        torch.relu = relu


def operator(
    network: torch.nn.Module, views: tuple[torch.Tensor, ...], dtype: torch.dtype, mode: Any, step: float = 1e-4
) -> HessianOperator:
    """NT-Xent's Hessian in a dtype."""
    twin = copy.deepcopy(network).to(dtype)
    loss = loss_of_views(SimCLR())
    stored = tuple(view.to(dtype) for view in views)
    return HessianOperator(loss, ParameterVector(twin, "backbone."), [stored], mode, retain=0, step=step)


def trained(run: Path, damping: float) -> dict[str, Any]:
    """Errors of one product and of v_IG on a run's weights, by the dtype of the products."""
    hessian, (v, *_), _ = real_system(run, 1)
    theta, (views,), loss = hessian._parameters, hessian._batches, hessian._products._loss  # type: ignore[attr-defined]
    double = copy.deepcopy(theta.module).double()
    doubled = ParameterVector(double, "backbone.")
    exact = HessianOperator(loss, doubled, [tree_map(torch.Tensor.double, views)], "linearized")
    product = exact.matvec(v.double())
    scale = 1 / (1e-3 + damping)
    solutions = {name: solve(ShiftedOperator(exact, scale), v.double()) for name, solve in SOLVERS.items()}
    record: dict[str, Any] = {
        "relative_residual_in_float64": {name: float(s.relative_residuals[-1]) for name, s in solutions.items()}
    }
    for dtype in ("float32", "bfloat16"):
        rough = HessianOperator(loss, theta, [views], "linearized", dtype=dtype)  # type: ignore[arg-type]
        record[dtype] = {"product": relative(rough.matvec(v), product)}
        for name, solve in SOLVERS.items():
            record[dtype][f"v_IG, {name}"] = relative(solve(ShiftedOperator(rough, scale), v).x, solutions[name].x)
    return record


if __name__ == "__main__":
    main()
