"""Conv-4, the small network of the few-shot literature; importing this module makes timm know it as ``conv4``."""

from typing import Any, ClassVar

import torch
from timm.models import register_model
from torch import nn

BLOCKS, WIDTH = 4, 64


class Conv4(nn.Module):
    """Four blocks of 3 × 3 convolution, batch norm, ReLU and 2 × 2 max-pooling, flattened: images to ``(N, F)``.

    F is 64 times the pixels that four halvings leave: 64 for images of 28 px, 256 of 32 px and 1,600 of 84 px. Images
    of less than 16 px leave nothing.

    Args:
        in_chans: channels of the images.

    Source: Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016, section 4.1; Snell et al.,
    "Prototypical Networks for Few-shot Learning", NeurIPS 2017, section 3.1.

    Example:
        >>> Conv4()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 256])
    """

    pretrained_cfg: ClassVar[dict[str, Any]] = {"input_size": (3, 84, 84), "first_conv": "blocks.0"}

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in range(BLOCKS):
            convolution = nn.Conv2d(WIDTH if block else in_chans, WIDTH, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.MaxPool2d(2)]
        self.blocks = nn.Sequential(*layers)
        ends = range(len(layers) // BLOCKS - 1, len(layers), len(layers) // BLOCKS)
        self.feature_info = [
            {"module": f"blocks.{end}", "num_chs": WIDTH, "reduction": 2 ** (k + 1)} for k, end in enumerate(ends)
        ]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.blocks(images)
        return features.flatten(1)


@register_model
def conv4(pretrained: bool = False, in_chans: int = 3, num_classes: int = 0, **options: Any) -> Conv4:
    """Conv-4 as timm creates networks: without weights, without a classifier and without options of its own.

    Raises:
        TypeError: if any of these is asked for.
    """
    own = sorted(name for name in options if not name.startswith("pretrained_cfg") and name != "cache_dir")
    if pretrained or num_classes or own:
        raise TypeError(f"conv4 has no pretrained weights, no classifier and no options {own}")
    return Conv4(in_chans)
