"""Convolutions of few pixels by many filters as matrix products, and two weight gradients as one.

A convolution's kernels bring its weights into blocks first, and a weight gradient out of blocks at last. Where an image
has few pixels left (the last stage of a ResNet: 3 × 3, with 512 × 512 filters) that takes as long as the arithmetic. As
a matrix product of image columns, ``(N H W, k k C)``, weights are read as they lie. Along a tangent a weight gradient
is a sum of two, ``ẋ`` with ``g`` and ``x`` with ``ġ``: one sum over twice the batch, written once.
"""

import operator
from typing import Any, NamedTuple

import torch
from torch import fx

from bissl_fast.ops.convolution.columns import (
    as_images,
    as_rows_transposed,
    columns,
    filters_in_columns,
    filters_reversed,
)

aten = torch.ops.aten

INNER_PER_ROW = 4
"""From so many filter entries per pixel of the batch on a convolution is faster as a matrix product, in bfloat16."""
ROWS_PER_INNER = 2
"""Up to so many pixels of the batch per filter entry its weight gradient is, and up to one two are faster as one."""


class Convolution(NamedTuple):
    """What a convolution reads, and how: square or not, never dilated, grouped or transposed.

    Attributes:
        image, weight: nodes of ``(N, C, H, W)`` and ``(K, C, k, k)``.
        rows: N times the output's pixels.
        inner: C k k.
        stride, padding: of each axis.
    """

    image: fx.Node
    weight: fx.Node
    rows: int
    inner: int
    stride: tuple[int, int]
    padding: tuple[int, int]


def use_matrix_products(graph: fx.Graph) -> None:
    """Rewrite the convolutions of a graph that are faster otherwise on a CPU; nothing on other devices."""
    for node in list(graph.nodes):
        if node.target is aten.add.Tensor and not node.kwargs:
            merge_weight_gradients(graph, node)
    for node in list(graph.nodes):
        if node.target is aten.convolution.default:
            rewrite_forward(graph, node)
        elif node.target is aten.convolution_backward.default:
            rewrite_backward(graph, node)
    graph.eliminate_dead_code()


def described(node: fx.Node) -> Convolution | None:
    """The convolution that a node, or a backward pass, is of; None for kinds that stay as they are."""
    args: Any = node.args
    backward = node.target is aten.convolution_backward.default
    image, weight = args[1:3] if backward else args[:2]
    *_, stride, padding, dilation, transposed, _, groups = args[:-1] if backward else args
    output = args[0].meta["val"] if backward else node.meta["val"]
    x, w = image.meta["val"], weight.meta["val"]
    usual = x.device.type == "cpu" and x.dim() == 4 and not transposed and groups == 1 and set(dilation) == {1}
    if not usual or w.shape[2:].numel() == 1 or not all(map(is_channels_last, (x, w, output))):
        return None
    rows = output.shape[0] * output.shape[2:].numel()
    return Convolution(image, weight, rows, w[0].numel(), tuple(stride), tuple(padding))


def is_channels_last(value: torch.Tensor) -> bool:
    return value.is_contiguous(memory_format=torch.channels_last)


def in_bfloat16(node: fx.Node) -> bool:
    """Whether a node is in bfloat16 and this CPU has fast matrix products in it."""
    return bool(node.meta["val"].dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def call(graph: fx.Graph, function: Any, *args: Any) -> fx.Node:
    """A node that calls a function, with its shape."""
    node = graph.call_function(function, args)
    node.meta["val"] = function(*fx.map_arg(args, lambda n: n.meta["val"]))
    return node


def rewrite_forward(graph: fx.Graph, node: fx.Node) -> None:
    found = described(node)
    if found is None or node.args[2] is not None or not in_bfloat16(node) or found.inner < INNER_PER_ROW * found.rows:
        return
    with graph.inserting_before(node):
        patches = call(graph, columns, found.image, *kernel_of(found), found.stride, found.padding)
        product = call(graph, torch.mm, patches, call(graph, filters_in_columns, found.weight))
        node.replace_all_uses_with(call(graph, as_images, product, tuple(node.meta["val"].shape)))


def rewrite_backward(graph: fx.Graph, node: fx.Node) -> None:
    """One gradient at a time, of image or weight; both at once stay as they are."""
    found = described(node)
    mask: Any = node.args[-1]
    gradient: Any = node.args[0]
    if found is None or sum(mask) != 1 or mask[2] or not in_bfloat16(gradient):
        return
    piece = next(user for user in node.users if user.target is operator.getitem)
    with graph.inserting_before(node):
        if mask[1] and found.rows <= ROWS_PER_INNER * found.inner:
            piece.replace_all_uses_with(weight_gradient(graph, found.weight, [(found, gradient)]))
        elif mask[0] and is_reversible(found) and inner_of_gradient(found) >= INNER_PER_ROW * found.rows:
            padding = tuple(k - 1 - p for k, p in zip(kernel_of(found), found.padding, strict=True))
            patches = call(graph, columns, gradient, *kernel_of(found), found.stride, padding)
            product = call(graph, torch.mm, patches, call(graph, filters_reversed, found.weight))
            piece.replace_all_uses_with(call(graph, as_images, product, tuple(found.image.meta["val"].shape)))


def merge_weight_gradients(graph: fx.Graph, total: fx.Node) -> None:
    """Let a sum of two gradients of one shape of weights be one gradient over both batches."""
    parts: Any = total.args
    passes: list[Any] = []
    for part in parts:
        if not isinstance(part, fx.Node) or part.target is not operator.getitem or len(part.users) != 1:
            return
        source: Any = part.args[0]
        if source.target is not aten.convolution_backward.default or source.args[-1] != [False, True, False]:
            return
        passes.append(source)
    pairs = [(described(node), node.args[0]) for node in passes]
    first, second = (found for found, _ in pairs)
    if first is None or second is None or first[2:] != second[2:] or first.rows > ROWS_PER_INNER * first.inner:
        return
    if first.weight.meta["val"].shape != second.weight.meta["val"].shape:
        return
    with graph.inserting_before(total):
        if in_bfloat16(total):
            merged = weight_gradient(graph, first.weight, pairs)
        elif first.rows <= first.inner:
            merged = gradient_of_both(graph, passes)
        else:
            return
    total.replace_all_uses_with(merged)


def weight_gradient(graph: fx.Graph, weight: fx.Node, pairs: Any) -> fx.Node:
    """Of pairs of a convolution and the gradient behind it: the sum of their weight gradients, a matrix product."""
    like = pairs[0][0]
    image, gradient = both(graph, [found.image for found, _ in pairs]), both(graph, [behind for _, behind in pairs])
    patches = call(graph, columns, image, *kernel_of(like), like.stride, like.padding)
    product = call(graph, torch.mm, call(graph, as_rows_transposed, gradient), patches)
    return call(graph, as_images, product, tuple(weight.meta["val"].shape))


def both(graph: fx.Graph, batches: list[fx.Node]) -> fx.Node:
    """One batch of all."""
    return call(graph, torch.cat, batches) if len(batches) > 1 else batches[0]


def gradient_of_both(graph: fx.Graph, passes: list[fx.Node]) -> fx.Node:
    """The weight gradient of two backward passes, over one batch of both."""
    gradients, images = zip(*(node.args[:2] for node in passes), strict=True)
    joined = [both(graph, list(batches)) for batches in (gradients, images)]
    merged = graph.call_function(aten.convolution_backward.default, (*joined, *passes[0].args[2:]))
    merged.meta["val"] = passes[0].meta["val"]
    return call(graph, operator.getitem, merged, 1)


def is_reversible(found: Convolution) -> bool:
    """Whether the gradient of the image is a convolution of the gradient behind it with the filters turned around."""
    return found.stride == (1, 1) and all(p < k for k, p in zip(kernel_of(found), found.padding, strict=True))


def inner_of_gradient(found: Convolution) -> int:
    weight: torch.Tensor = found.weight.meta["val"]
    return weight[:, 0].numel()


def kernel_of(found: Convolution) -> tuple[int, int]:
    height, width = found.weight.meta["val"].shape[2:]
    return int(height), int(width)
