"""Does what one upper phase found out about the Hessian serve the next one? Residuals at equal products, no times.

python -m benchmarks.amortised --run runs/NAME --output docs/results/amortised_cpu

Trains BiSSL's alternations from the warm-ups of a finished run of `bissl-fast train`. After each upper phase its
systems, the stored batches and right-hand sides that training has just seen, are solved again by every policy with
the same number of products per phase. The policies' answers go nowhere, so all of them see one and the same training.
Residuals are those of products taken at the phase's own weights, whatever a policy has kept from before.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from benchmarks.record import begun, keep, machine, options
from bissl_fast.bilevel import HessianOperator, Nystrom, Operator, Recycler, ShiftedOperator
from bissl_fast.bilevel.solvers.recycling import Pair
from bissl_fast.methods.bilevel import BilevelSettings, PhaseSolver
from bissl_fast.methods.bissl.algorithm import BiSSLTask
from bissl_fast.methods.config import TrainConfig, load_config
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.pretrain import Pretext
from bissl_fast.methods.train import Training
from bissl_fast.models import Network
from bissl_fast.ops.krylov import norm
from bissl_fast.pretext.learner import Views

MEASURE = "recycled within the phase"
Turn = Callable[[torch.Tensor], torch.Tensor]
Found = tuple[list[float], Any]
"""Relative residuals of a phase's right-hand sides, in order, and what a policy keeps for the next phase."""


class System:
    """What the policies solve in one phase, and with how many products."""

    def __init__(self, hessian: HessianOperator, scale: float, vectors: list[torch.Tensor], each: int) -> None:
        self.hessian, self.scale, self.vectors, self.each = hessian, scale, vectors, each
        self.operator: Operator = ShiftedOperator(hessian, scale)
        self.products = each * len(vectors)

    def space(self) -> Recycler:
        return Recycler(self.operator, self.products + 1)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=32, help="images of a pretext batch")
    parser.add_argument("--phases", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4, help="right-hand sides per phase [N_U]")
    parser.add_argument("--products", type=int, default=3, help="per right-hand side [N_c]")
    parser.add_argument("--spent", type=int, default=4, help="products per phase on old vectors, or on a sketch")
    parser.add_argument("--damping", type=float, default=10.0)
    parser.add_argument("--same-batch", action="store_true", help="all phases store the first one's: an upper bound")
    arguments = parser.parse_args()
    task = training(arguments)
    rows: dict[str, list[list[float]]] = {}
    kept: dict[str, Any] = {}
    moved = []
    for phase in range(arguments.phases):
        before = task.theta_p.values()
        task.step(phase)
        moved.append(float(norm(task.theta_p.values() - before) / norm(before)))
        system = task.system(arguments.products)
        for name, policy in policies(arguments.spent).items():
            residuals, kept[name] = policy(system, kept.get(name))
            rows.setdefault(name, []).append(residuals)
            print(phase, name, [f"{r:.3g}" for r in residuals], flush=True)
        system.hessian.release()
        write(arguments, rows, moved)


def training(arguments: argparse.Namespace) -> "Watched":
    """BiSSL's task as a run would begin it after its warm-ups."""
    config = load_config(arguments.run / "config.yaml", TrainConfig)
    config = replace(config, pretrain=replace(config.pretrain, batch_size=arguments.pairs))
    settings = replace(
        config.bissl,
        alternations=arguments.phases,
        upper_steps=arguments.steps,
        damping=arguments.damping,
        solver_iterations=arguments.products,
        warmup_steps=config.bissl.warmup_steps or 0,
    )
    run = Training(config, Console()).context
    pretext, downstream = Pretext(config.pretext, config.pretrain), Downstream(config.finetune)
    learner = run.learner(config.pretext)
    learner.load_state_dict(load_file(arguments.run / "pretext-warmup" / "weights.safetensors"))
    head = downstream.classifier(run, "head")
    head.load_state_dict(load_file(arguments.run / "head-warmup" / "weights.safetensors"))
    network = Network(copy.deepcopy(learner.network.backbone), head).to(run.device)
    task = Watched(
        learner,
        network,
        pretext.loader(run, "lower", settings.lower_steps),
        downstream.loader(run, "upper", settings.upper_steps),
        None,
        settings,
        BilevelSettings(solver="minimal-residual", recycle=True),
        config.pretrain.optimizer,
        config.upper,
        run.forward,
        downstream.loss,
    )
    task.same_batch = arguments.same_batch
    return task


class Watched(BiSSLTask):
    """Algorithm 1 that remembers the last phase's stored batches and right-hand sides."""

    same_batch = False
    stored: list[Views] | None = None

    def _solver(self, stored: list[Views]) -> PhaseSolver:
        if self.stored is None or not self.same_batch:
            self.stored = stored
        self.vectors: list[torch.Tensor] = []
        solve = super()._solver(self.stored)

        def remembered(v: torch.Tensor) -> Any:
            self.vectors.append(v)
            return solve(v)

        return remembered

    def system(self, each: int) -> System:
        """The phase's systems once more: θ_P, φ_P and the stored batches are as they were."""
        assert self.hessian is not None
        assert self.stored is not None
        self.hessian.update(self.bilevel.grouped(self.learner.given(self.stored)))
        return System(self.hessian, 1 / (self.settings.proximity + self.settings.damping), self.vectors, each)


def policies(spent: int) -> dict[str, Callable[[System, Any], Found]]:
    return {
        "each alone": alone,
        MEASURE: recycled,
        "recycled, all right-hand sides at once": block,
        "recycled, last phase's solution first": last_solution,
        "recycled, last phase's pairs as preconditioner": lambda s, kept: stale(s, kept, None),
        f"recycled, {spent} harmonic Ritz pairs as preconditioner": lambda s, kept: stale(s, kept, spent),
        f"recycled, {spent} harmonic Ritz vectors multiplied anew": lambda s, kept: refreshed(s, kept, spent),
        f"recycled, Nyström sketch of {spent} as preconditioner": lambda s, kept: sketched(s, spent),
    }


def step(space: Recycler, x: torch.Tensor, r: torch.Tensor, direction: torch.Tensor) -> None:
    """One product, and x and r moved to the smallest residual along what it told."""
    space.matvec(direction)
    known, image = space.newest
    share = (image * r).sum()
    x.addcmul_(share, known)
    r.addcmul_(share, image, value=-1)


def solve(space: Recycler, v: torch.Tensor, products: int, turn: Turn = lambda r: r) -> tuple[torch.Tensor, float]:
    """Generalised conjugate residuals with the directions ``turn(r)``."""
    x, r = space.start(v)
    for _ in range(products):
        step(space, x, r, turn(r))
    return x, float(norm(r) / norm(v))


def alone(system: System, kept: Any) -> Found:
    return [solve(system.space(), v, system.each)[1] for v in system.vectors], None


def recycled(system: System, kept: Any) -> Found:
    space = system.space()
    return [solve(space, v, system.each)[1] for v in system.vectors], None


def block(system: System, kept: Any) -> Found:
    """As if all right-hand sides were known at the phase's begin, which Algorithm 1 does not grant."""
    space = system.space()
    for _ in range(system.each):
        for v in system.vectors:
            space.matvec(space.start(v)[1])
    return [float(norm(space.start(v)[1]) / norm(v)) for v in system.vectors], None


def last_solution(system: System, kept: Any) -> Found:
    """One product of the first right-hand side goes to the solution of the last phase's last."""
    space, residuals = system.space(), []
    for index, v in enumerate(system.vectors):
        begun = index == 0 and kept is not None
        if begun:
            space.matvec(kept)
        x, residual = solve(space, v, system.each - begun)
        residuals.append(residual)
    return residuals, x


def stale(system: System, kept: Any, rank: int | None) -> Found:
    """The last phase's inverse on what it knew, the identity elsewhere: wrong by as much as A has changed, and free."""
    space = system.space()

    def turn(r: torch.Tensor) -> torch.Tensor:
        return r if kept is None else sum(kept.start(r), torch.zeros_like(r))

    residuals = [solve(space, v, system.each, turn)[1] for v in system.vectors]
    old = Recycler(system.operator, system.products + 1)
    old._pairs = [pair for pair in space._pairs if float(norm(pair.image)) > 0]
    if rank is not None:
        old._pairs = harmonic_pairs(old._pairs, rank)
    return residuals, old


def refreshed(system: System, kept: Any, rank: int) -> Found:
    """The last phase's outermost harmonic Ritz vectors, multiplied anew before the first right-hand side."""
    space = system.space()
    for vector in kept or []:
        space.matvec(vector)
    residuals = [solve(space, v, n)[1] for v, n in zip(system.vectors, shared(system, len(kept or [])), strict=True)]
    pairs = [pair for pair in space._pairs if float(norm(pair.image)) > 0]
    return residuals, [pair.direction for pair in harmonic_pairs(pairs, rank)]


def sketched(system: System, rank: int) -> Found:
    """A sketch of this phase's Hessian, whose inverse turns the residuals."""
    sketch, space = Nystrom(system.hessian, rank, system.scale, system.vectors[0]), system.space()
    counts = shared(system, rank)
    turn: Turn = lambda r: sketch(system.operator, r).x  # noqa: E731
    return [solve(space, v, n, turn)[1] for v, n in zip(system.vectors, counts, strict=True)], None


def shared(system: System, spent: int) -> list[int]:
    """Products per right-hand side, ``spent`` less in all, the earlier ones first where they are not even."""
    left, count = system.products - spent, len(system.vectors)
    return [left // count + (k < left % count) for k in range(count)]


def harmonic_pairs(pairs: list[Pair], rank: int) -> list[Pair]:
    """Of span(P) with orthonormal images Q = A P: harmonic Ritz vectors, A P y, furthest from the bulk at 1.

    Their inverse values are the eigenvalues of QᵀP = PᵀAP (Morgan, 1991), so none is multiplied; A may be indefinite.
    """
    if not pairs:
        return []
    P, Q = (torch.stack([getattr(pair, part) for pair in pairs]) for part in ("direction", "image"))
    core = Q.double() @ P.double().T
    values, turned = torch.linalg.eigh((core + core.T) / 2)  # 1 / θ
    far = torch.where(values < 0, float("inf"), values.abs().clamp(min=1e-30).log().abs())
    chosen = turned[:, far.argsort(descending=True)[:rank]].T.to(P.dtype)
    zero = P.new_zeros(())
    return [Pair(p, q, zero) for p, q in zip(chosen @ P, chosen @ Q, strict=True)]


def write(arguments: argparse.Namespace, rows: dict[str, list[list[float]]], moved: list[float]) -> None:
    """Both files, after each phase."""
    record = begun(arguments) | {"run": arguments.run.name, "theta_moved": moved, "relative_residuals": rows}
    keep(arguments.output, record, markdown(record))


def markdown(record: dict[str, Any]) -> str:
    settings = record["settings"]
    first, *moved = (f"{100 * share:.1f}" for share in record["theta_moved"])
    lines = [
        "# What one upper phase knows, in the next\n",
        f"ResNet-18, 2×{settings['pairs']} images, λ_damp = {settings['damping']:g}, {settings['steps']} right-hand "
        f"sides a phase and {settings['products']} products for each, {len(moved) + 1} phases from the warm-ups of "
        f"{record['run']}; between two of them θ_P moves by {', '.join(moved) or first} % of its norm."
        + (" **One and the same stored batch in all phases.**" if settings["same_batch"] else "")
        + "\n",
        "Medians over phases 2 … of ‖v − A x‖ / ‖v‖, products of the phase's own weights, by right-hand side; last, "
        f"the geometric mean of all residuals over those of “{MEASURE}”:\n",
        "| | " + " | ".join(str(k + 1) for k in range(settings["steps"])) + f" | over {MEASURE} |",
        "|---" + "|---:" * (settings["steps"] + 1) + "|",
    ]
    rows = {name: phases[1:] or phases for name, phases in record["relative_residuals"].items()}
    for name, later in rows.items():
        medians = [statistics.median(column) for column in zip(*later, strict=True)]
        pairs = zip(chain(*later), chain(*rows[MEASURE]), strict=True)
        ratio = statistics.geometric_mean(mine / theirs for mine, theirs in pairs)
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in medians) + f" | {ratio:.2f} |")
    return "\n".join([*lines, "", f"{machine(record)}.", ""])


if __name__ == "__main__":
    main()
