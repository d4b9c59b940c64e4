"""What a traced graph does for nothing, taken out of it: absent tangents, copies of what is there, unread gradients.

PyTorch writes a derivative down layer by layer. Where a tensor has no tangent it writes a tangent of zeros, and the
layers after it multiply by them; where only one gradient of a convolution is read, it makes all.
"""

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

KEEPS_ZERO = frozenset(
    {
        aten._to_copy.default,
        aten.clone.default,
        aten.expand.default,
        aten.neg.default,
        aten.permute.default,
        aten.squeeze.dim,
        aten.t.default,
        aten.transpose.int,
        aten.unsqueeze.default,
        aten.view.default,
    }
)
"""Of zeros, zeros."""
PRODUCTS = frozenset({aten.mm.default, aten.bmm.default, aten.mul.Tensor})
"""Zero where one of the two is; so is a convolution without a bias."""
FACTORS = {0: (0, 2), 1: (0, 1), 2: (0,)}
"""Of the gradients of a convolution's input, weight and bias: which arguments of its backward pass they multiply."""


def simplify(graph: fx.Graph) -> None:
    """Take out what changes no value. The graph is functional, so a tensor may stand for a copy of it."""
    gather_channels_last(graph)
    for node in list(graph.nodes):
        if (same := stands_for(node)) is not None:
            node.replace_all_uses_with(same)
    merge_casts(graph)
    lay_out_casts(graph)
    skip_absent(graph)
    graph.eliminate_dead_code()
    narrow_backward(graph)


def stands_for(node: fx.Node) -> Any:
    """An argument that has the values of a node in the same dtype and layout, if there is one."""
    if node.target in (aten.alias.default, aten.detach.default):
        return node.args[0]
    source: Any = None
    if node.target is aten._to_copy.default:
        source = node.args[0]
        if source.target is aten._to_copy.default and is_exact(source):  # bfloat16 -> float32 -> bfloat16
            source = source.args[0]
    elif node.target is aten.copy.default:
        source = node.args[1]
    return source if source is not None and is_like(source, node) else None


def is_exact(cast: fx.Node) -> bool:
    """Whether a cast keeps every value."""
    source: Any = cast.args[0]
    before, after = source.meta["val"].dtype, cast.meta["val"].dtype
    return bool(before.is_floating_point) and torch.promote_types(before, after) == after


def is_like(first: fx.Node, second: fx.Node) -> bool:
    """Whether two nodes have one shape, dtype, device and layout."""
    return is_alike(first.meta["val"], second.meta["val"])


def is_alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same of tensors."""
    return (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride())


def merge_casts(graph: fx.Graph) -> None:
    """Let a tensor that several read in one other dtype be cast once."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is aten._to_copy.default:
            first = seen.setdefault((node.args, tuple(node.kwargs.items())), node)
            if first is not node:
                node.replace_all_uses_with(first)


def lay_out_casts(graph: fx.Graph) -> None:
    """Bring a tangent that is cast to the layout which the trace has seen, once for all of its readers.

    It is a piece of a vector, plain, while the trace has seen one laid out like its parameter.
    """
    for node in list(graph.nodes):
        if node.target is aten._to_copy.default and node.args[0].op == "placeholder" and is_channels_last(node):
            with graph.inserting_after(node):
                laid = graph.call_function(torch.Tensor.contiguous, (node,), {"memory_format": torch.channels_last})
            laid.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(laid, delete_user_cb=lambda user, laid=laid: user is not laid)


def skip_absent(graph: fx.Graph) -> None:
    """Let nobody add what an absent tangent makes: zeros, whatever it is multiplied by."""
    absent: set[Any] = set()
    for node in list(graph.nodes):
        if is_absent(node, absent):
            absent.add(node)
        elif node.target is aten.add.Tensor and not node.kwargs:
            first, second = node.args
            rest = first if second in absent else second if first in absent else None
            if isinstance(rest, fx.Node) and is_like(rest, node):
                node.replace_all_uses_with(rest)


def is_absent(node: fx.Node, absent: set[Any]) -> bool:
    """Whether a node's values are zeros because a tangent is absent, given which are before it."""
    args: Any = node.args
    if node.target is aten.expand.default and args[0].target is aten.zeros.default and not args[0].args[0]:
        return True  # as PyTorch writes the tangent of a tensor without one: a scalar, expanded
    if node.target in KEEPS_ZERO:
        return args[0] in absent
    if node.target in PRODUCTS:
        return args[0] in absent or args[1] in absent
    if node.target is aten.convolution.default:
        return args[2] is None and (args[0] in absent or args[1] in absent)
    if node.target is operator.getitem and args[0].target is aten.convolution_backward.default:
        return any(args[0].args[factor] in absent for factor in FACTORS[args[1]])
    return False


def narrow_backward(graph: fx.Graph) -> None:
    """Ask a convolution's backward pass for the gradients that are read: the others are convolutions, too."""
    for node in graph.nodes:
        if node.target is aten.convolution_backward.default:
            read = {user.args[1] for user in node.users}
            mask: Any = node.args[-1]
            narrowed = [wanted and position in read for position, wanted in enumerate(mask)]
            node.args = (*node.args[:-1], narrowed)
            pieces = zip(node.meta["val"], narrowed, strict=True)
            node.meta["val"] = tuple(value if wanted else None for value, wanted in pieces)


def gather_channels_last(graph: fx.Graph) -> None:
    """Let tangents of max-pooling be gathered in the layout of their tensors.

    PyTorch gathers along the pixels of ``(N, C, H W)``, which of channels-last tensors are no neighbours, and copies
    what it has found to their layout.
    """
    for node in list(graph.nodes):
        if node.target is not aten.gather.default or len(node.args) != 3:
            continue
        pixels: Any = [node.args[0], node.args[2]]
        images = [view.args[0] for view in pixels if view.target is aten.view.default]
        dims = node.meta["val"].dim()
        if node.args[1] not in (-1, 2) or dims != 3 or len(images) != 2 or not all(map(is_channels_last, images)):
            continue
        for user in list(node.users):
            if user.target is aten.view.default and user.meta["val"].shape == images[1].meta["val"].shape:
                with graph.inserting_before(user):
                    found = graph.call_function(gather_pixels, tuple(images))
                found.meta["val"] = gather_pixels(*(image.meta["val"] for image in images))
                user.replace_all_uses_with(found)
    graph.eliminate_dead_code()


def is_channels_last(node: fx.Node) -> bool:
    """Whether a node's value is ``(N, C, H, W)`` with its channels last."""
    value = node.meta["val"]
    return value.dim() == 4 and bool(value.is_contiguous(memory_format=torch.channels_last))


def gather_pixels(images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Of channels-last images ``(N, C, H, W)`` the pixels ``indices`` ``(N, C, h, w)`` of ``H W``, channels-last."""
    pixels, wanted = (tensor.permute(0, 2, 3, 1).flatten(1, 2) for tensor in (images, indices))  # (N, H W, C)
    n, c, h, w = indices.shape
    return pixels.gather(1, wanted).view(n, h, w, c).permute(0, 3, 1, 2)
