"""Heads: what is attached to a backbone for one task."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from bissl_fast.models.fused import fuse_batch_norm
from bissl_fast.ops import BatchNormAct


def build_projector(features: int, widths: Sequence[int], seed: int) -> nn.Sequential:
    """Linear layers with batch norm and ReLU, the last one bare and without bias (BiSSL, section 4.2.1).

    Args:
        features: F, the backbone's features.
        widths: outputs of each layer; ``(256, 256, 256)`` in the paper.
        seed: of the initialisation.
    """
    return build_mlp(features, widths, seed, last_bias=False)


def build_mlp(
    features: int,
    widths: Sequence[int],
    seed: int,
    *,
    hidden_bias: bool = True,
    hidden_norm: bool = True,
    last_bias: bool = True,
    last_norm: Literal["none", "plain", "affine"] = "none",
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers, with batch norm and an activation between them: heads, projectors and predictors.

    Batch norms and their ReLUs are fused.

    Args:
        features: columns of the input (N, F).
        widths: outputs of each layer.
        seed: of the initialisation; torch's global generator is left as it was.
        hidden_bias: whether all layers but the last have a bias.
        hidden_norm: whether a batch norm follows them.
        last_bias: whether the last layer has a bias.
        last_norm: batch norm on the output: none, one without weights (``plain``) or with them (``affine``).
        activation: makes what stands between the layers.

    Example:
        >>> build_mlp(8, (16, 4), 0)(torch.zeros(2, 8)).shape
        torch.Size([2, 4])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width in widths[:-1]:
            norm = [nn.BatchNorm1d(width)] if hidden_norm else []
            layers += [nn.Linear(features, width, bias=hidden_bias), *norm, activation()]
            features = width
        layers.append(nn.Linear(features, widths[-1], bias=last_bias))
        if last_norm != "none":
            layers.append(nn.BatchNorm1d(widths[-1]) if last_norm == "affine" else PlainBatchNorm(widths[-1]))
    mlp = nn.Sequential(*layers)
    fuse_batch_norm(mlp)
    return mlp


class PlainBatchNorm(BatchNormAct):
    """Batch norm without weights, that can keep groups apart: weights of 1 and 0 are no parameters, and not saved."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        for name, value in (("weight", 1.0), ("bias", 0.0)):
            delattr(self, name)
            self.register_buffer(name, torch.full((num_features,), value), persistent=False)


class PredictorHead(nn.Module):
    """A projector and a predictor of other projections: ``(N, F)`` to predictions and projections, ``(N, D)`` each.

    Args:
        projector: ``(N, F)`` to ``(N, D)``.
        predictor: ``(N, D)`` to ``(N, D)``.
    """

    def __init__(self, projector: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.projector = projector
        self.predictor = predictor

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        projections = self.projector(features)
        return self.predictor(projections), projections


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
