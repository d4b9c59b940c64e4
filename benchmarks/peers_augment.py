"""What others make VICReg's two views with, to be timed beside `TwoViewAugment` and `DaliPipeline` in one run.

Each peer is written as its users write it and draws its own parameters. All do the same recipe (crop, bicubic resize,
flip, colour jitter, gray, blur, solarise, normalise) and give the same kind of result:

    peers = {name: build(images, size) for name, build in PEERS.items()}   # images: (M, H, W, 3) uint8
    first, second = peers["torchvision, PIL"](samples)                     # (B,) indices to two (B, 3, S, S) float32
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode, v2

Images = npt.NDArray[np.uint8]  # (M, H, W, 3)
Views = tuple[torch.Tensor, torch.Tensor]
Peer = Callable[[npt.NDArray[np.int64]], Views]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, SIGMA = (0.08, 1.0), (0.1, 2.0)
JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
BLUR, SOLARIZE = (1.0, 0.1), (0.0, 0.2)  # probabilities in the first and the second view
THREADS = 2  # of DALI


def kernel_of(size: int) -> int:
    """Taps of the blur where a recipe fixes them: a tenth of the image, as SimCLR has it, and odd."""
    return max(3, size // 10 // 2 * 2 + 1)


class PillowBlur(torch.nn.Module):
    """The blur of VICReg's released code: Pillow's, with a random radius."""

    def forward(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=float(np.random.uniform(*SIGMA))))


def torchvision_recipe(size: int, view: int, blur: torch.nn.Module, to_tensor: list[torch.nn.Module]) -> v2.Compose:
    """The recipe in torchvision v2, for one image."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=SCALE, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([blur], p=BLUR[view]),
            v2.RandomSolarize(threshold=128, p=SOLARIZE[view]),
            *to_tensor,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def torchvision_tensors(images: Images, size: int) -> Peer:
    """Image by image on uint8 tensors."""
    blur = v2.GaussianBlur(kernel_of(size), SIGMA)
    first, second = (torchvision_recipe(size, view, blur, []) for view in (0, 1))
    tensors = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)

    def views(samples: npt.NDArray[np.int64]) -> Views:
        pairs = [(first(tensors[i]), second(tensors[i])) for i in samples.tolist()]
        return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])

    return views


def torchvision_pillow(images: Images, size: int) -> Peer:
    """Image by image on Pillow images, as VICReg's released code."""
    first, second = (torchvision_recipe(size, view, PillowBlur(), [v2.ToImage()]) for view in (0, 1))

    def views(samples: npt.NDArray[np.int64]) -> Views:
        opened = [Image.fromarray(images[i]) for i in samples]
        return torch.stack([first(image) for image in opened]), torch.stack([second(image) for image in opened])

    return views


def dali_recipe(images: Images, size: int) -> Peer:
    """DALI on the CPU with its own random numbers and its ready-made operators, which are not torchvision's."""
    from nvidia.dali import fn, pipeline_def, types

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

    @pipeline_def(enable_conditionals=True)
    def graph() -> tuple[Any, Any]:
        image = fn.external_source(name="images", layout="HWC", ndim=3, dtype=types.UINT8)
        return view(image, 0), view(image, 1)

    built: dict[int, Any] = {}

    def views(samples: npt.NDArray[np.int64]) -> Views:
        n = len(samples)
        if n not in built:
            built[n] = graph(batch_size=n, num_threads=THREADS, device_id=None, seed=0, prefetch_queue_depth=1)
        first, second = built[n].run(images=[images[i] for i in samples])
        return torch.from_dlpack(first.as_tensor()), torch.from_dlpack(second.as_tensor())

    return views


def kornia_batches(images: Images, size: int) -> Peer:
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
        )

    first, second = recipe(0), recipe(1)
    tensors = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def views(samples: npt.NDArray[np.int64]) -> Views:
        batch = tensors[torch.from_numpy(samples)].float().div_(255)
        return first(batch), second(batch)

    return views


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


PEERS: dict[str, Callable[[Images, int], Peer]] = {
    "torchvision, tensors": torchvision_tensors,
    "torchvision, PIL": torchvision_pillow,
    **({"DALI's own operators": dali_recipe} if _installed("nvidia.dali") else {}),
    **({"kornia": kornia_batches} if _installed("kornia") else {}),
}
