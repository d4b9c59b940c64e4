"""Check and time VICReg's two views on a GPU beside their peers, in one run that survives the failure of any part.

    python -m benchmarks.gpu_augment --out docs/results                    # augment_<gpu>.json and .md
    python -m benchmarks.gpu_augment --out /tmp --device cpu --quick       # does the script run?

Nothing is built and nothing downloaded: it takes the installed binary, and says where that lacks the CUDA kernel.
Images are 112 px; they lie in GPU memory, but for DALI's rows and those that say otherwise. Views are 96 px, in batches
of 1024 images. Every row is written as soon as it is known.

What is wanted of the resident kernel: 1 million views per second, 10 times DALI's own operators, 20 times torchvision
on the GPU, and a ResNet-18 step on 2x1024 views that waits for its data for less than 1 % of its time.
"""

import argparse
import functools
import time
from collections.abc import Iterator
from itertools import count, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_report import Report, add_budget, place
from benchmarks.peers_augment import Images, Peer, Views, threads_for, workers_for
from benchmarks.streams_augment import CACHE_SIZE, pictures, streams, views_per_second
from bissl_fast.data.pipelines import torch_pipeline
from bissl_fast.data.pipelines.loader import ViewLoader
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.pipelines.rendering import as_tensor, render
from bissl_fast.data.pipelines.resident import hold
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views import presets
from bissl_fast.data.views.parameters import ViewSettings, draw_views
from bissl_fast.measuring.feeding import measure_feeding
from bissl_fast.measuring.views import copy_rate, crop_bytes, pipelines, torch_threads, wait_for
from bissl_fast.ops.backend import backend, why_absent
from bissl_fast.training.precision import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
RECIPES = {
    "vicreg, first": lambda size: presets.vicreg_views(size)[0],
    "vicreg, second": lambda size: presets.vicreg_views(size)[1],
    "official, second": lambda size: presets.official_views(size)[1],
    "simclr": lambda size: presets.simclr_views(size)[0],
    "finetune": presets.finetune_view,
    "evaluate": presets.eval_view,
}
KERNELS = ("resident, CUDA, float32", "fused, C++, float32")  # the row that others are compared with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--quick", action="store_true", help="smallest sizes only: does the script run?")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring, per row")
    parser.add_argument("--device", default="cuda")
    add_budget(parser)
    options = parser.parse_args()
    device = torch.device(options.device)
    title = "Views on a GPU: `python -m benchmarks.gpu_augment`"
    report = Report(place(options.out, "augment", device), title, device, seconds=options.budget_seconds)
    name, images = pictures()
    report.row("set-up", lambda: {"images": name, "pixels": CACHE_SIZE, "cuda kernel": why_absent("cuda") or "there"})
    size, batch, seconds = (32, 16, 0.1) if options.quick else (96, 1024, options.seconds)
    measure_floor(report, images, size, batch, device)
    measure_host(report, images, size, batch, device)
    compare(report, images, size, batch, seconds, device)
    for precision in PRECISIONS[: 1 if options.quick else None]:
        feed = functools.partial(wait_share, images, size, batch, 5 * seconds, device, precision)
        report.row("a pretext step of resnet18", feed, precision=precision, views=f"2x{batch}", size=size)
    check_exactness(report, images, device, options.quick)
    sweep_sizes(report, images, seconds, device, options.quick)


def held(images: Images, least: int = 0) -> ImageSet:
    """The images as a set, repeated up to ``least``: a batch must not be larger than its set."""
    if len(images) < least:
        images = np.concatenate([images] * -(-least // len(images)))
    return ImageSet("benchmark", images, None, (), "")


def check_exactness(report: Report, images: Images, device: torch.device, quick: bool) -> None:
    """Views from where the set lies against the definition on the host, in levels of 255, and whether bits repeat."""
    sizes = (32,) if quick else (17, 32, 96, 128, 224, 1024)
    for (recipe, build), size in product(RECIPES.items(), sizes):
        samples = 8 if quick or size == 1024 else 128
        report.row("errors", functools.partial(errors, images, build(size), samples, device), recipe=recipe, size=size)


def errors(images: Images, settings: ViewSettings, number: int, device: torch.device) -> dict[str, Any]:
    """The largest difference, also with bfloat16 rounded alike, from a resident set and from a batch of its own."""
    resident = hold(held(images), device)
    samples = np.random.default_rng(0).integers(len(images), size=number)
    table = draw_views(settings, 0, 0, samples, 1, images.shape[1:3])
    on_host = as_tensor(images)[torch.from_numpy(samples)]
    definition = torch_pipeline.render(on_host, table, settings)
    target = device if device.type == "cuda" else None
    found = render(resident.pixels, table, settings, samples, device=target)
    again = render(on_host.to(device), table, settings)
    half = render(resident.pixels, table, settings, samples, torch.bfloat16, target)
    level = torch.tensor(settings.std).view(3, 1, 1) * 255 / settings.pixel_range
    difference = ((found.cpu() - definition).abs() * level).max()
    return {
        "levels": float(difference),
        "within 0.01": bool(difference < 0.01),
        "same bits in another batch": torch.equal(found, again),
        "bfloat16 is float32 rounded": torch.equal(half, found.to(torch.bfloat16)),
    }


def measure_floor(report: Report, images: Images, size: int, batch: int, device: torch.device) -> None:
    """The rate of a copy, and the views per second that could be read and written at it."""
    views = presets.vicreg_views(size)
    whole = held(images, batch)

    def floor() -> dict[str, Any]:
        copied = copy_rate(device)
        read = crop_bytes(whole, views, BatchOrder(len(whole), batch, seed=0)) / (2 * batch)
        written = 3 * size * size * 4
        return {"copy GB/s": copied / 1e9, "bytes per view": read + written, "views/s at it": copied / (read + written)}

    report.row("floor: reading the crop and writing float32", floor)

    for drawer, threads, samples in (("NumPy", 1, batch), ("compiled", 1, batch), ("compiled", None, 64 * batch)):
        rate = functools.partial(drawing_rate, views, drawer, threads, samples)
        report.row("host: drawing the parameters", rate, drawer=drawer, threads=threads or "all", at_once=samples)


def drawing_rate(views: tuple[ViewSettings, ...], drawer: str, threads: int | None, samples: int) -> dict[str, Any]:
    """Views per second of drawing alone; NumPy's is the definition."""
    indices, size = np.arange(samples), (CACHE_SIZE,) * 2
    with backend("reference" if drawer == "NumPy" else "auto"), torch_threads(threads or torch.get_num_threads()):
        draws = (tuple(draw_views(v, 0, k, indices, i, size) for i, v in enumerate(views)) for k in count())
        return {"views/s": views_per_second(draws, 0.5, torch.device("cpu"))}  # type: ignore[arg-type]


def measure_host(report: Report, images: Images, size: int, batch: int, device: torch.device) -> None:
    """What bounds small kernels: the time in which the host draws and launches; and the loader, which draws ahead."""
    views, whole = presets.vicreg_views(size), held(images, batch)
    order = BatchOrder(len(whole), batch, seed=0)

    def host() -> dict[str, Any]:
        with pipelines(whole, views, order, device, threads_for(device)) as (calls, _):
            call = next(iter(calls.values()))
            for number in range(3):
                call(number)
            wait_for(device)
            start, batches = time.perf_counter(), 10 if device.type == "cuda" else 2
            for number in range(batches):
                call(number)
            seconds = time.perf_counter() - start  # on CUDA nobody has waited for a view
            wait_for(device)
        return {"views/s": 2 * batch * batches / seconds}

    def loader() -> dict[str, Any]:
        with ViewLoader(hold(whole, device), views, order, 0, device) as batches:
            made = (batches.load(number).views for number in count())
            return {"views/s": views_per_second(made, 1.0, device)}  # type: ignore[arg-type]

    report.row("host: drawing and launching, nobody waits for the views", host, batch=batch, size=size)
    report.row("views per second of a run's loader", loader, batch=batch, size=size)


def compare(report: Report, images: Images, size: int, batch: int, seconds: float, device: torch.device) -> None:
    """Views per second of ours and of every peer, and how many times as long each takes as the fused kernel."""
    rates: dict[str, float] = {}
    whole = held(images, batch).images

    def rate(name: str, build: Peer) -> dict[str, Any]:
        stream = build(whole, size, batch, device)
        try:
            rates[name] = views_per_second(stream, seconds, device, workers_for(name, device))
        finally:
            close(stream)
        first = next((rates[key] for key in rates if key.endswith(KERNELS)), None)
        return {"views/s": rates[name], "times as long": first / rates[name] if first else ""}

    for name, build in streams(device).items():
        report.row("views per second", functools.partial(rate, name, build), pipeline=name, batch=batch, size=size)


def close(stream: Iterator[Views]) -> None:
    """Ends a stream, its workers and its pipelines."""
    stream.close()  # type: ignore[attr-defined]


def sweep_sizes(report: Report, images: Images, seconds: float, device: torch.device, quick: bool) -> None:
    """The fused kernel over sizes and batches: shared memory up to about 135 pixels, the workspace beyond."""
    for size, batch in ((16, 4),) if quick else product((32, 64, 96, 128, 160, 224), (64, 256, 1024)):
        sweep = functools.partial(kernel_rate, images, size, batch, seconds / 2, device)
        report.row("sizes of the fused kernel", sweep, size=size, batch=batch)


def kernel_rate(images: Images, size: int, batch: int, seconds: float, device: torch.device) -> dict[str, Any]:
    """Views per second from call to call, and of the kernel alone on a table that is already drawn."""
    whole = held(images, batch)
    views = presets.vicreg_views(size)
    found: dict[str, Any] = {}
    threads = threads_for(device)
    with pipelines(whole, views, BatchOrder(len(whole), batch, seed=0), device, threads) as (calls, _):
        for name in KERNELS:
            if name in calls:
                drawn = (calls[name](number) for number in count())
                found["views/s"] = views_per_second(drawn, seconds, device)  # type: ignore[arg-type]
    resident = hold(whole, device)
    samples = np.arange(batch)
    table = draw_views(views[0], 0, 0, samples, 0, whole.images.shape[1:3])
    target = device if device.type == "cuda" else None
    alone = ((render(resident.pixels, table, views[0], samples, device=target),) for _ in count())
    found["first view alone, table drawn, views/s"] = views_per_second(alone, seconds, device)  # type: ignore[arg-type]
    return found


def wait_share(
    images: Images,
    size: int,
    batch: int,
    seconds: float,
    device: torch.device,
    precision: Precision,
    capture: bool = False,
) -> dict[str, Any]:
    """A step on views that are there, a step that is fed, and what of it waits for data."""
    views = presets.vicreg_views(size)
    given = (held(images, batch), views, batch, seconds, device, threads_for(device))
    fed = measure_feeding(*given, precision=precision, capture=capture)
    return {
        "alone ms": 1e3 * fed.alone_seconds,
        "fed ms": 1e3 * fed.fed_seconds,
        "waiting ms": 1e3 * fed.waiting_seconds,
        "waiting %": 100 * fed.waiting_share,
        "longer by %": 100 * fed.cost_share,
    }


if __name__ == "__main__":
    main()
