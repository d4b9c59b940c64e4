"""A pretext step of SimCLR with LARS, as training runs it, beside timm's network in a loop as people write it.

Ours: fused batch norms, both views in one pass, the fused NT-Xent, LARS in one call. The peer: timm's own network, view
after view, lightly's NT-Xent (where it is not installed: the same in plain PyTorch), LARS tensor after tensor; eagerly,
or with network and loss compiled. Both start from the same weights, are channels-last and in the same number format.
"""

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F

from bissl_fast.data.pipelines.loader import ViewLoader
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.pipelines.resident import hold
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.presets import vicreg_views
from bissl_fast.measuring.feeding import Views, block, pretext_step
from bissl_fast.measuring.products import flops_of, plain_twin
from bissl_fast.measuring.timing import best_of
from bissl_fast.measuring.torchvision_views import from_workers, pillow_pairs
from bissl_fast.models import Network, build_backbone, probe_features
from bissl_fast.ops.lars.reference import LarsSettings, lars_step
from bissl_fast.ops.nt_xent.reference import nt_xent_loss
from bissl_fast.pretext import SimCLR
from bissl_fast.training.memory import keep_freed_memory
from bissl_fast.training.precision import Precision, apply_precision

OURS, FLOOR = "ours", "floor"
Step = Callable[[Views], object]
Way = tuple[str, Precision]
Steps = dict[Way, Step]
"""By name and precision."""
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LARS_SETTINGS = LarsSettings(lr=0.1, weight_decay=1e-6, momentum=0.9, trust_coefficient=1e-3, exclude_1d=True)
MADE_AHEAD = 2  # batches that each worker of a `DataLoader` makes before they are asked for
WIDEST = (256, 128, 28)  # images, channels, pixels a side of the convolution whose rate is the floor's


@dataclass(frozen=True)
class Case:
    """What is trained, and where.

    Attributes:
        backbone: any timm CNN.
        size: side of the views in pixels.
        pairs: images of a step, each in two views.
        device: where the steps run.
    """

    backbone: str
    size: int
    pairs: int
    device: torch.device


@dataclass(frozen=True)
class Cost:
    """One way to step, on views that are there or with the making of its views.

    Attributes:
        what: its name.
        precision: fp32, tf32 or bf16.
        seconds: of a step; on views that are there the best of the rounds, else the mean.
        images_per_second: pairs of views.
        floor_share: time that its convolutions and matrix products would take at the rate of a large convolution in the
            same number format and run, as a share of the time taken; None with views.
        waiting_share: of the step, until its views were there; None without.
    """

    what: str
    precision: Precision
    seconds: float
    images_per_second: float
    floor_share: float | None = None
    waiting_share: float | None = None


def steps_of(case: Case, precisions: Sequence[Precision], compiled: bool = True) -> Steps:
    """Ours and the peers' steps, each with the same first weights.

    Args:
        case: network and batch.
        precisions: of forward and backward passes.
        compiled: with the compiled peer, too.
    """
    keep_freed_memory()  # as the loop of every stage does; peers gain by it, too
    loss = lightly_loss()
    peer = "plain NT-Xent" if loss is None else "lightly"
    steps: Steps = {}
    for precision in precisions:
        given = (case.backbone, case.size, case.device, precision)
        steps[OURS, precision] = pretext_step(*given)
        for kind in ("eager", "compiled")[: 1 + compiled]:
            steps[f"{kind}, {peer}", precision] = plain_step(*given, kind == "compiled", loss)
    return {way: in_precision(step, way[1], case.device) for way, step in steps.items()}


def measure_steps(case: Case, steps: Steps, rounds: int) -> list[Cost]:
    """Steps on views of noise that wait on the device, all in turns.

    Args:
        case: network and batch.
        steps: what :func:`steps_of` gave.
        rounds: turns; the best counts.
    """
    views = noise(case)
    calls: dict[Way, Callable[[], object]] = {way: partial(step, views) for way, step in steps.items()}
    for precision in {precision for _, precision in steps}:
        wide = wide_convolution(case.device, precision)
        calls[FLOOR, precision] = in_precision(wide, precision, case.device)
    best = best_of({", ".join(way): call for way, call in calls.items()}, rounds, str(case.device))
    seconds = dict(zip(calls, best.values(), strict=True))
    shares = flops_of(next(iter(calls.values()))) / flops_of(wide_convolution(case.device, "fp32"))
    return [
        Cost(*way, seconds[way], case.pairs / seconds[way], shares * seconds[FLOOR, way[1]] / seconds[way])
        for way in steps
    ]


def measure_loops(case: Case, images: ImageSet, steps: Steps, seconds: float, workers: int) -> Iterator[Cost]:
    """Steps with the making of their views, one loop after the other, each as soon as it is known.

    Ours takes them from the loader of a run, the peer from torchvision's operators on Pillow images in the workers of a
    `DataLoader`. Both crop the same images, which are decoded already.

    Args:
        case: network and batch.
        images: to draw from, RGB.
        steps: what :func:`steps_of` gave.
        seconds: of measuring, per loop.
        workers: processes of the peer's loader.
    """
    for way, step in steps.items():
        ours = way[0] == OURS
        with views_of_ours(case, images) if ours else views_of_torchvision(case, images, workers) as made:
            yield looped(way, step, made, case, seconds, 1 if ours else MADE_AHEAD * workers)


def looped(way: Way, step: Step, made: Iterator[Views], case: Case, seconds: float, ready: int) -> Cost:
    """So many seconds of steps on views as they come, without the batches that are ready before the first step."""

    def call() -> float:
        start = time.perf_counter()
        views = next(made)
        waited = time.perf_counter() - start
        step(views)
        return waited

    block(call, ready, case.device)
    first, _ = block(call, 1, case.device)
    took, waiting = block(call, max(2, round(seconds / first)), case.device)
    return Cost(*way, took, case.pairs / took, None, waiting / took)


@contextmanager
def views_of_ours(case: Case, images: ImageSet) -> Iterator[Iterator[Views]]:
    """Views as `bissl-fast train` makes them: one batch ahead, by a thread."""
    order = BatchOrder(len(images), case.pairs, seed=0)
    with ViewLoader(hold(images, case.device), vicreg_views(case.size), order, 0, case.device) as loader:
        yield (loader.load(draw).views for draw in count())


@contextmanager
def views_of_torchvision(case: Case, images: ImageSet, workers: int) -> Iterator[Iterator[Views]]:
    """The same recipe by torchvision on Pillow images, in the workers of a `DataLoader`."""
    made = from_workers(pillow_pairs(np.asarray(images.images), case.size), case.pairs, workers)
    try:
        yield made
    finally:
        made.close()  # type: ignore[attr-defined]  # ends the workers


def lightly_loss() -> Loss | None:
    """lightly's NT-Xent at our temperature, where it is installed."""
    with suppress(ImportError):
        loss: Loss = importlib.import_module("lightly.loss").NTXentLoss(temperature=SimCLR().temperature)
        return loss
    return None


def plain_step(
    backbone: str,
    size: int,
    device: torch.device,
    precision: Precision,
    compiled: bool,
    loss: Loss | None = None,
    mode: str = "default",
) -> Step:
    """The step of :func:`bissl_fast.measuring.feeding.pretext_step` from the same weights, in plain PyTorch.

    Args:
        backbone: any timm CNN.
        size: side of the views in pixels.
        device: where it runs.
        precision: of forward and backward passes.
        compiled: network and loss by Inductor.
        loss: of the float32 embeddings of both views; left out: NT-Xent by its definition.
        mode: of `torch.compile`; ``reduce-overhead`` makes CUDA graphs of the forward and the backward pass.
    """
    task = SimCLR()
    ours = Network(build_backbone(backbone, 0, size), task.head(probe_features(backbone, size), 0)).to(device)
    network = plain_twin(backbone, size, ours)
    parameters = list(network.parameters())
    momenta = [torch.zeros_like(p) for p in parameters]
    forward = apply_precision(precision, device)
    criterion = partial(nt_xent_loss, temperature=task.temperature) if loss is None else loss

    def whole(views: Views) -> torch.Tensor:
        with forward():
            first, second = (network(view) for view in views)
        return criterion(first.float(), second.float())

    loss_of = torch.compile(whole, dynamic=False, mode=mode) if compiled else whole

    def step(views: Views) -> None:
        views = tuple(view.to(device, memory_format=torch.channels_last, non_blocking=True) for view in views)
        gradients = torch.autograd.grad(loss_of(views), parameters)
        with torch.no_grad():
            for p, m, g in zip(parameters, momenta, gradients, strict=True):
                lars_step(p, m, g, LARS_SETTINGS)

    return step


def noise(case: Case) -> Views:
    """Two views, seeded, channels-last."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.pairs, 3, case.size, case.size)
    drawn = (torch.randn(shape, generator=generator) for _ in range(2))
    return tuple(view.to(case.device, memory_format=torch.channels_last) for view in drawn)


def in_precision(step: Callable[..., object], precision: Precision, device: torch.device) -> Callable[..., object]:
    """The call with PyTorch's settings of its precision, which calls of other precisions may have changed."""

    def call(*given: object) -> object:
        apply_precision(precision, device)
        return step(*given)

    return call


def wide_convolution(device: torch.device, precision: Precision) -> Callable[[], object]:
    """A convolution of 3 x 3 that keeps the whole device busy; its rate is what a network's could reach."""
    images, channels, side = WIDEST
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)

    x, weight = made(images, channels, side, side), made(channels, channels, 3, 3)
    return torch.no_grad()(lambda: F.conv2d(x, weight, padding=1))
