"""One upper phase's systems by preconditioners, blocks and starts. True residuals at equal products, no times.

python -m benchmarks.preconditioners --run runs/NAME --output docs/results/preconditioners_cpu

Takes a finished run of `bissl-fast train`: weights after the pretext warm-up, pretext batches that BiSSL would store,
and as right-hand sides the gradients of the downstream loss on consecutive batches. Each way has the same number of
products for the whole phase, those of its set-up among them. A product with part of the stored batches, or with the
Gauss-Newton matrix, counts by the arithmetic of its convolutions and matrix products. Residuals are those of one more
product of the system, in float32, which is not counted.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.amortised import Turn, solve
from benchmarks.record import begun, keep, machine, options
from benchmarks.solver_residuals import real_system
from bissl_fast.bilevel import (
    HessianOperator,
    Nystrom,
    Operator,
    Recycler,
    ShiftedOperator,
    conjugate_gradient,
    minimal_residual,
)
from bissl_fast.ops.krylov import norm

PROXIMITY = 1e-3
MEASURE = "minimal residual, recycled"
Way = Callable[["Phase"], list[torch.Tensor]]


class Priced:
    """An operator whose products are counted, each at its price in products of the system."""

    def __init__(self, hessian: HessianOperator, flops: int) -> None:
        self.hessian, self.segments, self.spent = hessian, hessian.segments, 0.0
        with FlopCounterMode(display=False) as counter:
            hessian.matvec(torch.ones(sum(self.segments)))
        self.flops = counter.get_total_flops()
        self.price = self.flops / flops if flops else 1.0

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        self.spent += self.price
        return self.hessian.matvec(vector)

    def matmat(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.matvec(v) for v in vectors])


class Phase:
    """One upper phase: N_U right-hand sides, one Hessian.

    Attributes:
        total: products for all right-hand sides together.
        last: the solution that another stored batch gives for another right-hand side: what a phase has from the last.
    """

    def __init__(
        self, loss: Any, theta: Any, batches: Sequence[Any], vectors: list[torch.Tensor], scale: float
    ) -> None:
        *stored, other = batches
        self.vectors, self.scale, self.total = vectors[:-1], scale, 0
        self.full = Priced(HessianOperator(loss, theta, stored, "linearized"), 0)
        self.one = Priced(HessianOperator(loss, theta, stored[:1], "linearized"), self.full.flops)
        self.gauss_newton = Priced(HessianOperator(loss, theta, stored, "gauss_newton"), self.full.flops)
        self.system: Operator = ShiftedOperator(self.full, scale)
        before = ShiftedOperator(HessianOperator(loss, theta, [other], "linearized"), scale)
        self.last = minimal_residual(before, vectors[-1], iterations=10).x

    @property
    def spent(self) -> float:
        return self.full.spent + self.one.spent + self.gauss_newton.spent

    def begin(self, each: int) -> None:
        """So many products per right-hand side from here on."""
        self.total = each * len(self.vectors)
        self.full.spent = self.one.spent = self.gauss_newton.spent = 0.0

    def shares(self, first: int | None = None) -> list[int]:
        """What is left of the products, shared out evenly, or one for each behind the first if that is given."""
        left, count = int(self.total - self.spent), len(self.vectors)
        if first is not None:
            return [left - first * (count - 1), *[first] * (count - 1)]
        return [left // count + (k < left % count) for k in range(count)]

    def recycled(self, shares: Sequence[int], turn: Turn = lambda r: r, known: torch.Tensor | None = None) -> list[Any]:
        """Generalised conjugate residuals along ``turn(r)``, all products remembered, ``known`` multiplied first."""
        space = Recycler(self.system, 2 * self.total)
        if known is not None:
            space.matvec(known)
        return [solve(space, v, n, turn)[0] for v, n in zip(self.vectors, shares, strict=True)]

    def residuals(self, solutions: list[torch.Tensor]) -> list[float]:
        plain = ShiftedOperator(self.full.hessian, self.scale)
        pairs = zip(self.vectors, solutions, strict=True)
        return [float(norm(v - plain.matvec(x)) / norm(v)) for v, x in pairs]


def ways(rank: int) -> dict[str, Way]:
    """Each a function of a phase that it may spend the products of."""

    def alone(solver: Callable[..., Any], **settings: Any) -> Way:
        def way(phase: Phase) -> list[torch.Tensor]:
            pairs = zip(phase.vectors, phase.shares(), strict=True)
            return [solver(phase.system, v, iterations=n, **settings).x for v, n in pairs]

        return way

    def sketched(which: str) -> Way:
        def way(phase: Phase) -> list[torch.Tensor]:
            sketch = Nystrom(getattr(phase, which), rank, phase.scale, phase.vectors[0])
            return phase.recycled(phase.shares(), lambda r: sketch(phase.system, r).x)

        return way

    def started(phase: Phase) -> list[torch.Tensor]:
        first, *others = phase.shares()
        return phase.recycled([first - 1, *others], known=phase.last)

    return {
        "layer-wise CG": alone(conjugate_gradient, layerwise=True),
        "CG": alone(conjugate_gradient),
        "minimal residual": alone(minimal_residual),
        MEASURE: lambda phase: phase.recycled(phase.shares()),
        "recycled, one product for each but the first": lambda phase: phase.recycled(phase.shares(first=1)),
        f"recycled, Nyström sketch of H, rank {rank}": sketched("full"),
        f"recycled, Nyström sketch of one batch's H, rank {rank}": sketched("one"),
        f"recycled, Nyström sketch of Gauss–Newton, rank {rank}": sketched("gauss_newton"),
        "recycled, the last phase's solution first": started,
        "recycled, all right-hand sides at once": at_once,
    }


def at_once(phase: Phase) -> list[torch.Tensor]:
    """A block solve, as if all right-hand sides were known from the beginning, which Algorithm 1 does not grant."""
    space = Recycler(phase.system, 2 * phase.total)
    for turn in range(phase.total):
        space.matvec(space.start(phase.vectors[turn % len(phase.vectors)])[1])
    return [space.start(v)[0] for v in phase.vectors]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--batches", type=int, default=2, help="stored [K]")
    parser.add_argument("--steps", type=int, default=5, help="right-hand sides [N_U]")
    parser.add_argument("--each", type=int, nargs="+", default=[2, 5], help="products per right-hand side [N_c]")
    parser.add_argument("--rank", type=int, default=5, help="of the sketches")
    parser.add_argument("--dampings", type=float, nargs="+", default=[10.0, 100.0])
    arguments = parser.parse_args()
    hessian, vectors, _ = real_system(arguments.run, arguments.batches + 1, arguments.steps + 1)
    theta, stored, loss = hessian._parameters, hessian._batches, hessian._products._loss  # type: ignore[attr-defined]
    hessian.release()
    batches = [tree_map(lambda view: view[: arguments.pairs].clone(), batch) for batch in stored]
    record = begun(arguments) | {"run": arguments.run.name, "rows": []}
    for damping in arguments.dampings:
        phase = Phase(loss, theta, batches, vectors, 1 / (PROXIMITY + damping))
        record["prices"] = {"one batch": phase.one.price, "Gauss–Newton": phase.gauss_newton.price}
        for each in arguments.each:
            for name, way in ways(arguments.rank).items():
                phase.begin(each)
                solutions = way(phase)
                row = {"damping": damping, "each": each, "way": name, "products": phase.spent}
                record["rows"].append(row | {"residuals": phase.residuals(solutions)})
                print(record["rows"][-1], flush=True)
                keep(arguments.output, record, markdown(record))
    print(markdown(record))


def markdown(record: dict[str, Any]) -> str:
    """A row per way; columns by damping and products."""
    settings = record["settings"]
    found = {(row["way"], row["damping"], row["each"]): row for row in record["rows"]}
    columns = sorted({key[1:] for key in found})
    prices = ", ".join(f"{price:.2f} for {what}" for what, price in record["prices"].items())
    lines = [
        "# Preconditioners, blocks and starts in one upper phase\n",
        f"ResNet-18 after the warm-up of {record['run']}, {settings['batches']} stored batches of "
        f"2×{settings['pairs']} images, {settings['steps']} right-hand sides. Geometric means over them of the true "
        f"‖v − A x‖ / ‖v‖, in brackets the largest. All products count, those of set-ups too, at {prices}.\n",
        "| | " + " | ".join(f"λ_damp {d:g}, {each * settings['steps']} products" for d, each in columns) + " |",
        "|---" + "|---:" * len(columns) + "|",
    ]
    for name in dict.fromkeys(row["way"] for row in record["rows"]):
        cells = []
        for column in columns:
            values = found[(name, *column)]["residuals"] if (name, *column) in found else []
            cells.append(f"{statistics.geometric_mean(values):.2g} ({max(values):.2g})" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{machine(record)}.", ""])


if __name__ == "__main__":
    main()
