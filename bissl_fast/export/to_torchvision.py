"""``--format torchvision``: the weights by torchvision's names."""

import re
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.export.loading import TrainedModel
from bissl_fast.export.plain_networks import require_same, timm_network
from bissl_fast.export.usage import Usage
from bissl_fast.models.weights import Tensors, listed
from bissl_fast.training.files import save_weights

FILE = "model.safetensors"
OTHER_NAMES = {
    "mobilenetv2_100": "mobilenet_v2",
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16",
}
"""torchvision's by timm's; others are called the same in both."""


def require(architecture: str, channels: int) -> None:
    """Raises UserError: if torchvision has no network of this name, or it has other channels."""
    from torchvision import models

    name = OTHER_NAMES.get(architecture, architecture)
    if name not in models.list_models(models):
        raise UserError(f"torchvision has no {name}: timm, hf and onnx take other networks.")
    if channels != 3:
        raise UserError(f"torchvision's networks take RGB, and this one has {channels} channels: export it otherwise.")


def write(model: TrainedModel, folder: Path) -> Usage:
    """Write `model.safetensors`.

    Raises:
        UserError: if torchvision has no such network, or one with other tensors or outputs.
    """
    require(model.architecture, len(model.view.mean))
    name, classes = OTHER_NAMES.get(model.architecture, model.architecture), len(model.classes)
    options = {"image_size": model.view.size} if name.startswith("vit_") else {}
    network, last = torchvision_network(name, classes, options)
    tensors = renamed(timm_network(model).state_dict(), network.state_dict(), name)
    network.load_state_dict(tensors)
    require_same(network.eval(), model, "torchvision")
    save_weights(folder / FILE, tensors)
    given = ", ".join(
        f"{key}={value}" for key, value in (options | ({"num_classes": classes} if classes else {})).items()
    )
    without = "" if classes else f"{subscripted(f'model.{last}')} = torch.nn.Identity()\n"
    return Usage(
        "torchvision",
        "import torch\nimport torchvision\nfrom safetensors.torch import load_file\n\n"
        f"model = torchvision.models.{name}({given})\n{without}"
        f'model.load_state_dict(load_file("{FILE}"), strict=True)\n'
        "model.eval()\n"
        "outputs = model(images)\n",
    )


def torchvision_network(name: str, classes: int, options: dict[str, int]) -> tuple[nn.Module, str]:
    """torchvision's network, and its classifier's name; for no classes it gives features."""
    from torchvision import models

    network: nn.Module = models.get_model(name, weights=None, num_classes=classes or 1, **options)
    last = [key for key, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    if not classes:
        parent, _, child = last.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    return network, last


def renamed(ours: Tensors, theirs: Tensors, name: str) -> Tensors:
    """timm's tensors by the names, and in the shapes, that torchvision has for them.

    What is called the same and has as many values is the same tensor. The others are taken shape by shape, axes of
    one value aside, in the order of the layers, which is a guess: :func:`require_same` tells whether it is right.

    Args:
        ours: timm's.
        theirs: torchvision's, for names and shapes alone.
        name: of the network, for the message.

    Raises:
        UserError: if one of either is left over.
    """

    def shape(tensor: torch.Tensor) -> tuple[int, ...]:
        return tuple(side for side in tensor.shape if side != 1)

    names = {key: key for key, value in ours.items() if key in theirs and shape(theirs[key]) == shape(value)}
    places = defaultdict[tuple[int, ...], list[str]](list)
    for key, value in theirs.items():
        if key not in names:
            places[shape(value)].append(key)
    for key, value in ours.items():
        if key not in names and (free := places[shape(value)]):
            names[key] = free.pop(0)
    left = [*(key for key in ours if key not in names), *(key for free in places.values() for key in free)]
    if left:
        raise UserError(f"torchvision's {name} is built otherwise than timm's; left over are {listed(left)}.")
    return {theirs_name: ours[key].reshape(theirs[theirs_name].shape) for key, theirs_name in names.items()}


def subscripted(path: str) -> str:
    """A module's path as Python reaches it.

    Example:
        >>> subscripted("model.classifier.2")
        'model.classifier[2]'
    """
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path)
