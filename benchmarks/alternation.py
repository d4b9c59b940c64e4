"""Whole alternations of BiSSL, lower and upper level, beside plain PyTorch; and what a stage of them would take.

Both sides get the same batches, which are noise of the images' shape and wait on the device: how views keep up is
``bissl-fast bench data``. The first alternation of each side traces, compiles and warms up, and does not count.

    python -m benchmarks.alternation --output docs/results/alternation_cpu --alternations 0    # the first after all
    python -m benchmarks.alternation --output alternation --alternations 0 --brief
    python -m benchmarks.alternation --output alternation --device cuda --pairs 1024 --alternations 3 --precision tf32
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from benchmarks.gpu_report import Report, add_budget
from benchmarks.reference_alternation import ReferenceBiSSL, Views
from benchmarks.upper_phase import described, timed
from bissl_fast.bilevel.products.hessian import ProductsDtype
from bissl_fast.data.pipelines.loader import Batch, Loader
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.measuring.products import Problem, problem
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.bissl.algorithm import BiSSLTask
from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network, build_classifier, probe_features
from bissl_fast.ops.nt_xent.reference import nt_xent_loss
from bissl_fast.pretext import Learner, OptimizerSettings, SimCLR
from bissl_fast.training.precision import Precision, apply_precision

CLASSES = 47  # DTD's
PAPER = 500  # alternations of a stage
SGD = SGDSettings(0.015, 0.0075)


class Noise(Loader):
    """A few batches of noise in turn, made beforehand; channels-last, as views are."""

    def __init__(self, views: int, images: int, size: int, device: str, seed: int, different: int = 8) -> None:
        super().__init__("noise", images, BatchOrder(images, images, seed))
        generator = torch.Generator().manual_seed(seed)
        self._batches = [
            Batch(
                tuple(
                    torch.randn(images, 3, size, size, generator=generator).to(
                        device, memory_format=torch.channels_last
                    )
                    for _ in range(views)
                ),
                torch.randint(CLASSES, (images,), generator=generator).to(device),
                np.arange(images),
                0,
            )
            for _ in range(different)
        ]

    def load(self, draw: int) -> Batch:
        return self._batches[draw % len(self._batches)]

    def close(self) -> None:
        """Nothing is open."""


class Clock:
    """Seconds by name."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    def time(self, name: str, call: Callable[[], Any]) -> Any:
        took, found = timed(call, self._device)
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        return found


class TimedBiSSL(BiSSLTask):
    """The task with a clock on both levels."""

    clock: Clock

    def _lower_level(self, alternation: int) -> Any:
        return self.clock.time("lower", lambda: BiSSLTask._lower_level(self, alternation))

    def _upper_level(self, alternation: int, stored: Any) -> Any:
        return self.clock.time("upper", lambda: BiSSLTask._upper_level(self, alternation, stored))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="writes .json and .md, row by row")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=32, help="images of a pretext batch")
    parser.add_argument("--downstream", type=int, default=32, help="images of a downstream batch")
    parser.add_argument("--alternations", type=int, default=1, help="timed after the first; with 0 the first counts")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of training, both sides")
    parser.add_argument("--products-dtype", choices=get_args(ProductsDtype), default="float32", help="of ours")
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument(
        "--brief",
        action="store_true",
        help="one way of ours, and of the reference one upper step and as many lower ones as are stored, whose time is "
        "told for all, which cost it alike",
    )
    for name in ("lower_steps", "upper_steps", "stored_batches", "solver_iterations"):
        default = getattr(BiSSLSettings(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help="as in Algorithm 1")
    add_budget(parser)
    measure(parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """A row for the reference, and one for each way of ours."""
    device = torch.device(arguments.device)
    names = ("lower_steps", "upper_steps", "stored_batches", "solver_iterations")
    settings = BiSSLSettings(**{name: getattr(arguments, name) for name in names}, warmup_steps=980)
    forward = apply_precision(arguments.precision, device)
    case = problem(arguments.backbone, arguments.size, arguments.pairs, 0, arguments.device)
    head = build_classifier(probe_features(arguments.backbone, arguments.size), CLASSES, 0).to(device)
    loaders = (
        Noise(2, arguments.pairs, arguments.size, arguments.device, 1),
        Noise(1, arguments.downstream, arguments.size, arguments.device, 2),
    )
    report = Report(arguments.output, "Whole alternations", device, arguments, arguments.budget_seconds)
    rest: float | None = None
    if not arguments.no_reference:
        shown = replace(settings, lower_steps=settings.stored_batches, upper_steps=1) if arguments.brief else settings
        all_of = {name: getattr(settings, name) / getattr(shown, name) for name in ("lower_steps", "upper_steps")}
        run = partial(reference, arguments, case, head, loaders, shown, forward)
        measured = partial(alternations, run, arguments.alternations, rest, all_of)
        rest = report.row("rows", measured, what="reference, plain PyTorch").get("alternation")
    for bilevel, products in ways(settings.solver_iterations, arguments.products_dtype, arguments.brief):
        ours = replace(settings, solver_iterations=products)
        run = partial(of_ours, arguments.device, case, head, loaders, ours, bilevel, forward)
        what = f"{described(bilevel)}, {products} products"
        report.row("rows", partial(alternations, run, arguments.alternations, rest), what=what)


def alternations(
    build: Callable[[], tuple[Clock, Callable[[int], Any]]],
    count: int,
    reference_seconds: float | None,
    all_of: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Mean seconds of an alternation after the first, by level; of the first if ``count`` is 0.

    ``all_of`` says how many times as many steps an alternation has as are taken.
    """
    clock, step = build()
    step(0)
    each = first = clock.seconds
    if count:
        clock.seconds = {}
        for index in range(1, count + 1):
            step(index)
        each = {name: seconds / count for name, seconds in clock.seconds.items()}
    each = {name: seconds * (all_of or {}).get(f"{name}_steps", 1) for name, seconds in each.items()}
    row: dict[str, Any] = {"first": first, **each, "alternation": sum(each.values())}
    row["stage_hours"] = row["alternation"] * PAPER / 3600
    if reference_seconds is not None:
        row["times_faster"] = reference_seconds / row["alternation"]
    return row


def ways(iterations: int, dtype: ProductsDtype, brief: bool = False) -> list[tuple[BilevelSettings, int]]:
    """What docs/bilevel.md would choose, and the paper's solver; products per right-hand side."""
    recycled = BilevelSettings(solver="minimal-residual", recycle=True, products_dtype=dtype)
    first = replace(recycled, first_iterations=max(1, iterations - 1))
    more = [(BilevelSettings(products_dtype=dtype), iterations), (recycled, 2)]
    return [(first, 1), *([] if brief else more)]


def reference(
    arguments: argparse.Namespace, case: Problem, head: nn.Module, loaders: Any, settings: BiSSLSettings, forward: Any
) -> tuple[Clock, Callable[[int], None]]:
    """Algorithm 1 of ``benchmarks.reference_alternation`` from the same weights, on timm's own network."""
    pretext = copy.deepcopy(case.plain)
    downstream = Network(copy.deepcopy(pretext.backbone), copy.deepcopy(head))
    temperature = SimCLR().temperature

    def loss(network: nn.Module, views: Views) -> torch.Tensor:
        with forward():
            first, second = (network(view) for view in views)
        return nt_xent_loss(first.float(), second.float(), temperature)

    bissl = ReferenceBiSSL(pretext, downstream, loss, settings, OptimizerSettings(), SGD, arguments.pairs)
    clock = Clock(arguments.device)
    pretext_loader, downstream_loader = loaders

    def step(index: int) -> None:
        lower = [pretext_loader.load(index * settings.lower_steps + k).views for k in range(settings.lower_steps)]
        labelled = [downstream_loader.load(index * settings.upper_steps + k) for k in range(settings.upper_steps)]
        clock.time("lower", lambda: bissl.lower_level(index, lower))
        stored, upper = lower[: settings.stored_batches], [(batch.views[0], batch.target) for batch in labelled]
        clock.time("upper", lambda: bissl.upper_level(index, stored, upper))

    return clock, step


def of_ours(
    device: str,
    case: Problem,
    head: nn.Module,
    loaders: Any,
    settings: BiSSLSettings,
    bilevel: BilevelSettings,
    forward: Any,
) -> tuple[Clock, Callable[[int], Any]]:
    """The task that ``bissl-fast train`` runs, from the same weights."""
    pretext = copy.deepcopy(case.network)
    downstream = Network(copy.deepcopy(pretext.backbone), copy.deepcopy(head))
    task = TimedBiSSL(
        Learner(SimCLR(), pretext, forward),
        downstream,
        *loaders,
        None,
        settings,
        bilevel,
        OptimizerSettings(),
        SGD,
        forward,
    )
    task.clock = Clock(device)
    return task.clock, task.step


if __name__ == "__main__":
    main()
