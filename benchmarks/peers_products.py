"""One Hessian-vector product of NT-Xent through a ResNet: ours, PyTorch's own ways and curvlinops, in turns.

The others run timm's own network and NT-Xent in plain PyTorch, ours the same weights with fused batch norms and the
fused loss. Each product is compared with ours.

    python -m benchmarks.peers_products --output docs/results/peers_products_cpu    # needs the extra `peer`
"""

import copy
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp

from benchmarks.record import Record, begun, keep, machine, options
from bissl_fast.bilevel import HessianOperator, frozen_buffers
from bissl_fast.measuring.products import Problem, gradient_function, problem
from bissl_fast.measuring.timing import best_of
from bissl_fast.ops.nt_xent.reference import nt_xent_loss
from bissl_fast.pretext import SimCLR
from bissl_fast.training.precision import apply_precision

Product = Callable[[], torch.Tensor]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if find_spec("curvlinops") is None:
        parser.error("curvlinops is not installed: `make peer` or `pip install -e .[peer]` brings it")
    apply_precision("fp32", torch.device(arguments.device))
    case = problem(arguments.backbone, arguments.size, arguments.pairs, 1, arguments.device)
    rows = measure(case, arguments.rounds, arguments.device)
    record = begun(arguments, arguments.device) | {"rows": rows}
    record["environment"]["packages"]["curvlinops"] = version("curvlinops-for-pytorch")
    keep(arguments.output, record, markdown(record))


def measure(case: Problem, rounds: int, device: str) -> list[dict[str, Any]]:
    """Best times in compiled gradients of the plain network, and how far each product is from ours."""
    compiled = torch.compile(gradient_function(case.loss, case.plain), dynamic=False)
    products = ways(case)
    with frozen_buffers(case.plain):
        found = [product().detach() for product in products.values()]
        seconds = best_of({"": lambda: compiled(case.batches[0]), **products}, rounds, device)
    unit = seconds.pop("")
    expected = found[0]
    return [
        {"product": what, "gradients": took / unit, "difference": float((x - expected).norm() / expected.norm())}
        for (what, took), x in zip(seconds.items(), found, strict=True)
    ]


def ways(case: Problem) -> dict[str, Product]:
    """Each way of multiplying the Hessian by the problem's vector; ours first."""
    hessian = HessianOperator(case.loss, case.theta, case.batches, "linearized")
    names, tangents = case.theta.names, case.theta.unflatten(case.vector)
    theta = tuple(dict(case.plain.named_parameters())[name].detach() for name in names)

    def value(*values: torch.Tensor) -> torch.Tensor:
        moved = {name: value for name, value in zip(names, values, strict=True)}
        buffers = {name: buffer.clone() for name, buffer in case.plain.named_buffers()}

        def network(view: torch.Tensor) -> Any:
            return functional_call(case.plain, moved | buffers, (view,))

        first, second = case.batches[0]
        return nt_xent_loss(network(first), network(second), SimCLR().temperature)

    every = tuple(range(len(theta)))

    def along(gradient: Callable[..., Any]) -> torch.Tensor:
        return case.theta.flatten(jvp(gradient, theta, tuple(tangents))[1])

    return {
        "bissl-fast, linearized": lambda: hessian.matvec(case.vector),
        "torch.func, jvp of grad": lambda: along(grad(value, every)),
        "torch.func, jvp of jacrev": lambda: along(jacrev(value, every)),
        "torch.autograd.functional.vhp": lambda: case.theta.flatten(
            torch.autograd.functional.vhp(value, theta, tuple(tangents))[1]
        ),
        "curvlinops, jvp of jacrev": curvlinops_product(case),
    }


class TwoViews(nn.Module):
    """A network as curvlinops takes it: one tensor of images to one of outputs, view after view."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second = images.chunk(2)
        return torch.cat([self.network(first), self.network(second)])


class Contrast(nn.Module):
    """NT-Xent of what :class:`TwoViews` returns; the targets are not looked at."""

    reduction = "mean"

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        first, second = outputs.chunk(2)
        return nt_xent_loss(first, second, SimCLR().temperature)


def curvlinops_product(case: Problem) -> Product:
    from curvlinops import HessianLinearOperator

    images = torch.cat(case.batches[0])
    network = copy.deepcopy(case.plain)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):  # a function that moves a buffer is refused
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    model, parameters = TwoViews(network), list(network.backbone.parameters())
    data = [(images, torch.zeros(len(images), device=images.device))]
    operator = HessianLinearOperator(model, Contrast(), parameters, data, check_deterministic=False)
    return lambda: operator @ case.vector


def markdown(record: Record) -> str:
    settings, rows = record["settings"], record["rows"]
    size, pairs = settings["size"], settings["pairs"]
    lines = [
        "# One Hessian-vector product beside its peers\n",
        f"{settings['backbone']}, {size} px, 2×{pairs} images, float32; the unit is a compiled gradient of timm's own "
        "network.\n",
        "| product | gradients | times ours | relative difference from ours |\n|---|---:|---:|---:|",
    ]
    ours = rows[0]["gradients"]
    for row in rows:
        what, gradients, difference = row["product"], row["gradients"], row["difference"]
        lines.append(f"| {what} | {gradients:.2f} | {gradients / ours:.2f} | {difference:.0e} |")
    device = record["environment"]["device"]
    return "\n".join([*lines, "", f"On {device}: {machine(record, 'curvlinops')}.", ""])


if __name__ == "__main__":
    main()
