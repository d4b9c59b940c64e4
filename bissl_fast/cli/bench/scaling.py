"""``bissl-fast bench scaling``: what many ranks would gain, and the same prediction beside ranks of this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from bissl_fast.cli.bench.data import cores
from bissl_fast.cli.bench.tables import Cells, Page, machine_of, make_place
from bissl_fast.measuring.forecast import (
    ALTERNATION,
    CHANGES,
    Checked,
    Forecast,
    Local,
    Plan,
    Traffics,
    checked,
    forecast,
    measured_apart,
    recorded_traffic,
)
from bissl_fast.measuring.local_ranks import Case
from bissl_fast.measuring.machines import Machine
from bissl_fast.measuring.machines import machine_of as gpus_of
from bissl_fast.measuring.rank_work import UNITS, Unit
from bissl_fast.measuring.scaling import GRADIENT
from bissl_fast.measuring.traffic import Line, Traffic
from bissl_fast.methods.checks import require
from bissl_fast.methods.config import TrainConfig
from bissl_fast.methods.presets import preset_config

"""Headings and rows."""


@dataclass(frozen=True)
class ScalingSettings:
    """What is measured here, and what it is forecast for.

    Attributes:
        backbone: any timm CNN.
        size: side of the views in pixels, here.
        pairs: images of all ranks here, each in two views; a multiple of 16.
        rounds: calls of each unit here; the median counts.
        check: measure and run ranks of this machine; off, only what is sent is recorded.
        machine: GPUs of the forecast: h200-nvlink-ib, or a YAML file of its numbers (docs/scaling.md).
        gpus: how many.
        local_pairs: images of a GPU where they do not depend on how many there are.
        output: file to keep the tables in, as each is known: Markdown here, and the same numbers as .json beside it.
    """

    backbone: str = "resnet18"
    size: int = 64
    pairs: int = 32
    rounds: int = 5
    check: bool = True
    machine: str = "h200-nvlink-ib"
    gpus: tuple[int, ...] = (8, 64, 512)
    local_pairs: int = 128
    output: Path | None = None

    def __post_init__(self) -> None:
        require(self.size >= 32, "size", self.size, "at least 32")
        require(self.pairs >= 16 and self.pairs % 16 == 0, "pairs", self.pairs, "a multiple of 16")
        require(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        require(self.local_pairs >= 1, "local-pairs", self.local_pairs, "at least 1")
        require(len(self.gpus) > 0 and min(self.gpus) >= 2, "gpus", self.gpus, "numbers of 2 or more")


def run(arguments: Sequence[str]) -> None:
    """Parse, record, forecast, measure, print, keep."""
    settings = tyro.cli(ScalingSettings, prog="bissl-fast bench scaling", args=arguments)
    make_place(settings.output)
    gpus = gpus_of(settings.machine)
    machine = machine_of("cpu").replace(f"{torch.get_num_threads()} threads", f"{cores()} cores")
    page = Page("Many ranks", machine, settings.output, settings={**asdict(settings), "output": None})
    case = Case(settings.backbone, settings.size, settings.rounds)
    traffics = recorded_traffic(case)
    kept = {unit: asdict(traffic) for unit, traffic in traffics.items()}
    page.add(f"What one rank sends: {settings.backbone}", sent_cells(traffics), {"What one rank sends": kept}, 3)
    add_forecasts(page, gpus, traffics, settings)
    if settings.check:
        add_check(page, case, traffics, settings.pairs)
    page.tell(NOTE)


def add_check(page: Page, case: Case, traffics: Traffics, pairs: int) -> None:
    """The tables of this machine."""
    local = measured_apart(case, pairs, cores())
    links = [[*key, asdict(link)] for key, link in local.links.items()]
    page.add(f"Collectives: gloo, {local.cores} cores", link_cells(local), {"Collectives": links}, 1)
    curves = {unit: [local.alone[unit].points, local.as_rank[unit].points] for unit in UNITS}
    kept = {"curves": curves, "crowding": local.crowding, "cores": local.cores}
    title = f"Computing: one thread, {case.size} px; {local.crowding:.2f} times as long while all cores do"
    page.add(title, curve_cells(local), {"Computing": kept}, 1)
    rows = list(checked(case, pairs, local, traffics))
    told = {"Predicted, then run": list(map(asdict, rows))}
    page.add(f"Predicted, then run: {case.size} px, {pairs} pairs", checked_cells(rows), told)


NOTE = (
    "Strong: the batch of all ranks is fixed; weak: that of a rank. Units are rank 0's; an upper step is without its "
    "products. Measured apart: a rank computes and has nobody to send to, or sends and has nothing to compute. A GPU's "
    "computing, latency and transfer come one after the other, beside the calls of its host: the longer counts."
)


def add_forecasts(page: Page, gpus: Machine, traffics: Traffics, settings: ScalingSettings) -> None:
    """The tables for GPUs, of the preset `paper`."""
    paper = preset_config("paper", "dtd")
    batch, downstream = paper.pretrain.batch_size, paper.finetune.batch_size
    plan = Plan(units_of(paper), batch, downstream, settings.local_pairs, settings.gpus)
    numbers = [[name, f"{n.value:.3g}", n.known, n.source] for name, n in gpus.numbers.items()]
    title = f"Numbers of {gpus.name}"
    page.add(title, (["number", "", "", "source"], numbers), {title: list(map(asdict, gpus.numbers.values()))}, 4)
    rows = list(forecast(gpus, traffics, plan))
    title = f"Forecast for {gpus.name}: strong {batch} pairs, weak {settings.local_pairs} a GPU"
    page.add(title, forecast_cells(rows), {title.split(":")[0]: list(map(asdict, rows))})
    changed = {
        what: [row for row in forecast(gpus, traffics, plan, change) if row.what == ALTERNATION]
        for what, change in CHANGES.items()
    }
    kept = {what: list(map(asdict, found)) for what, found in changed.items()}
    page.add("What would mend it: seconds of an alternation", change_cells(changed), {"What would mend it": kept}, 1)


def units_of(config: TrainConfig) -> dict[Unit, int]:
    """How often an alternation of BiSSL does each unit; a lower step is a pretext step."""
    bissl = config.bissl
    phase = config.bilevel.most_products(bissl.solver_iterations, bissl.upper_steps)
    return {
        "pretext step": bissl.lower_steps,
        "upper step": bissl.upper_steps,
        "linearisation": bissl.stored_batches,
        "product": phase * bissl.stored_batches,
    }


def sent_cells(traffics: Traffics) -> Cells:
    """Messages of each unit by kind, sums of gradients apart; calls of operators in its first row."""
    headings = ["unit", "collective", "waited for", "of two ranks", "for each more", "bytes", "bytes per pair"]
    rows = []
    for unit, traffic in traffics.items():
        first = [unit, *(f"{count:.0f}" for count in traffic.calls)]
        for name, lines in alike(traffic.lines).items():
            count, more = sum(line.count for line in lines), sum(line.per_rank for line in lines)
            fixed, per_pair = (
                sum(m.bytes * m.count for m in Traffic(tuple(lines), (0, 0, 0)).sent(2, x).messages) for x in (0, 1)
            )
            waited = "all" if all(line.waited for line in lines) else "some"
            sizes = f"{count:.0f}", f"{more:.0f}", f"{fixed:,.0f}", f"{per_pair - fixed:,.0f}"
            rows.append([first[0], name, waited, *sizes, *first[1:]])
            first = [""] * len(first)
    return [*headings, "calls alone", "of two ranks", "for each more"], rows


def alike(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Messages by kind, sums of gradients apart."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        name = "sum of a gradient or product" if line.fixed >= GRADIENT and line.kind == "sum" else line.kind
        found.setdefault(name, []).append(line)
    return found


def link_cells(local: Local) -> Cells:
    """Collectives of this machine."""
    return ["collective", "ranks", "latency, µs", "MB/s"], [
        [kind, str(ranks), f"{1e6 * link.latency:.0f}", f"{link.bandwidth / 1e6:.0f}"]
        for (kind, ranks), link in local.links.items()
    ]


def curve_cells(local: Local) -> Cells:
    """Seconds of each unit by images."""
    sizes = [int(x) for x, _ in next(iter(local.alone.values())).points]
    headings = ["unit", *(f"ms alone, {x} pairs" for x in sizes), *(f"as a rank, {x}" for x in sizes)]
    rows = [
        [unit, *(f"{1e3 * y:.0f}" for curve in (local.alone[unit], local.as_rank[unit]) for _, y in curve.points)]
        for unit in local.alone
    ]
    return headings, rows


def checked_cells(rows: Sequence[Checked]) -> Cells:
    """Predictions by what they consist of, beside what was measured."""
    headings = [
        "unit",
        "scaling",
        "ranks",
        "pairs of a rank",
        "computing",
        "latency",
        "transfer, ms",
        "predicted",
        "measured, ms",
        "error",
        "efficiency predicted",
        "measured",
    ]
    return headings, [
        [
            row.unit,
            row.scaling,
            str(row.ranks),
            str(row.images),
            *(f"{1e3 * x:.0f}" for x in (row.predicted.computing, row.predicted.latency, row.predicted.transfer)),
            *(f"{1e3 * x:.0f}" for x in (row.predicted.seconds, row.seconds)),
            f"{100 * row.error:+.0f} %",
            *map(share, row.efficiency),
        ]
        for row in rows
    ]


def forecast_cells(rows: Sequence[Forecast]) -> Cells:
    """One line for each scaling, unit and number of GPUs."""
    parts = ["computing", "latency", "transfer", "calls", "ms", "efficiency", "if no call is waited for"]
    order = list(dict.fromkeys(row.what for row in rows))
    return ["scaling", "unit", "GPUs", "pairs of a GPU", *parts], [
        [
            row.scaling,
            row.what,
            str(row.ranks),
            f"{row.images:g}",
            *(
                f"{1e3 * x:.1f}"
                for x in (row.parts.computing, row.parts.latency, row.parts.transfer, row.parts.calling)
            ),
            f"{1e3 * row.seconds:.1f}",
            share(row.efficiency),
            share(row.efficiency_uncalled),
        ]
        for row in sorted(rows, key=lambda row: (row.scaling, order.index(row.what)))
    ]


def change_cells(changed: Mapping[str, Sequence[Forecast]]) -> Cells:
    """Seconds by change, for each scaling and number of GPUs."""
    headings = ["with", *(f"{row.scaling}, {row.ranks}" for row in next(iter(changed.values())))]
    return headings, [[what, *(f"{row.seconds:.2f}" for row in rows)] for what, rows in changed.items()]


def share(value: float) -> str:
    """A share as it stands in a table."""
    return f"{100 * value:.0f} %"
