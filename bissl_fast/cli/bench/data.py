"""``bissl-fast bench data``: views per second, what data cost a training step, and the building of a cache."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from bissl_fast.cli.bench.tables import Cells, Page, machine_of, make_place
from bissl_fast.data.sets.catalogue import list_unlabelled, load_pretext
from bissl_fast.data.views.presets import vicreg_views
from bissl_fast.errors import UserError
from bissl_fast.measuring.feeding import Building, Feeding, measure_building, measure_feeding
from bissl_fast.measuring.views import Rates, enlarged, measure_rates, torch_threads
from bissl_fast.methods.checks import require
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.settings import Preset
from bissl_fast.training.precision import find_device

LARGEST = 1024  # side of a view in pixels: the CUDA kernel's limit
FEEDING_NOTE = (
    "Waiting is the time until the loader hands over a batch, which it makes during the step before. Where loader and "
    "step share cores, a step is longer by more than that."
)
BUILDING_NOTE = "Building is reading, hashing, writing and flushing to the disk; the best of the turns counts."


@dataclass(frozen=True)
class DataSettings:
    """Images and machine of the measurements.

    Attributes:
        dataset: a name that `bissl-fast data list` shows, or folder:PATH; its unlabelled or training images.
        data_root: folder that holds the data sets.
        cache_dir: of decoded images; left out: `$BISSL_FAST_CACHE` or ~/.cache/bissl-fast.
        size: side of the views in pixels.
        cache_size: side of the images that views are cut from; those of smaller sets are enlarged to it.
        batch_size: images per batch, each in two views.
        threads: CPU threads of every pipeline; 0 is one for each core that this process may use.
        seconds: of measuring, for each pipeline and each of the other tables.
        device: cpu or cuda.
        preset: whose sizes the training step has: quick, paper or official; left out: quick on cpu, paper on cuda.
        output: file to keep the tables in: Markdown here, and the same numbers as .json beside it.
    """

    dataset: str = "textures"
    data_root: Path | None = None
    cache_dir: Path | None = None
    size: int = 96
    cache_size: int = 112
    batch_size: int = 256
    threads: int = 0
    seconds: float = 5.0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    preset: Preset | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        require(8 <= self.size <= LARGEST, "size", self.size, f"between 8 and {LARGEST} pixels")
        require(8 <= self.cache_size <= 4096, "cache-size", self.cache_size, "between 8 and 4096 pixels")
        require(self.batch_size >= 1, "batch-size", self.batch_size, "at least 1")
        require(self.seconds > 0, "seconds", self.seconds, "positive")
        most = cores()
        require(0 <= self.threads <= most, "threads", self.threads, f"between 0 and the {most} cores of this machine")


def run(arguments: Sequence[str]) -> None:
    """Parse, measure, print, keep."""
    settings = tyro.cli(DataSettings, prog="bissl-fast bench data", args=arguments)
    make_place(settings.output)
    device = find_device(settings.device)
    threads = settings.threads or cores()
    source = list_unlabelled(settings.dataset, settings.data_root)  # before anything is decoded
    images = load_pretext(settings.dataset, settings.data_root, settings.cache_size, settings.cache_dir)
    with torch_threads(threads):
        machine = machine_of(device.type)
    sizes = {name: getattr(settings, name) for name in ("dataset", "size", "cache_size", "batch_size", "seconds")}
    page = Page("Data", machine, settings.output, threads=threads, **sizes)

    large = enlarged(images, settings.cache_size)
    views = vicreg_views(settings.size)
    rates = measure_rates(large, views, settings.batch_size, settings.seconds, device, threads)
    title = f"VICReg's two views, {settings.size} px of {large.size} px, {settings.batch_size} images ({large.name})"
    page.add(title, cells_of_rates(rates), {"rates": asdict(rates)}, 1)
    page.tell(note_on(rates, device))

    preset = settings.preset or ("paper" if device.type == "cuda" else "quick")
    config = preset_config(preset, settings.dataset)
    images = load_pretext(settings.dataset, settings.data_root, config.images.cache_size, settings.cache_dir)
    if len(images) < 2:
        raise UserError(f"{images.name} holds one image, and a training step needs two: add images.")
    batch = min(config.pretrain.batch_size, len(images))
    fed = measure_feeding(images, config.views, batch, settings.seconds, device, threads)
    title = f"A pretext step of resnet18, preset {preset}: 2 x {batch} views of {config.images.size} px"
    page.add(title, cells_of_feeding(fed), {"step": asdict(fed) | {"preset": preset, "batch_size": batch}}, 1)
    page.tell(FEEDING_NOTE)

    built = measure_building(source, settings.cache_size, settings.seconds, settings.cache_dir)
    title = f"Building a cache of {built.size} px from {built.images} images, {built.workers} threads ({source.name})"
    page.add(title, cells_of_building(built), {"cache": asdict(built)}, 1)
    page.tell(BUILDING_NOTE)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def note_on(rates: Rates, device: torch.device) -> str:
    """What the last column is a share of, and what it is not."""
    copied = f"{rates.copy_bytes_per_second / 1e9:.1f} GB/s, read and written by a copy in this run"
    bound = (
        "A CPU is bound by the arithmetic of the chain and not by memory: the share says how far apart they are."
        if device.type == "cpu"
        else "Crops count once for each view, although the cache may serve the second."
    )
    return " ".join([f"The copy's rate is {copied}. {bound}", *rates.left_out])


def cells_of_rates(rates: Rates) -> Cells:
    """Headings and cells of the pipelines."""
    headings = ["pipeline", "views/s", "of the first", "ns per pixel", "GB/s moved", "of a copy's rate"]
    first = rates.rows[0].views_per_second
    cells = [
        [
            row.pipeline,
            f"{row.views_per_second:,.0f}",
            f"{row.views_per_second / first:.2f}",
            f"{row.nanoseconds_per_pixel:.3g}",
            f"{row.bytes_per_second / 1e9:.3g}",
            f"{100 * row.copy_share:.2g} %",
        ]
        for row in rates.rows
    ]
    return headings, cells


def cells_of_feeding(fed: Feeding) -> Cells:
    """Headings and cells of the step."""
    headings = ["step", "ms", "of the fed step"]
    cells = [
        ["on views that are there", f"{1e3 * fed.alone_seconds:.2f}", f"{100 * (1 - fed.cost_share):.1f} %"],
        ["fed by the loader", f"{1e3 * fed.fed_seconds:.2f}", "100 %"],
        ["waiting in it", f"{1e3 * fed.waiting_seconds:.3f}", f"{100 * fed.waiting_share:.2f} %"],
    ]
    return headings, cells


def cells_of_building(built: Building) -> Cells:
    """Headings and cells of the cache."""
    headings = ["", "images/s", "of reading"]
    cells = [
        ["reading alone: decode, resize", f"{built.images / built.reading_seconds:,.0f}", "100 %"],
        [
            "building",
            f"{built.images / built.building_seconds:,.0f}",
            f"{100 * built.share_of_reading:.0f} %",
        ],
    ]
    return headings, cells
