"""Cost of second-order products on this machine: beside a gradient, other ways, and the arithmetic's floor."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector
from bissl_fast.bilevel.products.hessian import ProductsDtype
from bissl_fast.bilevel.products.precision import autocast, tf32
from bissl_fast.bilevel.products.traced import TracedProducts
from bissl_fast.measuring.timing import best_of
from bissl_fast.models import Network, build_backbone, probe_features
from bissl_fast.models.backbone import options_for, place
from bissl_fast.ops import BatchNormAct
from bissl_fast.pretext import PretextTask, SimCLR, product_loss

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
        batches: pairs of views of noise, each ``(pairs, 3, size, size)`` and, as networks are, channels-last.
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
        seconds: best of the rounds; None where the device's memory does not hold it.
        gradients: the same in compiled gradients of the same number format.
        flops: of convolutions and matrix products, as PyTorch's counter has them.
        roofline: share of the rate of a large matrix product in the same number format that these reach.
        kept_bytes: kept between products.
        working_bytes: most held at once beside inputs and what is kept, read off the graph; None where unknown.
    """

    what: str
    seconds: float | None
    gradients: float | None
    flops: int
    roofline: float | None
    kept_bytes: int = 0
    working_bytes: int | None = None


def problem(
    backbone: str, size: int, pairs: int, batches: int, device: str, dtype: torch.dtype = torch.float32
) -> Problem:
    """Noise images of ``size`` pixels in ``batches`` stored batches of ``pairs`` pairs; seeded."""
    task = SimCLR()
    head = task.head(probe_features(backbone, size), 0)
    network = place(Network(build_backbone(backbone, 0, size), head).to(dtype), device)
    plain = plain_twin(backbone, size, network)
    theta = ParameterVector(network, "backbone.")
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def view() -> torch.Tensor:
        return noise(pairs, 3, size, size).contiguous(memory_format=torch.channels_last)

    stored = [tuple(view() for _ in range(2)) for _ in range(batches)]
    return Problem(network, plain, theta, loss_of_views(task), mean_loss_of_views(task), stored, noise(len(theta)))


def loss_of_views(task: PretextTask) -> CompositeLoss:
    """``loss(network, views)`` of a task that needs nothing but views."""
    mean = product_loss(task)
    return CompositeLoss(lambda network, views: mean.outputs(network, [(views, {})]), mean.criterion)


def mean_loss_of_views(task: PretextTask) -> CompositeLoss:
    """``loss(network, batches)`` of such a task: the mean over batches of views."""
    mean = product_loss(task)
    return CompositeLoss(lambda network, batches: mean.outputs(network, [(v, {}) for v in batches]), mean.criterion)


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
    return place(plain.to(first.dtype), first.device)


class Way(NamedTuple):
    """A call to be timed, bytes that it keeps between two calls, and most that it holds during one."""

    call: Call
    kept_bytes: int = 0
    working_bytes: int | None = None


def measure(case: Problem, rounds: int = 5, dtype: ProductsDtype = "float32") -> Iterator[Cost]:
    """Costs of gradient and products on the first stored batch, each as soon as it is known.

    The unit is a compiled gradient of the plain network in the same number format. Each way takes turns with it and
    with a large matrix product, and is let go of before the next is built.

    *plain* rows are timm's own network, the others the one with fused batch norms. Where there are several stored
    batches, two rows are the products of all of them, one after the other and at once.
    """
    device = case.vector.device.type
    compiled = torch.compile(gradient_function(case.loss, case.plain, AUTOCAST[dtype]), dynamic=False)
    unit = partial(compiled, case.batches[0])
    square = matrix(device, dtype)
    builders = {"plain: gradient, compiled": lambda: Way(unit)} | ways(case, dtype)
    for what, build in builders.items():
        with tf32(dtype == "tf32"):
            cost = price(what, build, {"unit": unit, "square": lambda: square @ square}, rounds, device)
        yield cost


def price(what: str, build: Callable[[], Way], beside: dict[str, Call], rounds: int, device: str) -> Cost:
    """Build a way and time it in turns with the unit and the matrix product."""
    try:
        way = build()
        seconds = best_of({**beside, "way": way.call}, rounds, device)
        flops = flops_of(way.call)
    except torch.OutOfMemoryError:
        return Cost(what, None, None, 0, None)
    rate = 2 * side_of(device) ** 3 / seconds["square"]
    took = seconds["way"]
    return Cost(what, took, took / seconds["unit"], flops, flops / took / rate, way.kept_bytes, way.working_bytes)


def ways(case: Problem, dtype: ProductsDtype) -> dict[str, Callable[[], Way]]:
    """What builds each way, cheapest first: a run that is cut short has lost the least."""
    batch, theta, v = case.batches[0], case.theta, case.vector
    traced = TracedProducts(case.loss, theta, compiled=v.is_cuda, dtype=AUTOCAST[dtype])
    tangents = theta.unflatten(v)

    def gradient(network: Network) -> Way:
        return Way(partial(gradient_function(case.loss, network, AUTOCAST[dtype]), batch))

    def product() -> Way:
        point = traced.linearise(batch)
        program = point.program
        return Way(lambda: traced.product(point, tangents), program.halves.residual_bytes, program.working_bytes)

    def operator(loss: CompositeLoss, parameters: ParameterVector, batches: list[Any], **options: Any) -> Way:
        hessian = HessianOperator(loss, parameters, batches, dtype=dtype, **options)
        return Way(partial(hessian.matvec, v), hessian.kept_bytes)

    count, plain_theta = len(case.batches), ParameterVector(case.plain, "backbone.")
    found: dict[str, Callable[[], Way]] = {
        "plain: gradient": partial(gradient, case.plain),
        "gradient": partial(gradient, case.network),
        "linearized: primal half": lambda: Way(lambda: traced.linearise(batch)),
        "linearized: one product": product,
    }
    if count > 1:
        together: dict[str, tuple[CompositeLoss, list[Any]]] = {
            "in turn": (case.loss, case.batches),
            "at once": (case.mean_loss, [case.batches]),
        }
        for what, (loss, batches) in together.items():
            found[f"linearized: {count} batches {what}"] = partial(operator, loss, theta, batches, mode="linearized")
    found["reverse, graph kept"] = partial(operator, case.loss, theta, [batch])
    found["plain: reverse, graph rebuilt"] = partial(operator, case.loss, plain_theta, [batch], retain=0)
    return found


AUTOCAST = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


def side_of(device: str) -> int:
    """Of square matrices whose product keeps the whole device busy."""
    return 8192 if device == "cuda" else 2048


def matrix(device: str, dtype: ProductsDtype) -> torch.Tensor:
    """A square matrix in the number format that products are taken in."""
    return torch.randn(2 * (side_of(device),), device=device, dtype=AUTOCAST[dtype])


def gradient_function(
    loss: CompositeLoss, network: Network, dtype: torch.dtype = torch.float32
) -> Callable[[Any], Any]:
    """``batch -> ∇L`` with respect to the backbone, a list of tensors; in autocast if ``dtype`` is a half precision."""
    theta = list(network.backbone.parameters())

    def gradient(batch: Any) -> Any:
        with autocast(theta[0].device, dtype):
            value = loss(network, batch)
        return torch.autograd.grad(value, theta)

    return gradient


def flops_of(call: Call) -> int:
    """Operations of convolutions and matrix products in a call; of twice as many multiplications as additions each."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:  # which sees no kernels
        call()
    return int(counter.get_total_flops())
