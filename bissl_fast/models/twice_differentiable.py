"""Layers that PyTorch or timm write for one backward pass, made fit for a second."""

import torch.nn.functional as F
from torch import Tensor, nn


class HardSigmoid(nn.Module):
    """``relu6(x + 3) / 6``: the numbers of ``nn.Hardsigmoid``, whose gradient PyTorch cannot differentiate."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


def differentiable_twice(network: nn.Module) -> nn.Module:
    """Let activations leave their inputs as they are, and give hard sigmoids a second derivative; in place.

    What is overwritten cannot be read again: a second pass through the graph would refuse, or under saved-tensor hooks
    read other values. Numbers, parameters and names stay the same, and so does the memory of training where the
    activation keeps its output alone.

    Args:
        network: any module.

    Returns:
        ``network`` itself.

    Example:
        >>> differentiable_twice(nn.Sequential(nn.ReLU(inplace=True), nn.Hardsigmoid()))
        Sequential(
          (0): ReLU()
          (1): HardSigmoid()
        )
    """
    for module in network.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False  # type: ignore[assignment]
        if type(module) is nn.Hardsigmoid:
            module.__class__ = HardSigmoid  # type: ignore[assignment]
    return network
