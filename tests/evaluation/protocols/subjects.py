"""Backbones whose features are known, and sets of constant images, for the tests of protocols."""

import numpy as np
import torch
from torch import nn

from bissl_fast.data.sets.dataset import ImageSet, Splits
from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.data.views.presets import eval_view, finetune_view
from bissl_fast.evaluation.protocols import Subject

SIZE = 8
VIEW = ViewSettings(size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))


def image_set(labels: np.ndarray, classes: int, name: str, noise: int = 0, seed: int = 0) -> ImageSet:
    """Images that are all of one colour, the label's; or so but for noise."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(1).integers(40, 215, (classes, 3))
    images = colours[labels][:, None, None, :] + rng.integers(-noise, noise + 1, (len(labels), SIZE, SIZE, 3))
    names = tuple(f"class{i}" for i in range(classes))
    return ImageSet(name, images.clip(0, 255).astype(np.uint8), labels.astype(np.int64), names, f"{name}{seed}{noise}")


def splits(train: np.ndarray, test: np.ndarray, classes: int, noise: int = 0) -> Splits:
    return Splits(
        image_set(train, classes, "set/train", noise, 1),
        image_set(train, classes, "set/val", noise, 2),
        image_set(test, classes, "set/test", noise, 3),
    )


class Corners(nn.Module):
    """The class of an image's colour, one-hot: features that separate everything. In train mode it tells."""

    def __init__(self, classes: int, training_is_an_error: bool = True) -> None:
        super().__init__()
        colours = np.random.default_rng(1).integers(40, 215, (classes, 3)) / 255
        self.colours = nn.Parameter(torch.from_numpy(colours).float())
        self.refuses = training_is_an_error

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not (self.training and self.refuses), "a frozen backbone is used in eval mode"
        nearest = torch.cdist(images.mean((2, 3)), self.colours).argmin(1)
        return nn.functional.one_hot(nearest, len(self.colours)).float()


class Noise(nn.Module):
    """Features that know nothing: hashed from the pixels."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.features = features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = [int(1e6 * float(image.double().std())) for image in images]
        return torch.stack([torch.randn(self.features, generator=torch.Generator().manual_seed(row)) for row in rows])


def subject(backbone: nn.Module, data: Splits, **options: object) -> Subject:
    shown = (VIEW, VIEW)
    return Subject(backbone, data, *shown, torch.device("cpu"), tell=lambda line: None, **options)  # type: ignore[arg-type]


__all__ = ["VIEW", "Corners", "Noise", "eval_view", "finetune_view", "image_set", "splits", "subject"]
