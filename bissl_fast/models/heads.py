"""Heads: what is attached to a backbone for one task."""

from collections.abc import Sequence

import torch
from torch import nn

from bissl_fast.models.fused import fuse_batch_norm


def build_projector(features: int, widths: Sequence[int], seed: int) -> nn.Sequential:
    """Linear layers with batch norm and ReLU, the last one bare and without bias (BiSSL, section 4.2.1).

    Batch norms and their ReLUs are fused.

    Args:
        features: F, the backbone's features.
        widths: outputs of each layer; ``(256, 256, 256)`` in the paper.
        seed: of the initialisation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width in widths[:-1]:
            layers += [nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU()]
            features = width
        projector = nn.Sequential(*layers, nn.Linear(features, widths[-1], bias=False))
    fuse_batch_norm(projector)
    return projector


def build_classifier(features: int, classes: int, seed: int) -> nn.Linear:
    """The single linear layer that makes a backbone a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(features, classes)


class Network(nn.Module):
    """A backbone with a head: ``(N, 3, H, W)`` to ``(N, outputs)``."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.backbone(images))
        return outputs
