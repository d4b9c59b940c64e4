"""Convolutions that give a few pixels, by one matrix product in each pass: oneDNN's go row by row of the map.

In bfloat16 on a CPU without AMX oneDNN takes twice as long as the product for a gradient of the weights of a ResNet's
last stage (3 x 3 pixels), half as long again for the other passes; from 5 x 5 pixels on it is no slower
(`python -m benchmarks.small_maps`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bissl_fast.ops.convolution.columns import (
    as_images,
    as_rows_transposed,
    columns,
    filters_in_columns,
    filters_reversed,
)
from bissl_fast.ops.native import tangents_count

Pair = tuple[int, ...]  # of both axes
MOST_PIXELS = 16  # of the result


def serves(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dtype: torch.dtype | None = None) -> bool:
    """Whether the product is faster, and its gradient the only derivative that is being asked for.

    Under transforms of ``torch.func``, forward mode and compilers PyTorch's own convolution is better known.

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(O, C, K, L)`` in any dtype: no groups.
        stride: of both axes.
        padding: with zeros, of both axes.
        dtype: in which the convolution will be taken, where x is still in another one.
    """
    if torch.compiler.is_compiling():
        return False
    if x.device.type != "cpu" or (dtype or x.dtype) != torch.bfloat16:
        return False
    if not x.is_contiguous(memory_format=torch.channels_last):
        return False
    height, width = result_size(x, weight, stride, padding)
    if height * width > MOST_PIXELS:
        return False
    return torch._C._functorch.peek_interpreter_stack() is None and not tangents_count()


def small_map_convolution(x: Tensor, weight: Tensor, stride: Pair = (1, 1), padding: Pair = (0, 0)) -> Tensor:
    """``torch.nn.functional.conv2d(x, weight, None, stride, padding)``, summed in float32 and rounded once.

    A second derivative is PyTorch's own; forward mode is refused.

    Args:
        x: ``(N, C, H, W)``, channels last.
        weight: ``(O, C, K, L)`` in the dtype of x.
        stride: of both axes.
        padding: with zeros, of both axes.

    Returns:
        ``(N, O, H', W')``, channels last.

    Raises:
        NotImplementedError: for a tangent.

    Example:
        >>> x, weight = torch.randn(8, 4, 3, 3), torch.randn(6, 4, 3, 3, requires_grad=True)
        >>> small_map_convolution(x, weight, padding=(1, 1)).shape
        torch.Size([8, 6, 3, 3])
    """
    found: Tensor = SmallMapConvolution.apply(x, weight, stride, padding)
    return found


class SmallMapConvolution(Function):
    """``(x, weight) -> x * weight``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        rows = columns(x, *kernel_of(weight), stride, padding) @ filters_in_columns(weight)
        return as_images(rows, (len(x), len(weight), *result_size(x, weight, stride, padding)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # a second derivative may be wanted
            return *by_pytorch(grad, x, weight, ctx.stride, ctx.padding, of_x, of_weight), None, None
        dx = input_gradient(grad, x, weight, ctx.stride, ctx.padding) if of_x else None
        dweight = weight_gradient(grad, x, weight, ctx.stride, ctx.padding) if of_weight else None
        return dx, dweight, None, None


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor | None:
    """A convolution of the gradient with the turned kernel, where steps are of one pixel; else PyTorch's."""
    kernel = kernel_of(weight)
    back = (kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1])
    if stride != (1, 1) or min(back) < 0:
        return by_pytorch(grad, x, weight, stride, padding, True, False)[0]
    return as_images(columns(grad, *kernel, stride, back) @ filters_reversed(weight), tuple(x.shape))


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Products of the gradient with what each of its pixels has seen, summed over all images and pixels."""
    found = as_rows_transposed(grad) @ columns(x, *kernel_of(weight), stride, padding)
    return as_images(found, tuple(weight.shape))


def kernel_of(weight: Tensor) -> tuple[int, int]:
    """Height and width of the filters."""
    return weight.shape[2], weight.shape[3]


def result_size(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Pair:
    """Height and width of the result in pixels."""
    height, width = (
        (x.shape[axis] + 2 * padding[axis - 2] - weight.shape[axis]) // stride[axis - 2] + 1 for axis in (2, 3)
    )
    return height, width


def by_pytorch(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients by PyTorch, which can differentiate them; None where one is not asked for."""
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (of_x, of_weight, False)
    )
    return dx, dweight
