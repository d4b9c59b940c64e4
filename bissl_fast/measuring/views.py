"""How many views per second each pipeline renders on this machine, beside the rate of a plain copy of memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from bissl_fast.data.pipelines import torch_pipeline
from bissl_fast.data.pipelines.dali_pipeline import DaliPipeline
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.pipelines.rendering import as_tensor, render
from bissl_fast.data.pipelines.resident import hold
from bissl_fast.data.sets.dataset import Images, ImageSet
from bissl_fast.data.sets.readers.decode import resize_square
from bissl_fast.data.views.parameters import ViewParameters, ViewSettings, draw_views
from bissl_fast.errors import UserError
from bissl_fast.measuring.timing import wait_for
from bissl_fast.ops.render_views.function import serves

Tables = tuple[ViewParameters, ...]
Render = Callable[[int], tuple[torch.Tensor, ...]]
"""From the number of a draw to the views of its batch; drawing the parameters is part of it."""

TURNS = 5
DRAWS = 4
COPIED_BYTES = 1 << 28  # beyond any cache
SAMPLE = 4096  # images of which a set of smaller ones is enlarged: beyond the caches too


@dataclass(frozen=True)
class Rate:
    """What one pipeline reaches.

    Attributes:
        pipeline: its name.
        batches: how many were timed.
        seconds: of a batch, all views, with the drawing of their parameters: the mean of the best turn.
        views_per_second: of all views of the images.
        nanoseconds_per_pixel: of the views, three channels each.
        bytes_per_second: pixels of the crops read, and views written.
        copy_share: time in which a plain copy moves as many bytes, over the time taken.
    """

    pipeline: str
    batches: int
    seconds: float
    views_per_second: float
    nanoseconds_per_pixel: float
    bytes_per_second: float
    copy_share: float


@dataclass(frozen=True)
class Rates:
    """Pipelines in the order in which they stand in a table.

    Attributes:
        rows: one per pipeline.
        copy_bytes_per_second: read and written by a copy within the memory of the device.
        left_out: sentences on pipelines that cannot run here.
    """

    rows: tuple[Rate, ...]
    copy_bytes_per_second: float
    left_out: tuple[str, ...]


def measure_rates(
    images: ImageSet,
    views: tuple[ViewSettings, ...],
    batch_size: int,
    seconds: float,
    device: torch.device,
    threads: int,
) -> Rates:
    """Times every pipeline that this machine has on the same shuffled batches.

    Pipelines take turns, so that a busy moment hits all alike. On CUDA the host draws the next batch's parameters while
    the device renders, as it does in a run.

    Args:
        images: To draw from; in a memory map or in memory.
        views: Settings of both views.
        batch_size: Images per batch.
        seconds: Of measuring, per pipeline.
        device: Where the views are wanted.
        threads: Of each pipeline on the host.

    Raises:
        UserError: if a batch is larger than the set.
    """
    order = BatchOrder(len(images), batch_size, seed=0)
    with torch_threads(threads), pipelines(images, views, order, device, threads) as (calls, left_out):
        copied = copy_rate(device)
        times = in_turns(calls, seconds, device)
    pixels = sum(view.size**2 for view in views) * batch_size
    read = crop_bytes(images, views, order)
    rows = []
    for name, (batches, best) in times.items():
        rate = (read + 3 * pixels * (2 if "bfloat16" in name else 4)) / best
        views_per_second = len(views) * batch_size / best
        rows.append(Rate(name, batches, best, views_per_second, 1e9 * best / pixels, rate, rate / copied))
    return Rates(tuple(rows), copied, left_out)


@contextmanager
def pipelines(
    images: ImageSet, views: tuple[ViewSettings, ...], order: BatchOrder, device: torch.device, threads: int
) -> Iterator[tuple[dict[str, Render], tuple[str, ...]]]:
    """Every pipeline for both views of a draw, by name, best first; and why others are not there."""

    def drawn(number: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], Tables]:
        epoch, samples = order.indices(number)
        return samples, tables_of(images, views, epoch, samples)

    gpu = device.type == "cuda"
    resident = hold(images, device) if gpu else None
    pixels = as_tensor(images.images) if resident is None else resident.pixels
    place = "resident, CUDA" if gpu else "fused, C++"

    def fused(dtype: torch.dtype) -> Render:
        def views_of(number: int) -> tuple[torch.Tensor, ...]:
            samples, tables = drawn(number)
            return tuple(
                render(pixels, table, view, samples, dtype, device if gpu else None)
                for table, view in zip(tables, views, strict=True)
            )

        return views_of

    def copied(number: int) -> tuple[torch.Tensor, ...]:
        samples, tables = drawn(number)
        batch = torch.empty((len(samples), *images.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
        np.take(images.images, samples, axis=0, out=batch.numpy(), mode="clip")
        there = batch.to(device, non_blocking=True)
        return tuple(render(there, table, view) for table, view in zip(tables, views, strict=True))

    def definition(number: int) -> tuple[torch.Tensor, ...]:
        samples, tables = drawn(number)
        batch = pixels[torch.from_numpy(samples).to(pixels.device)].to(device)
        return tuple(torch_pipeline.render(batch, table, view) for table, view in zip(tables, views, strict=True))

    calls: dict[str, Render] = {}
    left_out = []
    if serves(torch.empty(0, device=device), max(view.size for view in views)):
        calls |= {f"{place}, float32": fused(torch.float32), f"{place}, bfloat16": fused(torch.bfloat16)}
        calls |= {"copied per batch, CUDA, float32": copied} if gpu else {}
    else:
        left_out.append("The fused kernel is left out: `bissl-fast doctor` says why no compiled backend serves.")
    calls["torch, the definition"] = definition
    with ExitStack() as stack:
        try:
            dali = stack.enter_context(DaliPipeline(views, order.batch_size, device, threads=threads))
        except UserError as error:
            left_out.append(f"DALI is left out. {error}")
        else:

            def by_dali(number: int) -> tuple[torch.Tensor, ...]:
                samples, tables = drawn(number)
                return dali.render([images.images[i] for i in samples], tables)

            calls["DALI, GPU" if gpu else "DALI, CPU"] = by_dali
        yield calls, tuple(left_out)


def tables_of(
    images: ImageSet, views: tuple[ViewSettings, ...], epoch: int, samples: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> Tables:
    """The parameters of both views, seed 0."""
    return tuple(
        draw_views(settings, 0, epoch, samples, view, (images.size, images.size)) for view, settings in enumerate(views)
    )


def in_turns(calls: dict[str, Render], seconds: float, device: torch.device) -> dict[str, tuple[int, float]]:
    """How many batches each call made, and its mean seconds per batch in its best turn; two calls warm up."""
    made = dict.fromkeys(calls, 0)
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        for number in range(2):
            call(number)
    for _ in range(TURNS):
        for name, call in calls.items():
            wait_for(device)
            before, start = made[name], time.perf_counter()
            while made[name] == before or time.perf_counter() < start + seconds / TURNS:
                call(2 + made[name])
                made[name] += 1
            wait_for(device)
            best[name] = min(best[name], (time.perf_counter() - start) / (made[name] - before))
    return {name: (made[name], best[name]) for name in calls}


def crop_bytes(images: ImageSet, views: tuple[ViewSettings, ...], order: BatchOrder) -> float:
    """Bytes of the crops of a batch, of all views: the mean of some draws."""
    total = 0
    for number in range(DRAWS):
        epoch, samples = order.indices(number)
        for table in tables_of(images, views, epoch, samples):
            total += 3 * int(table.box[:, 2:].prod(axis=1).sum())
    return total / DRAWS


def copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written, of a large copy within the device's memory; the best of some."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    best = float("inf")
    for _ in range(TURNS):
        wait_for(device)
        start = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return 2 * COPIED_BYTES / best


def enlarged(images: ImageSet, size: int, count: int = SAMPLE) -> ImageSet:
    """A set whose images have at least `size` pixels a side: itself, or its first images, resized in memory.

    So that every set gives the pipelines the same work.
    """
    if images.size >= size:
        return images
    from PIL import Image

    chosen: Images = np.empty((min(count, len(images)), size, size, 3), dtype=np.uint8)
    for i in range(len(chosen)):
        chosen[i] = resize_square(Image.fromarray(images.images[i]), size)
    return ImageSet(f"{images.name}, enlarged from {images.size} px", chosen, None, (), "")


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """So many threads of torch inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
