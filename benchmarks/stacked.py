"""n networks trained in one process: one by one, side by side (``models/stacked.py``), or by ``torch.func.vmap``.

A call is a forward and a backward pass of all n, each on a batch of its own, in train mode. vmap takes timm's own
layers, since the fused batch norm has no batching rule. Ways take turns, and the shortest time of each counts.

    python -m benchmarks.stacked --output docs/results/stacked_cpu    # 2 minutes on 1 CPU core
"""

import gc
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.record import begun, keep, line, machine, options
from bissl_fast.measuring.timing import best_of
from bissl_fast.models import build_backbone, place
from bissl_fast.models.stacked import Stack

Row = dict[str, Any]
WAYS = ("one by one", "side by side", "vmap")
PAGE = """# Networks one by one and stacked

{machine}.
{backbone}, float32, channels last; shortest of {rounds} rounds, in turns. Seconds of a forward and a backward
pass of n networks, each on a batch of its own; difference of the outputs side by side from those one by one, as a share
of their norm.

| px | images | n | one by one s | side by side s | vmap s | side by side / one by one | difference |
|---:|---:|---:|---:|---:|---:|---:|---:|
{rows}
"""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 96], help="sides of the images in pixels")
    parser.add_argument("--images", nargs="+", type=int, default=[64, 16], help="per network, for each size")
    parser.add_argument("--counts", nargs="+", type=int, default=[2, 3, 4, 8], help="numbers of networks n")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    record = begun(arguments) | {"rows": []}
    for size, images in zip(arguments.sizes, arguments.images, strict=True):
        for count in arguments.counts:
            row = measured(arguments.backbone, size, images, count, arguments.rounds)
            record["rows"].append(row)
            print(row, flush=True)
            keep(arguments.output, record, page(record))


def measured(backbone: str, size: int, images: int, count: int, rounds: int) -> Row:
    """Seconds of each way with n networks."""
    gc.collect()
    torch.manual_seed(0)
    networks = [place(build_backbone(backbone, seed, size), "cpu").train() for seed in range(count)]
    for parameter in (p for network in networks for p in network.parameters() if p.ndim < 2):
        parameter.data += 0.1 * torch.randn_like(parameter)  # no branch ends in a weight of zero
    batches = [torch.randn(images, 3, size, size).to(memory_format=torch.channels_last) for _ in networks]
    forwards: dict[str, Callable[[], Any]] = {
        "one by one": lambda: [network(batch) for network, batch in zip(networks, batches, strict=True)],
        "side by side": side_by_side(networks, batches),
        "vmap": vmapped(backbone, networks, batches),
    }
    calls = {way: trained(forward) for way, forward in forwards.items()}
    with torch.no_grad():
        alone, stacked = (torch.stack(list(forwards[way]())) for way in WAYS[:2])
    return {
        "size": size,
        "images": images,
        "networks": count,
        "seconds": best_of(calls, rounds, "cpu"),
        "difference": float((alone - stacked).norm() / alone.norm()),
    }


def side_by_side(networks: list[nn.Module], batches: list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    stack = Stack(networks[0], len(networks))
    return lambda: stack(networks, batches)


def vmapped(backbone: str, networks: list[nn.Module], batches: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """By ``stack_module_state`` of timm's networks with the same weights."""
    plain = [timm.create_model(backbone, num_classes=0).train() for _ in networks]
    for ours, theirs in zip(plain, networks, strict=True):
        ours.load_state_dict(theirs.state_dict())
    parameters, buffers = torch.func.stack_module_state(plain)

    def forward(weights: Any, moved: Any, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.func.functional_call(plain[0], (weights, moved), (images,))
        return found

    images = torch.stack(batches)
    return lambda: torch.func.vmap(forward, randomness="error")(parameters, buffers, images)


def trained(forward: Callable[[], Any]) -> Callable[[], None]:
    """A forward pass, and a backward pass of a loss of all outputs."""

    def call() -> None:
        torch.stack([output.square().mean() for output in forward()]).sum().backward()

    return call


def page(record: Row) -> str:
    """The record as Markdown."""
    lines = []
    for row in record["rows"]:
        seconds = [row["seconds"][way] for way in WAYS]
        cells = [str(row[name]) for name in ("size", "images", "networks")] + [f"{value:.3f}" for value in seconds]
        cells += [f"{seconds[1] / seconds[0]:.2f}", f"{row['difference']:.0e}"]
        lines.append(line(*cells))
    return PAGE.format(
        machine=machine(record, "timm"),
        rows="\n".join(lines),
        **{name: record["settings"][name] for name in ("backbone", "rounds")},
    )


if __name__ == "__main__":
    main()
