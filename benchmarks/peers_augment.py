"""What others make VICReg's two views with, to be timed beside our pipelines in one run.

Each peer is written as its users write it and draws its own samples and parameters. All do the same recipe (crop,
bicubic resize, flip, colour jitter, gray, blur, solarise, normalise) and give the same kind of result, without end:

    views = PEERS["torchvision, PIL"](images, 96, 256, torch.device("cpu"))  # images: (M, H, W, 3) uint8
    first, second = next(views)  # two (256, 3, 96, 96) float32
    views.close()  # ends its workers

On the CPU each has two threads or worker processes. On CUDA torchvision's tensors, DALI and kornia work there, and what
works on the host has all cores, 16 at most.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms import v2

from bissl_fast.measuring.torchvision_views import (
    BLUR,
    JITTER,
    MEAN,
    SCALE,
    SIGMA,
    SOLARIZE,
    STD,
    Images,
    Pairs,
    Views,
    from_workers,
    pillow_pairs,
    torchvision_recipe,
)

Peer = Callable[[Images, int, int, torch.device], Iterator[Views]]  # images, size, batch size, device

CORES = 2
MOST_WORKERS = 16  # each holds two batches of 226 MB, at 1024 images, in /dev/shm


def threads_for(device: torch.device) -> int:
    """Of DALI, and worker processes of torchvision."""
    return CORES if device.type == "cpu" else min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def workers_for(name: str, device: torch.device) -> int:
    """Worker processes of a pipeline; torchvision's tensors need none on a GPU."""
    from_workers = name == "torchvision, PIL" or (name == "torchvision, tensors" and device.type == "cpu")
    return threads_for(device) if from_workers else 0


def kernel_of(size: int) -> int:
    """Taps of the blur where a recipe fixes them: a tenth of the image, as SimCLR has it, and odd."""
    return max(3, size // 10 // 2 * 2 + 1)


def sampled(count: int, batch_size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Random samples for batches, without end."""
    generator = np.random.default_rng(0)
    while True:
        yield generator.integers(count, size=batch_size)


def torchvision_tensors(images: Images, size: int, batch_size: int, device: torch.device) -> Iterator[Views]:
    """Image by image on uint8 tensors, each with its own parameters: in workers, or one after the other on the GPU."""
    blur = v2.GaussianBlur(kernel_of(size), SIGMA)
    recipes = torchvision_recipe(size, 0, blur, []), torchvision_recipe(size, 1, blur, [])
    if device.type == "cpu":
        pairs = Pairs(images, lambda image: torch.from_numpy(image).permute(2, 0, 1), recipes)
        yield from from_workers(pairs, batch_size, threads_for(device))
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
    for samples in sampled(len(images), batch_size):
        chosen = [tensors[i] for i in samples.tolist()]
        first, second = (torch.stack([recipe(image) for image in chosen]) for recipe in recipes)
        yield first, second


def torchvision_pillow(images: Images, size: int, batch_size: int, device: torch.device) -> Iterator[Views]:
    """Image by image on Pillow images, as VICReg's released code, in workers."""
    for first, second in from_workers(pillow_pairs(images, size), batch_size, threads_for(device)):
        yield first.to(device), second.to(device)


def dali_recipe(images: Images, size: int, batch_size: int, device: torch.device) -> Iterator[Views]:
    """DALI with its own random numbers and its ready-made operators, which are not torchvision's.

    Images come from the host, as from a cache; the next batch is made while the last one is in use.
    """
    from nvidia.dali import fn, pipeline_def, types

    gpu = device.type == "cuda"

    def view(image: Any, number: int) -> Any:
        x = fn.random_resized_crop(
            image, size=size, random_area=SCALE, interp_type=types.INTERP_CUBIC, antialias=True, dtype=types.UINT8
        )
        if fn.random.coin_flip(probability=0.8, dtype=types.BOOL):
            x = fn.color_twist(
                x,
                brightness=fn.random.uniform(range=(1 - JITTER[0], 1 + JITTER[0])),
                contrast=fn.random.uniform(range=(1 - JITTER[1], 1 + JITTER[1])),
                saturation=fn.random.uniform(range=(1 - JITTER[2], 1 + JITTER[2])),
                hue=fn.random.uniform(range=(-360 * JITTER[3], 360 * JITTER[3])),
            )
        if fn.random.coin_flip(probability=0.2, dtype=types.BOOL):
            x = fn.saturation(x, saturation=0.0)
        if fn.random.coin_flip(probability=BLUR[number], dtype=types.BOOL):
            x = fn.gaussian_blur(x, window_size=kernel_of(size), sigma=fn.random.uniform(range=SIGMA))
        if fn.random.coin_flip(probability=SOLARIZE[number], dtype=types.BOOL):
            x = fn.cast(x + (x >= 128) * (255 - 2 * x), dtype=types.UINT8)
        return fn.crop_mirror_normalize(
            x,
            mirror=fn.random.coin_flip(),
            mean=[255 * channel for channel in MEAN],
            std=[255 * channel for channel in STD],
            output_layout="CHW",
            dtype=types.FLOAT,
        )

    batches = sampled(len(images), batch_size)

    @pipeline_def(enable_conditionals=True)
    def graph() -> tuple[Any, Any]:
        source = lambda: [images[i] for i in next(batches)]  # noqa: E731
        image = fn.external_source(source=source, layout="HWC", ndim=3, dtype=types.UINT8)
        image = image.gpu() if gpu else image
        return view(image, 0), view(image, 1)

    pipeline = graph(
        batch_size=batch_size, num_threads=threads_for(device), device_id=(device.index or 0) if gpu else None, seed=0,
        prefetch_queue_depth=2,
    )  # fmt: skip
    while True:
        first, second = pipeline.run()
        yield torch.from_dlpack(first.as_tensor()), torch.from_dlpack(second.as_tensor())


def kornia_batches(images: Images, size: int, batch_size: int, device: torch.device) -> Iterator[Views]:
    """Kornia on whole batches of float tensors, each image with its own parameters."""
    import kornia.augmentation as K

    kernel = kernel_of(size)

    def recipe(view: int) -> torch.nn.Sequential:
        return torch.nn.Sequential(
            K.RandomResizedCrop((size, size), scale=SCALE, resample="bicubic", cropping_mode="resample"),
            K.RandomHorizontalFlip(p=0.5),
            K.ColorJitter(*JITTER, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((kernel, kernel), SIGMA, p=BLUR[view]),
            K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=SOLARIZE[view]),
            K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        ).to(device)

    first, second = recipe(0), recipe(1)
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
    for samples in sampled(len(images), batch_size):
        batch = tensors[torch.from_numpy(samples).to(device)].float().div_(255)
        with torch.no_grad():
            views = first(batch), second(batch)
        yield views


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


PEERS: dict[str, Peer] = {
    "torchvision, tensors": torchvision_tensors,
    "torchvision, PIL": torchvision_pillow,
    **({"DALI's own operators": dali_recipe} if _installed("nvidia.dali") else {}),
    **({"kornia": kornia_batches} if _installed("kornia") else {}),
}
