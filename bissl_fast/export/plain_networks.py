"""A run's network made of plain layers, as other libraries know it, and the proof that it is the same."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.export.loading import TrainedModel
from bissl_fast.models import Network, build_classifier
from bissl_fast.models.backbone import options_for
from bissl_fast.models.weights import Tensors

TOLERANCE = 1e-4  # of the largest output, in float32


def timm_options(model: TrainedModel) -> dict[str, Any]:
    """What ``timm.create_model`` has to be told beside the name and the number of classes."""
    return options_for(model.architecture, model.view.size, len(model.view.mean))


def plain_backbone(model: TrainedModel) -> nn.Module:
    """timm's own network, or conv4, with a model's backbone in it, in eval mode."""
    import timm

    network: nn.Module = timm.create_model(model.architecture, num_classes=0, **timm_options(model))
    network.load_state_dict(backbone_tensors(model))
    return network.eval()


def plain_network(model: TrainedModel) -> nn.Module:
    """The same with the classifier behind it, if there is one."""
    backbone, head = plain_backbone(model), head_of(model)
    return backbone if head is None else Network(backbone, head).eval()


def timm_network(model: TrainedModel) -> nn.Module:
    """timm's network with as many classes as the model has, none of a backbone; in eval mode.

    Raises:
        UserError: if timm has no such network, or its classifier is another than a linear layer on the features.
    """
    import timm

    require_timm(model.architecture)
    head = head_of(model)
    network: nn.Module = timm.create_model(model.architecture, num_classes=len(model.classes), **timm_options(model))
    tensors = backbone_tensors(model)
    if head is not None:
        name = classifier_of(network)
        tensors |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
    wanted = network.state_dict()
    if {key: value.shape for key, value in wanted.items()} != {key: value.shape for key, value in tensors.items()}:
        raise UserError(
            f"timm's {model.architecture} has more between features and classes than a linear layer: export --stage "
            "backbone, or --format onnx."
        )
    network.load_state_dict(tensors)
    require_same(network.eval(), model, "timm")
    return network


def require_timm(architecture: str) -> None:
    """Raises UserError: if timm has no such network."""
    if architecture == "conv4":
        raise UserError("conv4 is no network of timm's: export it as onnx, or use bissl_fast.load.")


def classifier_of(network: nn.Module) -> str:
    """The name of timm's classifier, a linear layer.

    Raises:
        UserError: if it is another, or none.
    """
    found: object = network.get_classifier()  # type: ignore[operator]
    name: str | None = next((name for name, layer in network.named_modules() if layer is found), None)
    if name is None or not isinstance(found, nn.Linear):
        raise UserError(
            f"timm's {type(network).__name__} has no linear layer as classifier: export --stage backbone, or --format "
            "onnx."
        )
    return name


def require_same(
    network: Callable[[torch.Tensor], torch.Tensor], model: TrainedModel, library: str, count: int = 2
) -> None:
    """Raises UserError: if a network, in eval mode, does not give a model's outputs for some random images."""
    images = random_images(model, count)
    with torch.no_grad():
        found, expected = network(images), model(images.to(next(model.parameters()).device)).cpu()
    apart = (found - expected).abs().max() if found.shape == expected.shape else torch.tensor(torch.inf)
    largest = expected.abs().max()
    if not apart <= TOLERANCE * largest:  # nor if it is not a number
        raise UserError(
            f"{model.architecture} gives other outputs in {library} (by {apart:.2g} of {largest:.2g}), so it is not "
            "exported: choose another --format."
        )


def random_images(model: TrainedModel, count: int = 2) -> torch.Tensor:
    """Images of noise, (count, C, S, S) float32, always the same."""
    size, draw = model.view.size, torch.Generator().manual_seed(0)
    return torch.randn(count, len(model.view.mean), size, size, generator=draw)


def backbone_tensors(model: TrainedModel) -> Tensors:
    """By the backbone's own names, contiguous, on the CPU and not shared with the model."""
    backbone = model.network.backbone if isinstance(model.network, Network) else model.network
    return {name: value.detach().cpu().clone().contiguous() for name, value in backbone.state_dict().items()}


def head_of(model: TrainedModel) -> nn.Linear | None:
    """A copy of the classifier, on the CPU."""
    if not isinstance(model.network, Network):
        return None
    weights = model.network.head.state_dict()
    classes, features = weights["weight"].shape
    head = build_classifier(features, classes, seed=0)
    head.load_state_dict(weights)
    return head
