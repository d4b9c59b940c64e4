"""What all formats share: how what was written is loaded and shown images."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

from bissl_fast.export.loading import TrainedModel


@dataclass(frozen=True)
class Usage:
    """How an export is loaded.

    Attributes:
        library: that loads it, as package indices call it.
        python: lines that make ``outputs`` of ``images``, run in the folder of the export.
    """

    library: str
    python: str


def preprocessing(model: TrainedModel) -> dict[str, Any]:
    """How images are shown, in the words of timm's configurations.

    The short side is resized to ``input_size / crop_pct``, and the square in the middle is cut out.
    """
    view = model.view
    return {
        "input_size": [len(view.mean), view.size, view.size],
        "mean": [value / view.pixel_range for value in view.mean],  # timm's pixels are in 0..1
        "std": [value / view.pixel_range for value in view.std],
        "interpolation": view.interpolation,
        "crop_pct": round(sqrt(view.crop_scale[1]), 4),
        "crop_mode": "center",
    }
