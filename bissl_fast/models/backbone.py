"""Backbones by their timm name."""

from typing import cast

import torch
from torch import nn

from bissl_fast.errors import UserError


def build_backbone(name: str, seed: int) -> nn.Module:
    """A randomly initialised timm CNN without a classifier: ``(N, 3, H, W)`` to pooled features ``(N, F)``.

    ResNets keep timm's zero-initialised last batch-norm weight in every residual block.

    Args:
        name: a timm model name such as ``"resnet18"``.
        seed: of the initialisation; torch's global generator is left as it was.

    Returns:
        A module whose ``num_features`` is F.

    Raises:
        UserError: if timm has no such model.
    """
    import timm

    if not timm.is_model(name):
        import difflib

        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}" if close else "`timm.list_models()` names all"
        raise UserError(f"timm knows no backbone called {name!r}; {hint}? Choose one with --backbone NAME.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
        return backbone


def feature_size(backbone: nn.Module) -> int:
    """F, the number of features that the backbone gives for each image."""
    return int(cast(int, backbone.num_features))
