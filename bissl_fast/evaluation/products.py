"""Cost of second-order products on this machine: beside a gradient, other ways, and the arithmetic's floor."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector
from bissl_fast.bilevel.hessian import ProductsDtype
from bissl_fast.bilevel.traced import TracedProducts
from bissl_fast.models import Network, build_backbone, probe_features
from bissl_fast.models.backbone import options_for
from bissl_fast.ops import BatchNormAct
from bissl_fast.ops.bench import best_of
from bissl_fast.pretext import SimCLR, mean_pretext_loss, pretext_loss

Call = Callable[[], Any]


@dataclass(frozen=True)
class Problem:
    """A contrastive loss of synthetic noise images, as large as asked.

    Attributes:
        network: backbone and projector, batch norms fused.
        plain: the same network as timm and PyTorch have it.
        theta: the backbone's parameters.
        loss: NT-Xent of two views.
        mean_loss: the mean over several batches, which pass the network at once.
        batches: pairs of views of noise.
        vector: what the Hessian is multiplied by.
    """

    network: Network
    plain: Network
    theta: ParameterVector
    loss: CompositeLoss
    mean_loss: CompositeLoss
    batches: list[tuple[torch.Tensor, ...]]
    vector: torch.Tensor


@dataclass(frozen=True)
class Cost:
    """One way of computing one thing.

    Attributes:
        what: its name.
        seconds: best of the rounds.
        gradients: the same in compiled gradients.
        flops: of convolutions and matrix products, as PyTorch's counter has them.
        roofline: share of the rate of a large matrix product that these reach.
        kept_bytes: kept between products.
        working_bytes: most held at once beside inputs and what is kept, read off the graph; None where unknown.
    """

    what: str
    seconds: float
    gradients: float
    flops: int
    roofline: float
    kept_bytes: int = 0
    working_bytes: int | None = None


def problem(
    backbone: str, size: int, pairs: int, batches: int, device: str, dtype: torch.dtype = torch.float32
) -> Problem:
    """Noise images of ``size`` pixels in ``batches`` stored batches of ``pairs`` pairs; seeded."""
    task = SimCLR()
    head = task.head(probe_features(backbone, size), 0)
    network = Network(build_backbone(backbone, 0, size), head).to(device, dtype)
    plain = plain_twin(backbone, size, network)
    theta = ParameterVector(network, "backbone.")
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    stored = [tuple(noise(pairs, 3, size, size) for _ in range(task.views)) for _ in range(batches)]
    return Problem(network, plain, theta, pretext_loss(task), mean_pretext_loss(task), stored, noise(len(theta)))


def plain_twin(backbone: str, size: int, network: Network) -> Network:
    """The network without fused batch norms: timm's backbone and PyTorch's layers, with the same weights."""
    import timm

    layers: list[nn.Module] = []
    for layer in network.head:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            layers.append(nn.Linear(layer.in_features, layer.out_features, layer.bias is not None))
        elif isinstance(layer, nn.BatchNorm1d | BatchNormAct):
            layers.append(nn.BatchNorm1d(layer.num_features))
        else:
            layers.append(nn.ReLU())
    plain = Network(timm.create_model(backbone, num_classes=0, **options_for(backbone, size)), nn.Sequential(*layers))
    plain.load_state_dict(network.state_dict())
    first = next(network.parameters())
    return plain.to(first.device, first.dtype)


def measure(case: Problem, rounds: int = 5, dtype: ProductsDtype = "float32") -> Iterator[Cost]:
    """Costs of gradient and products on the first stored batch, all ways in turns; a compiled gradient is the unit.

    *plain* rows are timm's own network, the others the one with fused batch norms. Where there are several stored
    batches, the last rows are the products of all of them, one after the other and at once.
    """
    batch, theta, v = case.batches[0], case.theta, case.vector
    device = v.device.type
    tangents = theta.unflatten(v)
    plain = gradient_function(case.loss, case.plain)
    compiled = torch.compile(plain, dynamic=False)
    reverse = HessianOperator(case.loss, theta, [batch], "reverse", dtype=dtype)
    plain_theta = ParameterVector(case.plain, "backbone.")
    rebuilt = HessianOperator(case.loss, plain_theta, [batch], "reverse", retain=0, dtype=dtype)
    traced = TracedProducts(case.loss, theta, compiled=device == "cuda", dtype=AUTOCAST[dtype])
    point = traced.linearise(batch)
    program = point.program
    square = torch.randn(2048, 2048, device=device)
    calls: dict[str, Call] = {
        "": lambda: square @ square,
        "plain: gradient, compiled": lambda: compiled(batch),
        "plain: gradient": lambda: plain(batch),
        "plain: reverse, graph rebuilt": lambda: rebuilt.matvec(v),
        "gradient": lambda: gradient_function(case.loss, case.network)(batch),
        "reverse, graph kept": lambda: reverse.matvec(v),
        "linearized: primal half": lambda: traced.linearise(batch),
        "linearized: one product": lambda: traced.product(point, tangents),
    }
    together = together_and_apart(case, dtype) if len(case.batches) > 1 else {}
    calls |= {what: partial(operator.matvec, v) for what, operator in together.items()}
    seconds = best_of(calls, rounds, device)
    rate = 2 * 2048**3 / seconds.pop("")
    unit = seconds["plain: gradient, compiled"]
    kept = {"reverse, graph kept": reverse.kept_bytes, "linearized: one product": program.halves.residual_bytes}
    kept |= {what: operator.kept_bytes for what, operator in together.items()}
    for what, value in seconds.items():
        counted = flops_of(calls[what]) if "compiled" not in what else flops_of(calls["gradient"])
        working = program.working_bytes if "one product" in what else None
        yield Cost(what, value, value / unit, counted, counted / value / rate, kept.get(what, 0), working)


def together_and_apart(case: Problem, dtype: ProductsDtype) -> dict[str, HessianOperator]:
    """The mean Hessian of all stored batches, as one program for each and as one for all."""
    count = len(case.batches)
    return {
        f"linearized: {count} batches in turn": HessianOperator(
            case.loss, case.theta, case.batches, "linearized", dtype=dtype
        ),
        f"linearized: {count} batches at once": HessianOperator(
            case.mean_loss, case.theta, [case.batches], "linearized", dtype=dtype
        ),
    }


AUTOCAST = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


def gradient_function(loss: CompositeLoss, network: Network) -> Callable[[Any], Any]:
    """``batch -> ∇L`` with respect to the backbone, a list of tensors."""
    theta = list(network.backbone.parameters())

    def gradient(batch: Any) -> Any:
        return torch.autograd.grad(loss(network, batch), theta)

    return gradient


def flops_of(call: Call) -> int:
    """Operations of convolutions and matrix products in a call; of twice as many multiplications as additions each."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
