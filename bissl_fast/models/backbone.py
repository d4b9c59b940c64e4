"""Backbones by their timm name."""

import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.models.fused import fuse_batch_norm


def build_backbone(name: str, seed: int) -> nn.Module:
    """A randomly initialised timm CNN without a classifier: ``(N, 3, H, W)`` to pooled features ``(N, F)``.

    ResNets keep timm's zero-initialised last batch-norm weight in every residual block. Batch norms are fused: same
    names, same numbers (:func:`fuse_batch_norm`).

    Args:
        name: a timm model name such as ``"resnet18"``.
        seed: of the initialisation; torch's global generator is left as it was.

    Returns:
        The backbone. F is what :func:`probe_features` says; timm's ``num_features`` is another number for some.

    Raises:
        UserError: if timm has no such model.
    """
    import timm

    if not timm.is_model(name):
        import difflib

        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "`timm.list_models()` names all."
        raise UserError(f"timm knows no backbone called {name!r}; {hint} Choose one with --backbone NAME.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
        return fuse_batch_norm(backbone)


def probe_features(name: str, size: int) -> int:
    """F, the number of features that a backbone gives for an image of ``size`` pixels; computes and allocates nothing.

    Also differentiates it twice, which BiSSL's products need and PyTorch cannot do for every layer.

    Args:
        name: a timm model name.
        size: side of the square images.

    Raises:
        UserError: if timm has no such model, or it cannot take such images or be differentiated twice.
    """
    with torch.device("meta"):
        backbone = build_backbone(name, 0)
        try:
            features: torch.Tensor = backbone(torch.empty(2, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"backbone {name!r} cannot take images of {size} px ({str(error).splitlines()[0]}); "
                "choose another --images.size or --backbone."
            ) from None
        try:
            parameters = list(backbone.parameters())
            gradients = torch.autograd.grad(features.square().sum(), parameters, create_graph=True, allow_unused=True)
            once = torch.stack([g.sum() for g in gradients if g is not None]).sum()
            torch.autograd.grad(once, parameters, allow_unused=True)
        except RuntimeError as error:
            raise UserError(
                f"backbone {name!r} cannot be differentiated twice ({str(error).splitlines()[0]}), which BiSSL needs; "
                "choose another --backbone."
            ) from None
    if features.ndim != 2:
        raise UserError(f"backbone {name!r} gives {tuple(features.shape)}, not one vector per image; choose another.")
    return features.shape[1]
