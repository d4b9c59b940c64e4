"""Where the time of an upper phase's parts goes, and what arithmetic alone would take: processor time, by operation.

python -m benchmarks.product_profile --output docs/results/product_profile_cpu

One stored batch, one thread. Each half of the traced product is run node by node, and what an operation takes is this
thread's processor time, which other work on the machine does not count into; the least of some rounds. The floor is the
arithmetic of convolutions and matrix products at the rate of a large matrix product of the same run.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clocked import Clocked
from benchmarks.record import begun, keep, machine, options
from bissl_fast.bilevel import HessianOperator, Recycler, ShiftedOperator
from bissl_fast.measuring.products import problem

KINDS = {"convolution": "convolutions", "mm": "matrix products", "batch_norm": "batch norm", "add": "sums of tangents"}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--known", type=int, default=8, help="pairs that a recycler has")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = begun(arguments) | measured(arguments)
    keep(arguments.output, record, markdown(record))
    print(markdown(record))


@torch.no_grad()
def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the parts, and of the operations of both halves."""
    case, rounds = problem("resnet18", arguments.size, arguments.pairs, 1, "cpu"), arguments.rounds
    hessian = HessianOperator(case.loss, case.theta, case.batches, "linearized")
    products: Any = hessian._products
    (point,), (inputs, _), v = hessian._kept, products._inputs(case.batches[0]), case.vector
    tangents, halves = case.theta.unflatten(v), point.program.halves
    space = Recycler(ShiftedOperator(hessian, 0.1), arguments.known + 1)
    for k in range(arguments.known):
        generator = torch.Generator().manual_seed(k)
        space._remember(*(torch.randn(len(v), generator=generator) for _ in range(2)))
    a = torch.randn(2048, 2048)
    with FlopCounterMode(display=False) as counter:
        product = hessian.matvec(v)
    return {
        "flops_of_a_product": counter.get_total_flops(),
        "flops_per_second": 2 * 2048**3 / least(lambda: a @ a, rounds),
        "seconds": {
            "a product": least(lambda: hessian.matvec(v), rounds),
            "of it, the tangent half": least(lambda: halves.tangent(*point.read, *tangents), rounds),
            "of it, whether it may be taken": least(hessian.point, rounds),
            "a primal half": least(lambda: halves.primal(*inputs), rounds),
            f"a start from {arguments.known} pairs": least(lambda: space.start(v), rounds),
            "remembering one more": least(lambda: space._remember(v.clone(), product.clone()), rounds),
        },
        "tangent": by_kind(halves.tangent, (*point.read, *tangents), rounds),
        "primal": by_kind(halves.primal, inputs, rounds),
    }


def least(call: Callable[[], object], rounds: int) -> float:
    """Processor seconds of this thread."""
    found = float("inf")
    for _ in range(rounds):
        started = time.thread_time()
        call()
        found = min(found, time.thread_time() - started)
    return found


def by_kind(half: fx.GraphModule, inputs: Any, rounds: int) -> dict[str, float]:
    """Processor seconds of a half's operations, by kind, of the shortest run."""
    runs = []
    for _ in range(rounds):
        clocked = Clocked(half, kind_of, time.thread_time)
        clocked.run(*inputs)
        runs.append(clocked.seconds)
    shortest = min(runs, key=lambda run: sum(run.values()))
    return dict(sorted(shortest.items(), key=lambda kind: -kind[1]))


def kind_of(node: fx.Node) -> str:
    return next((told for name, told in KINDS.items() if name in str(node.target)), "all else")


def markdown(record: dict[str, Any]) -> str:
    settings, seconds = record["settings"], record["seconds"]
    floor = record["flops_of_a_product"] / record["flops_per_second"]
    lines = [
        "# Where an upper phase's time goes\n",
        f"ResNet-18, {settings['size']} px, one stored batch of 2×{settings['pairs']} images, float32, one thread: "
        f"a product is {record['flops_of_a_product'] / 1e9:.0f} GFLOP of convolutions and matrix products, at the "
        f"{record['flops_per_second'] / 1e9:.0f} GFLOP/s of a large matrix product {floor:.2f} s.\n",
        "| | processor seconds | of a product |",
        "|---|---:|---:|",
    ]
    whole = seconds["a product"]
    lines += [f"| {what} | {s:.4f} | {100 * s / whole:.1f} % |" for what, s in seconds.items()]
    for half in ("tangent", "primal"):
        total = sum(record[half].values())
        shares = ", ".join(f"{what} {100 * s / total:.0f} %" for what, s in record[half].items())
        lines += ["", f"Of the {half} half: {shares}."]
    return "\n".join([*lines, "", f"{machine(record)}.", ""])


if __name__ == "__main__":
    main()
