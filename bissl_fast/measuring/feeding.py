"""What data cost a run: the share of a pretext step that waits for its batch, and the building of a cache."""

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bissl_fast.data.pipelines.loader import Loader, ViewLoader
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.pipelines.resident import hold
from bissl_fast.data.sets import cache
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.sets.readers.decode import UnreadableImageError
from bissl_fast.data.sets.readers.source import Source
from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.errors import UserError
from bissl_fast.measuring.timing import wait_for
from bissl_fast.measuring.views import torch_threads
from bissl_fast.models import Network, build_backbone, place, probe_features
from bissl_fast.pretext import Learner, SimCLR
from bissl_fast.training.lars import LARS
from bissl_fast.training.precision import Precision, apply_precision

Views = tuple[torch.Tensor, ...]
TURNS = 3


@dataclass(frozen=True)
class Feeding:
    """A pretext step with and without its data.

    Attributes:
        alone_seconds: of a step on views that are already there.
        fed_seconds: of a step whose views the loader makes during the step before.
        waiting_seconds: of that, until the loader gave them. On CUDA: of the host.
        steps: how many were timed of either kind.
    """

    alone_seconds: float
    fed_seconds: float
    waiting_seconds: float
    steps: int

    @property
    def waiting_share(self) -> float:
        """Waiting as a share of a step."""
        return self.waiting_seconds / self.fed_seconds

    @property
    def cost_share(self) -> float:
        """What a step takes longer for its data, threads shared with the loader included, as a share of it."""
        return 1 - self.alone_seconds / self.fed_seconds


def measure_feeding(
    images: ImageSet,
    views: tuple[ViewSettings, ...],
    batch_size: int,
    seconds: float,
    device: torch.device,
    threads: int,
    precision: Precision = "fp32",
    capture: bool = False,
) -> Feeding:
    """Times steps of ResNet-18 with SimCLR and LARS, fed by the loader as `bissl-fast train` feeds them, and not fed.

    Args:
        images: To draw from; resident on CUDA, as in a run.
        views: Settings of both views.
        batch_size: Images per step.
        seconds: Of measuring, in all.
        device: Where the steps run.
        threads: Of torch on the host.
        precision: Of forward and backward passes.
        capture: On CUDA, whether the step is one graph up to its optimiser.

    Raises:
        UserError: if a batch is larger than the set.
    """
    order = BatchOrder(len(images), batch_size, seed=0)
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic
    try:
        with torch_threads(threads):
            step = pretext_step("resnet18", views[0].size, device, precision, capture)
            with ViewLoader(hold(images, device), views, order, 0, device) as loader:
                return _alternate(step, loader, seconds, device)
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.deterministic = before[1:]


def _alternate(step: Callable[[Views], object], loader: Loader, seconds: float, device: torch.device) -> Feeding:
    """Blocks of steps in turns; the first step of each is not timed, for it may share threads with the other kind."""
    draws = iter(range(1 << 62))
    ready = loader.load(next(draws)).views

    def fed() -> float:
        start = time.perf_counter()
        batch = loader.load(next(draws))
        waited = time.perf_counter() - start
        step(batch.views)
        return waited

    def alone() -> float:
        step(ready)
        return 0.0

    first, _ = block(fed, 1, device)
    steps = max(1, int(seconds / (2 * TURNS * first)) - 1)
    pairs = [(block(alone, steps, device), block(fed, steps, device)) for _ in range(TURNS)]
    without, _ = statistics.median_low(first for first, _ in pairs)
    whole, waiting = statistics.median_low(second for _, second in pairs)
    return Feeding(without, whole, waiting, steps * TURNS)


def block(call: Callable[[], float], steps: int, device: torch.device) -> tuple[float, float]:
    """Mean seconds of a step, and of what its call says that it waited; one step before them is not timed."""
    call()
    wait_for(device)
    start = time.perf_counter()
    waited = sum(call() for _ in range(steps))
    wait_for(device)
    return (time.perf_counter() - start) / steps, waited / steps


def pretext_step(
    backbone: str, size: int, device: torch.device, precision: Precision = "fp32", capture: bool = False
) -> Callable[[Views], torch.Tensor]:
    """One step of SimCLR, as stages take it: both views through the network, NT-Xent, LARS; seeded. It gives the loss.

    Args:
        backbone: Any timm CNN.
        size: Side of the views in pixels.
        device: Where it runs.
        precision: Of forward and backward passes.
        capture: On CUDA, whether it is one graph up to its optimiser.
    """
    task = SimCLR()
    head = task.head(probe_features(backbone, size), 0)
    network = place(Network(build_backbone(backbone, 0, size), head), device)
    optimizer = LARS(list(network.parameters()), lr=0.1)
    learner = Learner(task, network, apply_precision(precision, device), capture=capture)

    def step(views: Views) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = learner.backward(views)
        optimizer.step()
        return loss

    return step


@dataclass(frozen=True)
class Building:
    """A cache built, beside the reading of its images and nothing else.

    Attributes:
        images: how many.
        size: side of the cached images in pixels.
        workers: decoding threads of either.
        reading_seconds: decode and resize, results thrown away.
        building_seconds: the same, hashed, written, flushed to the disk and opened again.
    """

    images: int
    size: int
    workers: int
    reading_seconds: float
    building_seconds: float

    @property
    def share_of_reading(self) -> float:
        """Rate of building over that of reading."""
        return self.reading_seconds / self.building_seconds


def measure_building(source: Source, size: int, seconds: float, folder: Path | None = None) -> Building:
    """Reads and builds as many of a source's images as fit the time, in turns; the best of each counts.

    Args:
        source: Images to decode.
        size: Wanted side in pixels.
        seconds: Of measuring, about.
        folder: Whose disk the cache is written to, in a folder of its own that is removed again.

    Raises:
        UserError: if no image can be read, or the folder cannot be written.
    """
    folder = cache.default_folder() if folder is None else folder
    workers = cache.decoding_threads()
    trial = min(source.count, 8 * workers)
    rate = trial / _reading_seconds(source, size, trial, workers)
    count = min(source.count, max(trial, int(rate * seconds / (2 * TURNS))))
    part = source.take(np.arange(count), source.name)
    reading = building = float("inf")
    for _ in range(TURNS):
        reading = min(reading, _reading_seconds(part, size, count, workers))
        building = min(building, _building_seconds(part, size, folder))
    return Building(count, source.side(size), workers, reading, building)


def _reading_seconds(source: Source, size: int, count: int, workers: int) -> float:
    def read(index: int) -> None:
        with suppress(UnreadableImageError):
            source.read(index, size)

    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(read, range(count)):
            pass
    return time.perf_counter() - start


def _building_seconds(source: Source, size: int, folder: Path) -> float:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="measuring-", dir=folder) as scratch:
            start = time.perf_counter()
            cache.load(source, size, Path(scratch), progress=False)
            return time.perf_counter() - start
    except OSError as error:
        raise UserError(f"The cache folder {folder} cannot be written ({error.strerror}): pass --cache-dir.") from None
