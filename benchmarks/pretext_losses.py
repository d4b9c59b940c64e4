"""Losses of pretext tasks: Barlow Twins' and VICReg's beside the plain formula, and each one's share of a step.

The plain formula squares the whole D × D matrix. It runs eagerly and compiled (to first order: what ``torch.compile``
makes cannot be differentiated twice). Contenders take turns in every round; a ratio is the median over rounds.

    python -m benchmarks.pretext_losses --output docs/results/pretext_losses_cpu    # 6 minutes on one core
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from benchmarks.record import begun, keep, machine, options
from bissl_fast.models import Network, build_backbone, forward_each
from bissl_fast.pretext import WMSE, BarlowTwins, PretextTask, SimCLR, SwAV, VICReg
from bissl_fast.pretext.barlow import EPSILON as BARLOW_EPSILON
from bissl_fast.pretext.vicreg import EPSILON as VICREG_EPSILON

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Row = dict[str, Any]

SIZES = ((256, 256), (1024, 1024), (2048, 512), (256, 2048), (256, 8192))
"""Images and columns."""
ORDERS = ("loss", "gradient", "product")
IN_STEPS = (SimCLR, BarlowTwins, VICReg, SwAV, WMSE)
SECONDS, MOST_ROUNDS = 1.2, 25
"""After so many seconds no further round of one comparison begins; there are two at least."""

PAGE = """# Losses of pretext tasks

{machine}; float32.

## Beside the plain formula

`ours` is the loss of `--pretext barlow` or `vicreg`; `eager` and `compiled` square the whole D × D matrix. Milliseconds
are the shortest of the rounds, ratios the median over rounds. A product is loss, gradient and Hessian-vector product.

| loss | images × columns | | ours ms | eager ms | compiled ms | eager / ours | compiled / ours | rounds |
|---|---|---|---:|---:|---:|---:|---:|---:|
{times}

Memory of a product above the embeddings, as the system counts it in a process of its own:

| loss | images × columns | ours MiB | eager MiB | one D × D matrix MiB |
|---|---|---:|---:|---:|
{memory}

## Share of a step

Forward and backward pass of ResNet-18 and the task's head of its default widths, {size} px, {images} images, small
views included; the share is that of the loss and its gradient by the outputs. Shortest of two rounds, in turns.

| task | step s | loss ms | share | by the plain formula ms | share |
|---|---:|---:|---:|---:|---:|
{shares}

{verdict}
"""
VERDICT = """A fused kernel could take away no more than the share of the loss, at most {ours:.1%} here. With the plain
formula it would have been {plain:.0%}; what that held were matrix products, which a kernel would have to make, too, and
which `pretext/statistics.py` makes smaller instead. So there is none."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=256, help="of the steps")
    parser.add_argument("--size", type=int, default=96, help="of their large views in pixels")
    parser.add_argument("--quick", action="store_true", help="small sizes only, to see it run")
    arguments = parser.parse_args()
    sizes = [(64, 64), (32, 128)] if arguments.quick else SIZES
    tasks = [BarlowTwins(), VICReg()]
    record = begun(arguments) | {
        "times": [row for size in sizes for task in tasks for row in times(task, *size)],
        "memory": [memory(task.name, *size) for size in sizes[-2:] for task in tasks],
    }
    steps = small() if arguments.quick else [kind() for kind in IN_STEPS]
    record["shares"] = [share(task, arguments.images, arguments.size) for task in steps]
    keep(arguments.output, record, page(record))
    print(json.dumps(record["shares"], indent=1))


def small() -> list[PretextTask]:
    return [BarlowTwins(projector=(32, 32)), VICReg(projector=(32, 32))]


def plain(task: PretextTask) -> Loss | None:
    """The task's formula with its D × D matrices, as released codes have it; None where there is none."""
    if isinstance(task, BarlowTwins):
        return lambda first, second: plain_barlow(task, first, second)
    if isinstance(task, VICReg):
        return lambda first, second: plain_vicreg(task, first, second)
    return None


def beside_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    """All entries but those of the diagonal."""
    width = len(matrix)
    return matrix.flatten()[:-1].view(width - 1, width + 1)[:, 1:].flatten()


def plain_barlow(task: BarlowTwins, *outputs: torch.Tensor) -> torch.Tensor:
    first, second = ((z - z.mean(0)) / (z.var(0, correction=0) + BARLOW_EPSILON).sqrt() for z in outputs)
    correlation = first.T @ second / len(first)
    on, off = (1 - correlation.diagonal()).square().sum(), beside_diagonal(correlation).square().sum()
    return on + task.redundancy * off


def plain_vicreg(task: VICReg, *outputs: torch.Tensor) -> torch.Tensor:
    first, second = outputs
    loss = task.invariance * (first - second).square().mean()
    for z in outputs:
        centred = z - z.mean(0)
        deviations = (z.var(0) + VICREG_EPSILON).sqrt()
        covariance = centred.T @ centred / (len(z) - 1)
        loss = loss + task.variance / 2 * (1 - deviations).relu().mean()
        loss = loss + task.covariance * beside_diagonal(covariance).square().sum() / z.shape[1]
    return loss


def embeddings(images: int, columns: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Two views that require a gradient, and the two halves of a vector."""
    generator = torch.Generator().manual_seed(0)
    first, noise, *vectors = (torch.randn(images, columns, generator=generator) for _ in range(4))
    return [first.requires_grad_(), (first.detach() + 0.3 * noise).requires_grad_()], vectors


def call_of(order: str, loss: Loss, inputs: list[torch.Tensor], vectors: list[torch.Tensor]) -> object:
    """Does it once."""
    value = loss(*inputs)
    if order == "loss":
        return value
    gradient = torch.autograd.grad(value, inputs, create_graph=order == "product")
    return torch.autograd.grad(gradient, inputs, vectors) if order == "product" else gradient


def times(task: PretextTask, images: int, columns: int) -> Iterator[Row]:
    """One row per order."""
    formula = plain(task)
    assert formula is not None
    torch._dynamo.reset()
    losses: dict[str, Loss] = {
        "ours": lambda *outputs: task.loss(outputs, {}),
        "eager": formula,
        "compiled": torch.compile(formula, dynamic=False),
    }
    inputs, vectors = embeddings(images, columns)
    for order in ORDERS:
        found: dict[str, list[float]] = {name: [] for name in losses if (name, order) != ("compiled", "product")}
        for name in found:
            call_of(order, losses[name], inputs, vectors)
        end = time.perf_counter() + SECONDS
        while len(found["ours"]) < 2 or (len(found["ours"]) < MOST_ROUNDS and time.perf_counter() < end):
            for name, seconds in found.items():
                start = time.perf_counter()
                call_of(order, losses[name], inputs, vectors)
                seconds.append(time.perf_counter() - start)
        ours = found["ours"]
        ratios = {
            f"{name} / ours": median(a / b for a, b in zip(seconds, ours, strict=True))
            for name, seconds in found.items()
            if name != "ours"
        }
        best = {f"{name} ms": 1e3 * min(seconds) for name, seconds in found.items()}
        row = {"loss": task.name, "images": images, "columns": columns, "of": order, **best, **ratios}
        yield row | {"rounds": len(ours)}


def memory(name: str, images: int, columns: int) -> Row:
    """Megabytes of a product above its inputs, ours and eager, each in a process of its own."""
    row: Row = {"loss": name, "images": images, "columns": columns, "D × D MiB": 4 * columns**2 / 2**20}
    for who in ("ours", "eager"):
        with multiprocessing.get_context("spawn").Pool(1) as process:
            row[f"{who} MiB"] = process.apply(peak_of_a_product, (name, who, images, columns))
    return row


def peak_of_a_product(name: str, who: str, images: int, columns: int) -> float:
    """Largest resident set of this process above that before."""
    torch.set_num_threads(1)
    task = BarlowTwins() if name == BarlowTwins.name else VICReg()
    formula = plain(task)
    loss = formula if who == "eager" and formula is not None else lambda *outputs: task.loss(outputs, {})
    call_of("product", loss, *embeddings(32, 64))
    inputs, vectors = embeddings(images, columns)
    before = resident_peak()
    call_of("product", loss, inputs, vectors)
    return resident_peak() - before


def resident_peak() -> float:
    """Megabytes; what ``getrusage`` says counts the process that this one was started by."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 1024


def share(task: PretextTask, images: int, size: int) -> Row:
    """Seconds of a step without its optimiser, and of the loss and its gradient in it; the best of two steps."""
    network = Network(build_backbone("resnet18", 0, size), task.head(512, 0))
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(images, 3, v.size, v.size, generator=generator) for v in task.views(size)]
    forward_each(network, [view[:2] for view in views])  # asks the network how views pass it
    formula = plain(task)
    found: dict[str, list[float]] = {"step": [], "loss": [], "plain": []}
    for _ in range(2):
        network.zero_grad()
        start = time.perf_counter()
        outputs = tree_leaves(forward_each(network, views))
        leaves = [output.detach().requires_grad_() for output in outputs]
        before = time.perf_counter()
        gradient = gradient_of(task, leaves, len(views))
        after = time.perf_counter()
        torch.autograd.backward(outputs, gradient)
        found["step"].append(time.perf_counter() - start)
        found["loss"].append(after - before)
        if formula is not None:
            before = time.perf_counter()
            torch.autograd.grad(formula(*leaves), leaves)
            found["plain"].append(time.perf_counter() - before)
    step, loss = min(found["step"]), min(found["loss"])
    row: Row = {"task": task.name, "step s": step, "loss ms": 1e3 * loss, "share": loss / step}
    if formula is not None:
        row["plain ms"] = 1e3 * min(found["plain"])
        row["plain share"] = min(found["plain"]) / (step - loss + min(found["plain"]))
    return row


def gradient_of(task: PretextTask, leaves: list[torch.Tensor], views: int) -> list[torch.Tensor]:
    """Of the loss, by all that the head gives for each view."""
    each = len(leaves) // views
    outputs = [tuple(leaves[k * each : (k + 1) * each]) if each > 1 else leaves[k] for k in range(views)]
    gradients = torch.autograd.grad(task.loss(outputs, {}), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)]


def page(record: dict[str, Any]) -> str:
    """The record as Markdown."""

    def cell(row: Row, name: str, form: str) -> str:
        return format(row[name], form) if name in row else ""

    def lines(rows: list[Row], first: Callable[[Row], str], forms: dict[str, str]) -> str:
        return "\n".join(
            f"| {first(row)} | " + " | ".join(cell(row, name, form) for name, form in forms.items()) + " |"
            for row in rows
        )

    def shape(row: Row) -> str:
        return f"{row['loss']} | {row['images']} × {row['columns']}"

    milliseconds = {f"{name} ms": ".2f" for name in ("ours", "eager", "compiled")}
    ratios = {f"{name} / ours": ".2f" for name in ("eager", "compiled")}
    shares = record["shares"]
    found = {"ours": max(r["share"] for r in shares), "plain": max(r.get("plain share", 0) for r in shares)}
    return PAGE.format(
        machine=machine(record),
        times=lines(
            record["times"], lambda row: f"{shape(row)} | {row['of']}", {**milliseconds, **ratios, "rounds": "d"}
        ),
        memory=lines(record["memory"], shape, {"ours MiB": ".0f", "eager MiB": ".0f", "D × D MiB": ".0f"}),
        shares=lines(
            shares,
            lambda row: row["task"],
            {"step s": ".2f", "loss ms": ".1f", "share": ".2%", "plain ms": ".1f", "plain share": ".1%"},
        ),
        verdict=VERDICT.format(**found),
        **record["settings"],
    )


if __name__ == "__main__":
    main()
