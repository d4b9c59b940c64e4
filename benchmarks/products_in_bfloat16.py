"""A traced product in bfloat16 beside one in float32: times in turns, what is kept, and where the time goes.

Rows: both halves of a product in float32, in bfloat16, and in bfloat16 with batch norm by its definition in plain
PyTorch. Then the tangent half by kind of operation, beside its floor: the arithmetic of convolutions at the rate of
this machine in that format (the faster of a large matrix product and a large convolution), and the bytes that all
others read and write at the rate of a copy beyond the caches. Values that stay in a cache may be faster than that.

    python -m benchmarks.products_in_bfloat16 --output docs/results/products_bfloat16_cpu    # 4 minutes on 2 CPU cores
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from operator import getitem
from time import perf_counter
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import fx
from torch.utils._pytree import tree_leaves

from benchmarks.clocked import Clocked
from benchmarks.record import begun, keep, machine, options
from bissl_fast.bilevel.products.traced import Point, TracedProducts
from bissl_fast.bilevel.tracing.simplify import gather_pixels
from bissl_fast.measuring.products import Problem, flops_of, problem
from bissl_fast.measuring.timing import best_of
from bissl_fast.ops.batch_norm import function
from bissl_fast.ops.convolution.columns import columns, filters_in_columns, filters_reversed

Row = dict[str, Any]
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KINDS: dict[str, tuple[Any, ...]] = {
    "convolutions": ("convolution", "mm", torch.mm, columns, filters_in_columns, filters_reversed),
    "batch norm": ("batch_norm",),
    "sums": ("add", "sum", "cat", torch.cat),
    "pooling": ("max_pool2d", "mean", gather_pixels),
    "casts and layouts": ("_to_copy", "clone", "copy", "contiguous"),
}
"""Of operations, by a part of an operator's name or by a function."""
PAGE = """# A product in bfloat16

{machine}.
{backbone}, {size} px, 2 × {pairs} images, channels last; shortest of {rounds} rounds, in turns.

| | primal half ms | product ms | of float32's product | kept, MB per view |
|---|---:|---:|---:|---:|
{ways}

The tangent half by kind of operation. Rates of this machine: {rates}.
Floors: operations of convolutions, and bytes of all else, at these.

| | kind | calls | ms | floor ms | MB read and written | GFLOP |
|---|---|---:|---:|---:|---:|---:|
{kinds}

Casts and layouts, by what they do, in bfloat16: {casts}.
"""


class Way(NamedTuple):
    """A traced product of one kind, and the point that it is taken at."""

    products: TracedProducts
    point: Point


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    parser.add_argument("--pairs", nargs="+", type=int, default=[16, 32], help="images per batch, each in two views")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    record, pages = begun(arguments) | {"rates": rates(), "cases": []}, []
    for pairs in arguments.pairs:
        record["cases"].append(measured(problem(arguments.backbone, arguments.size, pairs, 1, "cpu"), record, pairs))
        pages.append(page(record, record["cases"][-1]))
        keep(arguments.output, record, "\n".join(pages))
        print(pages[-1], flush=True)


def measured(case: Problem, record: Row, pairs: int) -> Row:
    """Times of all ways in turns, and the tangent half of two by kind."""
    rounds = record["settings"]["rounds"]
    found = {
        "float32": way(case, torch.float32),
        "bfloat16": way(case, torch.bfloat16),
        "bfloat16, batch norm in plain PyTorch": way(case, torch.bfloat16, reference=True),
    }
    batch, tangents = case.batches[0], case.theta.unflatten(case.vector)
    calls: dict[str, Callable[[], Any]] = {}
    for name, one in found.items():
        calls[f"{name}: primal"] = partial(one.products.linearise, batch)
        calls[f"{name}: tangent"] = partial(one.products.product, one.point, tangents)
    seconds = best_of(calls, rounds, "cpu")
    rows = {
        name: {
            "primal": seconds[f"{name}: primal"],
            "product": seconds[f"{name}: tangent"],
            "kept_bytes_per_view": one.point.program.halves.residual_bytes / (2 * pairs),
            "flops": flops_of(calls[f"{name}: tangent"]),
        }
        for name, one in found.items()
    }
    kinds = {name: profile(found[name].point, tangents, rounds) for name in FORMATS}
    return {"pairs": pairs, "ways": rows, "kinds": kinds}


def way(case: Problem, dtype: torch.dtype, reference: bool = False) -> Way:
    """A product that is traced with the kernels of this machine, or with batch norm by its definition."""
    products = TracedProducts(case.loss, case.theta, dtype=dtype)
    with patch.object(function, "lacks", lambda *_: "it is measured without") if reference else nullcontext():
        return Way(products, products.linearise(case.batches[0]))


def profile(point: Point, tangents: list[torch.Tensor], rounds: int) -> Row:
    """Of each kind of operation in the tangent half: calls, shortest time, and bytes; and of casts how many of each."""
    half = point.program.halves.tangent
    found: Row = {kind: {"calls": 0, "seconds": float("inf"), "bytes": 0} for kind in (*KINDS, "others")}
    casts: dict[str, int] = defaultdict(int)
    for node in half.graph.nodes:
        if node.op == "call_function" and (moved := bytes_of(node)):
            found[kind_of(node)]["calls"] += 1
            found[kind_of(node)]["bytes"] += moved
            if kind_of(node) == "casts and layouts":
                casts[described(node)] += 1
    with torch.no_grad():
        for _ in range(rounds):
            run = Clocked(half, kind_of, perf_counter)
            run.run(*point.read, *tangents)
            for kind, row in found.items():
                row["seconds"] = min(row["seconds"], run.seconds[kind])
    return {"kinds": found, "casts": dict(casts)}


def kind_of(node: fx.Node) -> str:
    """The kind of what a node calls."""
    target: Any = node.target
    name = target._schema.name.split("::")[1] if isinstance(target, torch._ops.OpOverload) else target.__name__
    for kind, parts in KINDS.items():
        if any(target is part or (isinstance(part, str) and name.startswith(part)) for part in parts):
            return kind
    return "others"


def bytes_of(node: fx.Node) -> int:
    """Bytes that a node reads and writes; a view has none."""
    read, written = (tensors_of(nodes) for nodes in (node.all_input_nodes, [node]))
    shared = {tensor.untyped_storage()._cdata for tensor in read}
    if not written or written[0].untyped_storage()._cdata in shared or node.target is getitem:
        return 0
    return sum(tensor.numel() * tensor.element_size() for tensor in (*read, *written))


def tensors_of(nodes: list[fx.Node]) -> list[torch.Tensor]:
    leaves = tree_leaves([node.meta.get("val") for node in nodes])
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def described(node: fx.Node) -> str:
    """A cast in words, or a change of layout, and whether of weights or of what has as many rows as images."""
    source, value = node.all_input_nodes[-1].meta["val"], node.meta["val"]
    before, after = (str(t.dtype).removeprefix("torch.") for t in (source, value))
    return f"{before} to {after}" if before != after else f"copies of {after}"


def rates() -> Row:
    """Operations a second in each format, and bytes a second of a copy."""
    found: Row = {}
    for name, dtype in FORMATS.items():
        a, side = torch.randn(2048, 2048, dtype=dtype), 24
        x = torch.randn(32, 256, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        w = torch.randn(256, 256, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
        seconds = best_of({"product": partial(torch.mm, a, a), "convolution": partial(F.conv2d, x, w)}, 5, "cpu")
        operations = {"product": 2 * 2048**3, "convolution": 2 * 32 * (side - 2) ** 2 * 9 * 256**2}
        found[name] = max(operations[what] / seconds[what] for what in operations)
    big = torch.randn(32_000_000)
    copy = torch.empty_like(big)
    found["copy"] = 2 * big.numel() * 4 / best_of({"copy": partial(copy.copy_, big)}, 5, "cpu")["copy"]
    return found


def page(record: Row, case: Row) -> str:
    """One case as Markdown."""
    rate, unit = record["rates"], case["ways"]["float32"]["product"]
    told = ", ".join(f"{rate[name] / 1e9:.0f} GFLOP/s in {name}" for name in FORMATS)
    ways = [
        f"| {name} | {row['primal'] * 1e3:.0f} | {row['product'] * 1e3:.0f} | {row['product'] / unit:.2f} "
        f"| {row['kept_bytes_per_view'] / 1e6:.2f} |"
        for name, row in case["ways"].items()
    ]
    casts = case["kinds"]["bfloat16"]["casts"]
    return PAGE.format(
        machine=machine(record),
        **{name: record["settings"][name] for name in ("backbone", "size", "rounds")},
        pairs=case["pairs"],
        ways="\n".join(ways),
        rates=f"{told}, copies at {rate['copy'] / 1e9:.0f} GB/s",
        kinds="\n".join(kind_rows(record, case)),
        casts=", ".join(f"{count} {what}" for what, count in casts.items()),
    )


def kind_rows(record: Row, case: Row) -> Iterator[str]:
    for name in FORMATS:
        flops = case["ways"][name]["flops"]
        for kind, row in case["kinds"][name]["kinds"].items():
            arithmetic = kind == "convolutions"
            floor = flops / record["rates"][name] if arithmetic else row["bytes"] / record["rates"]["copy"]
            cells = [name, kind, str(row["calls"]), f"{row['seconds'] * 1e3:.1f}", f"{floor * 1e3:.1f}"]
            cells += [f"{row['bytes'] / 1e6:.0f}", f"{flops / 1e9:.1f}" if arithmetic else ""]
            yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
