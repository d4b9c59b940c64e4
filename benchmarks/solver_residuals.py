"""The spectrum of the real system on a trained backbone, and what each solver makes of it, product by product.

python -m benchmarks.solver_residuals --run runs/NAME --output docs/results/solver_residuals

Takes a finished run of `bissl-fast train`: weights after the pretext warm-up, pretext batches that BiSSL would store,
and as right-hand sides the gradients of the downstream loss on consecutive batches. Writes .json and .png.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from safetensors.torch import load_file

from benchmarks.record import keep
from bissl_fast.bilevel import (
    HessianOperator,
    Nystrom,
    Operator,
    ParameterVector,
    Recycler,
    ShiftedOperator,
    conjugate_gradient,
    frozen_buffers,
    lanczos,
    minimal_residual,
    neumann,
)
from bissl_fast.methods.config import TrainConfig, load_config
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.pretrain import Pretext
from bissl_fast.methods.train import Training
from bissl_fast.models import Network
from bissl_fast.training.environment import describe_environment

PRODUCTS = (1, 2, 3, 5, 10)
RIGHT_HAND_SIDES = 3
Solve = Callable[[Operator, torch.Tensor, int], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--lanczos", type=int, default=16)
    parser.add_argument("--dampings", type=float, nargs="+", default=[10.0, 100.0])
    arguments = parser.parse_args()
    hessian, vectors, like = real_system(arguments.run, arguments.batches)
    spectrum = lanczos(hessian, like, arguments.lanczos)
    record: dict[str, Any] = {
        "environment": describe_environment(like.device),
        "run": arguments.run.name,
        "lowest": float(spectrum.values[0]),
        "highest": float(spectrum.values[-1]),
        "bounds": [float(spectrum.bounds[0]), float(spectrum.bounds[-1])],
        "residuals": {},
    }
    for damping in arguments.dampings:
        record["residuals"][damping] = residuals(hessian, vectors, damping)
    keep(arguments.output, record)
    draw(record, arguments.output.with_suffix(".png"))


def real_system(
    run: Path, batches: int, right_hand_sides: int = RIGHT_HAND_SIDES
) -> tuple[HessianOperator, list[torch.Tensor], torch.Tensor]:
    """The pretext Hessian at the weights after the warm-up, and downstream gradients there."""
    training = Training(load_config(run / "config.yaml", TrainConfig), Console())
    config, context = training.config, training.context
    pretext, downstream = Pretext(config.pretext, config.pretrain), Downstream(config.finetune)
    learner = context.learner(config.pretext)
    learner.load_state_dict(load_file(run / "pretext-warmup" / "weights.safetensors"))
    head = downstream.classifier(context, "head").to(context.device)
    head.load_state_dict(load_file(run / "head-warmup" / "weights.safetensors"))
    learner.network.train()
    theta = ParameterVector(learner.network, "backbone.")
    with pretext.loader(context, "lower") as loader:
        stored = [(seen,) for seen in learner.given([loader.load(k).views for k in range(batches)])]
    with downstream.loader(context, "upper") as loader:
        vectors = [gradient(learner.network, head, theta, loader.load(k)) for k in range(right_hand_sides)]
    return HessianOperator(learner.product_loss, theta, stored, "linearized"), vectors, vectors[0]


def gradient(network: Network, head: torch.nn.Module, theta: ParameterVector, batch: Any) -> torch.Tensor:
    """∇L^D at θ_P, as a vector."""
    with frozen_buffers(network):
        value = F.cross_entropy(head(network.backbone(batch.views[0])), batch.target)
    return theta.flatten(torch.autograd.grad(value, theta.tensors))


def solvers(hessian: HessianOperator, scale: float) -> dict[str, Callable[[], Solve]]:
    """Each solver as a function that begins a phase: what it returns may remember earlier right-hand sides."""

    def recycled(inner: Solve) -> Callable[[], Solve]:
        def begin() -> Solve:
            known = Recycler(ShiftedOperator(hessian, scale), 60)

            def solve(A: Operator, b: torch.Tensor, n: int) -> torch.Tensor:
                x, r = known.start(b)
                return x + inner(known, r, n)

            return solve

        return begin

    def sketched() -> Solve:
        made: list[Nystrom] = []

        def solve(A: Operator, b: torch.Tensor, n: int) -> torch.Tensor:
            if not made:
                made.append(Nystrom(hessian, n, scale, b))
            return made[0](A, b).x

        return solve

    def joint(A: Operator, b: torch.Tensor, n: int) -> torch.Tensor:
        return conjugate_gradient(A, b, iterations=n).x

    return {
        "CG, recycled": recycled(joint),
        "minimal residual, recycled": recycled(lambda A, b, n: minimal_residual(A, b, iterations=n).x),
        "Nyström": sketched,
        "identity": lambda: lambda A, b, n: b,
    }


def at_every_product(system: Operator, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """Relative residuals 0, 1, … of the solvers that one run tells all of, as their recurrences have them."""
    most = PRODUCTS[-1]
    return {
        "layer-wise CG": conjugate_gradient(system, v, iterations=most, layerwise=True).relative_residuals,
        "CG": conjugate_gradient(system, v, iterations=most).relative_residuals,
        "minimal residual": minimal_residual(system, v, iterations=most).relative_residuals,
        "Neumann": neumann(system, v, iterations=most).relative_residuals,
    }


def residuals(hessian: HessianOperator, vectors: list[torch.Tensor], damping: float) -> dict[str, list[float]]:
    """Mean over the right-hand sides of ‖v − A x‖ / ‖v‖, by products per right-hand side."""
    scale = 1 / (1e-3 + damping)
    system = ShiftedOperator(hessian, scale)
    runs = [at_every_product(system, v) for v in vectors]
    found = {name: [float(sum(run[name][n] for run in runs)) / len(runs) for n in PRODUCTS] for name in runs[0]}
    for name, begin in solvers(hessian, scale).items():
        found[name] = []
        for products in PRODUCTS if name != "identity" else PRODUCTS[:1]:
            solve = begin()
            ratios = []
            for v in vectors:
                x = solve(system, v, products)
                ratios.append(float((v - system.matvec(x)).norm() / v.norm()))
            found[name].append(sum(ratios) / len(ratios))
    found["identity"] *= len(PRODUCTS)
    for name, values in found.items():
        print(damping, name, [f"{value:.3g}" for value in values], flush=True)
    return found


def draw(record: dict[str, Any], path: Path) -> None:
    """A panel per damping, a line per solver."""
    figure = Figure(figsize=(4.2 * len(record["residuals"]) + 1.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(record["residuals"]), sharey=True, squeeze=False)[0]
    for panel, (damping, lines) in zip(axes, record["residuals"].items(), strict=True):
        for number, (name, values) in enumerate(lines.items()):
            panel.plot(PRODUCTS, values, label=name, color=f"C{number}", marker="o^sDvP*x"[number], markersize=4)
        panel.set_yscale("log")
        panel.set_ylim(1e-4, 1e3)
        panel.set_xlabel("products per right-hand side")
        panel.set_title(f"λ_damp = {float(damping):g}")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("‖v − A x‖ / ‖v‖")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
