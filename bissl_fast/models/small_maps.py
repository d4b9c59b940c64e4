"""Convolutions of a network on small maps: no taps that only ever meet padding, and products in low precision."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bissl_fast.models.plain_layers import is_plain
from bissl_fast.ops.convolution import serves, small_map_convolution


class SmallMapConv2d(nn.Conv2d):
    """``nn.Conv2d``; of filters that reach beyond a small image, only the taps that some pixel meets are computed.

    The last stage of a ResNet sees 32-pixel images as single pixels, where eight of nine taps of a filter are
    multiplied by padding. Where :func:`bissl_fast.ops.convolution.serves` says so, the rest is one matrix product.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv2d``; the taps left out have a gradient of zero."""
        if input.dim() != 4 or isinstance(self.padding, str) or self.dilation != (1, 1):
            return super().forward(input)
        weight, padding = self.met(input)
        if self.bias is None and self.groups == 1 and input.device.type == "cpu":
            dtype = dtype_of_convolution(input)
            if serves(input, weight, self.stride, padding, dtype):
                return small_map_convolution(input.to(dtype), weight.to(dtype), self.stride, padding)
        if weight is self.weight:
            return super().forward(input)
        return F.conv2d(input, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def met(self, input: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The filters less the taps that no pixel of ``input`` meets, and the padding that they need."""
        assert not isinstance(self.padding, str)
        axes = zip(input.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        rows, columns = (met_taps(*axis) for axis in axes)
        if (rows, columns) == tuple(slice(0, taps) for taps in self.kernel_size):
            return self.weight, self.padding
        # Cut with channels last, as filters usually lie here, so that the gradient does not lie otherwise than they do.
        weight = self.weight.permute(0, 2, 3, 1)[:, rows, columns].permute(0, 3, 1, 2)
        return weight, (self.padding[0] - rows.start, self.padding[1] - columns.start)


def met_taps(side: int, kernel: int, stride: int, padding: int) -> slice:
    """The taps of a filter that meet a pixel, along one axis; all of them where padding could not make up for others.

    Args:
        side: pixels of the image.
        kernel: taps of the filter.
        stride: of its places.
        padding: zeros at either end.

    Example:
        >>> met_taps(side=1, kernel=3, stride=1, padding=1)
        slice(1, 2, None)
    """
    places = (side + 2 * padding - kernel) // stride + 1
    first, end = max(0, padding - (places - 1) * stride), min(kernel, side + padding)
    kept = (side + 2 * (padding - first) - (end - first)) // stride + 1
    return slice(first, end) if places > 0 and kept == places else slice(0, kernel)


def dtype_of_convolution(input: Tensor) -> torch.dtype:
    """What a convolution on the CPU is taken in: autocast's dtype, which leaves float64 alone, or the image's own."""
    cast = torch.is_autocast_enabled("cpu") and input.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if cast else input.dtype


def quick_on_small_maps(network: nn.Module) -> nn.Module:
    """Let every plain ``nn.Conv2d`` that pads with zeros be a :class:`SmallMapConv2d`, in place.

    Numbers are the same up to rounding; names, parameters and their gradients' shapes are the same.

    Args:
        network: any module.

    Returns:
        ``network`` itself.

    Example:
        >>> quick_on_small_maps(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)))
        Sequential(
          (0): SmallMapConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
        )
    """
    for module in network.modules():
        if is_plain(module, nn.Conv2d) and module.padding_mode == "zeros":
            module.__class__ = SmallMapConv2d
    return network
