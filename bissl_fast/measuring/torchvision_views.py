"""VICReg's two views as people make them with torchvision: image by image in the workers of a `DataLoader`."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import InterpolationMode, v2

Images = npt.NDArray[np.uint8]  # (M, H, W, 3)
Views = tuple[torch.Tensor, torch.Tensor]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, SIGMA = (0.08, 1.0), (0.1, 2.0)
JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
BLUR, SOLARIZE = (1.0, 0.1), (0.0, 0.2)  # probabilities in the first and the second view


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


class Pairs(Dataset[Views]):
    """Two views per image of a map-style data set.

    Args:
        images: (M, H, W, 3) uint8.
        opened: what the recipe gets of one (H, W, 3) image.
        recipes: one per view.
    """

    def __init__(self, images: Images, opened: Callable[[Images], Any], recipes: tuple[v2.Compose, v2.Compose]) -> None:
        self.images, self.opened, self.recipes = images, opened, recipes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Views:
        image = self.opened(self.images[index])
        return self.recipes[0](image), self.recipes[1](image)


def from_workers(pairs: Pairs, batch_size: int, workers: int) -> Iterator[Views]:
    """Batches from worker processes, which torch gives a thread each. An epoch never ends, so none is started twice."""
    sampler = RandomSampler(pairs, replacement=True, num_samples=1 << 40)
    yield from DataLoader(pairs, batch_size, sampler=sampler, num_workers=workers)


def pillow_pairs(images: Images, size: int) -> Pairs:
    """Both views of Pillow images, as VICReg's released code has them."""
    first, second = (torchvision_recipe(size, view, PillowBlur(), [v2.ToImage()]) for view in (0, 1))
    return Pairs(images, Image.fromarray, (first, second))
