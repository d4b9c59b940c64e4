"""Writes in place of a traced graph into tensors that it has made itself, put as ops that make another tensor.

Autograd adds gradients up in place, and batch norms move their statistics. ``torch.func.functionalize`` would trace the
whole graph once more for it, which is half of the time that an operator takes to be built; it is left to what is not as
plain as this: writes through a view, or into a tensor that another one shares memory with.
"""

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from bissl_fast.bilevel.tracing.simplify import is_alike


def writes(node: fx.Node) -> bool:
    """Whether a node writes into one of its arguments: such nodes can neither be left out nor run twice."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def rewrite_writes(graph: fx.Graph) -> None:
    """Take out writes that nobody reads, and let the other plain ones make a tensor for their later readers."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in reversed(graph.nodes):
        if not writes(node) or node.users:
            continue
        written = written_by(node)
        readers = {reader for tensor in written for reader in tensor.users}
        if all(is_own(tensor, node) for tensor in written) and all(order[reader] <= order[node] for reader in readers):
            graph.erase_node(node)
    for node in list(graph.nodes):
        if writes(node) and (twin := functional_twin(node)) is not None:
            node.target = twin
            node.args[0].replace_all_uses_with(node, lambda reader, node=node: order[reader] > order[node])


def written_by(node: fx.Node) -> list[Any]:
    """The arguments that a node writes into."""
    target: Any = node.target
    pairs = zip(target._schema.arguments, node.args, strict=False)
    return [leaf for argument, value in pairs if argument.is_write for leaf in tree_leaves(value)]


def is_own(tensor: fx.Node, writer: fx.Node) -> bool:
    """Whether a node of the graph has made a tensor, and no other name than its own and the writer's leads to it."""
    readers = (reader for reader in tensor.users if reader is not writer and reader.op != "output")
    return makes_another(tensor) and all(map(makes_another, readers))


def makes_another(node: fx.Node) -> bool:
    """Whether what a node returns shares no memory with what it is given."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target is torch.ops.aten._unsafe_view.default:
        return False
    return all(value.alias_info is None for value in node.target._schema.returns)


def functional_twin(node: fx.Node) -> Any:
    """The op that returns what a node leaves in its first argument, in the same dtype and layout, if there is one."""
    written = written_by(node)
    if written != [node.args[0]] or not is_own(written[0], node):
        return None
    twin = with_the_same_arguments(node.target)
    if twin is None:
        return None
    values = [argument.meta.get("val") for argument in node.all_input_nodes]
    modes = {value.fake_mode for value in values if isinstance(value, FakeTensor)}
    if len(modes) != 1 or not all(isinstance(value, FakeTensor) for value in values):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
    with modes.pop():
        made = twin(*args, **kwargs)
    return twin if is_alike(made, written[0].meta["val"]) else None


def with_the_same_arguments(op: Any) -> Any:
    """The op without a trailing ``_`` that takes what one takes: ``pow_.Scalar`` is ``pow.Tensor_Scalar``."""
    namespace, _, name = op._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    if packet is None:
        return None
    found = (getattr(packet, overload) for overload in packet.overloads())
    return next((twin for twin in found if not twin._schema.is_mutable and taken(twin) == taken(op)), None)


def taken(op: Any) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in op._schema.arguments]
