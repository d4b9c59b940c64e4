"""Convolutions of a network that give small maps, in low precision by matrix products."""

import torch
from torch import Tensor, nn

from bissl_fast.ops.convolution import serves, small_map_convolution


class SmallMapConv2d(nn.Conv2d):
    """``nn.Conv2d``; where :func:`bissl_fast.ops.convolution.serves` says so, by one matrix product."""

    def forward(self, input: Tensor) -> Tensor:
        usual = self.bias is None and self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if usual and isinstance(self.padding, tuple) and input.device.type == "cpu":
            input = as_autocast(input)
            if serves(input, self.weight, self.stride, self.padding):
                return small_map_convolution(input, as_autocast(self.weight), self.stride, self.padding)
        return super().forward(input)


def as_autocast(tensor: Tensor) -> Tensor:
    """The tensor as a convolution on the CPU takes it."""
    return tensor.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else tensor


def quick_on_small_maps(network: nn.Module) -> nn.Module:
    """Let every plain ``nn.Conv2d`` be a :class:`SmallMapConv2d`, in place: same names, parameters and meaning.

    Args:
        network: any module.

    Returns:
        ``network`` itself.

    Example:
        >>> quick_on_small_maps(nn.Sequential(nn.Conv2d(3, 4, 3)))
        Sequential(
          (0): SmallMapConv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
        )
    """
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = SmallMapConv2d
    return network
