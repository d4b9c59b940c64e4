"""Backbones by their timm name, or that of the one network which is not timm's: ``conv4``."""

from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.models.fused import fuse_batch_norm
from bissl_fast.models.small_maps import quick_on_small_maps
from bissl_fast.models.twice_differentiable import differentiable_twice

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def build_backbone(name: str, seed: int, size: int | None = None, channels: int = 3) -> nn.Module:
    """A randomly initialised timm network without a classifier: ``(N, C, H, W)`` to pooled features ``(N, F)``.

    ResNets keep timm's zero-initialised last batch-norm weight in every residual block. Batch norms are fused
    (:func:`fuse_batch_norm`), activations can be differentiated twice (:func:`differentiable_twice`), and filters lack
    taps that meet padding alone (:func:`quick_on_small_maps`): same names, same numbers.

    Args:
        name: a timm model name such as ``"resnet18"``.
        seed: of the initialisation; torch's global generator is left as it was.
        size: side of the square images, for networks that are made for one size. Left out: timm's own.
        channels: C of the images: what the first convolution takes.

    Returns:
        The backbone. F is what :func:`probe_features` says; timm's ``num_features`` is another number for some.

    Raises:
        UserError: if timm has no such model.
    """
    require_known(name)
    options = in_channels(channels) if size is None else options_for(name, size, channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return made(name, options)


def probe_features(name: str, size: int, channels: int = 3) -> int:
    """F, the number of features that a backbone gives for an image of ``size`` pixels; computes and allocates nothing.

    Args:
        name: a timm model name.
        size: side of the square images.
        channels: of the images.

    Raises:
        UserError: if timm has no such model, or it cannot take such images or gives no vectors.
    """
    require_known(name)
    options = options_for(name, size, channels)
    try:
        shape = shape_of_features(name, options, size, channels)
    except Exception as error:  # whatever timm's layers raise: assertions, reshapes, divisions by zero
        several = "" if channels == 3 else f" in {channels} channel{'s' * (channels > 1)}"
        raise UserError(
            f"backbone {name!r} cannot take images of {size} px{several} ({reason_of(error)}); timm made it for "
            f"{made_for(name)} px: choose another --images.size or --backbone."
        ) from None
    if len(shape) != 2:
        raise UserError(f"backbone {name!r} gives {tuple(shape)}, not one vector per image; choose another --backbone.")
    return shape[1]


def require_small(name: str, size: int, small: int, channels: int = 3) -> None:
    """Raise unless a backbone that is built for images of ``size`` pixels takes smaller ones, too.

    Args:
        name: a timm model name.
        size: side of the images that it is built for.
        small: side of the others.
        channels: of both.

    Raises:
        UserError: if it does not, as vision transformers do not.
    """
    try:
        shape_of_features(name, options_for(name, size, channels), small, channels)
    except Exception as error:  # whatever timm's layers raise: assertions, reshapes
        raise UserError(
            f"backbone {name!r}, built for images of {size} px, cannot take small views of {small} px "
            f"({reason_of(error).rstrip('.')}); --pretext.local-views 0 leaves them out."
        ) from None


def place(network: AnyModule, device: torch.device | str) -> AnyModule:
    """The network on a device, its images' and filters' channels last; in place.

    Only what has four axes is laid out so: PyTorch would try three-dimensional filters, too, and fail.

    Args:
        network: any module.
        device: where its tensors go.

    Returns:
        ``network`` itself.
    """
    network.to(device)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network


def require_known(name: str) -> None:
    """Raise the sentence for a name that neither timm nor this house knows."""
    import timm

    import bissl_fast.models.conv4  # noqa: F401  makes it known

    if not timm.is_model(name):
        import difflib

        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "`timm.list_models()` names all."
        raise UserError(f"timm knows no backbone called {name!r}; {hint} Choose one with --backbone NAME.")


def made(name: str, options: dict[str, Any]) -> nn.Module:
    """timm's network with random weights, ready for products."""
    import timm

    backbone: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **options)
    return fuse_batch_norm(quick_on_small_maps(differentiable_twice(backbone)))


def shape_of_features(name: str, options: dict[str, Any], size: int, channels: int = 3) -> torch.Size:
    """Of what the network gives for two images in train mode; allocates nothing."""
    with torch.device("meta"), torch.no_grad():
        features: torch.Tensor = made(name, options)(torch.empty(2, channels, size, size))
    return features.shape


@cache
def options_for(name: str, size: int, channels: int = 3) -> dict[str, Any]:
    """What timm has to be told beside the name for images of ``size`` pixels and so many channels.

    Of the size nothing, if the network takes it as it is; else ``img_size``, if it takes them then. Which networks need
    it, and which ignore it, timm does not say.
    """
    for options in (in_channels(channels), {"img_size": size, **in_channels(channels)}):
        try:
            shape_of_features(name, options, size, channels)
        except Exception:  # no such option, or images that it cannot take
            continue
        return options
    return in_channels(channels)


def in_channels(channels: int) -> dict[str, int]:
    """What timm has to be told of the channels: of RGB nothing."""
    return {} if channels == 3 else {"in_chans": channels}


def made_for(name: str) -> int:
    """Side of the images that timm's own weights of a network are for."""
    import timm

    with torch.device("meta"):
        config: Any = timm.create_model(name, pretrained=False).pretrained_cfg
    return int(config["input_size"][-1])


def reason_of(error: Exception) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [f"{type(error).__name__} without a word"])[0]
