"""Cheap twins of fused ops: how a value that a fused kernel made beside others is made again on its own."""

import operator
from typing import Any

import torch
from torch import fx

PREFIXES = ("", "triton_")


def use_cheap_twins(graph: fx.Graph) -> None:
    """Let the readers of batch norm's large outputs read an elementwise op instead.

    ``batch_norm_fwd`` sums and normalises in one kernel; given its statistics, ``batch_norm_apply`` gives the same bits
    without the sums. The same holds for ``batch_norm_bwd`` and ``batch_norm_bwd_apply``. Statistics are small, so a cut
    that keeps them may make the output again. A twin remembers what it is the twin of (``meta["twin_of"]``): the half
    that runs the fused kernel reads that instead.
    """
    for prefix in PREFIXES:
        for node in list(graph.nodes):
            if is_op(node, f"{prefix}batch_norm_fwd"):
                twin_forward(graph, node, prefix)
            elif is_op(node, f"{prefix}batch_norm_bwd"):
                twin_backward(graph, node, prefix)


def is_op(node: fx.Node, name: str) -> bool:
    """Whether a node calls ``bissl_fast::name``."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name == f"bissl_fast::{name}"


def outputs(node: fx.Node) -> dict[int, fx.Node]:
    """The ``getitem`` readers of a node, by position; missing ones are made."""
    found: dict[Any, fx.Node] = {user.args[1]: user for user in node.users if user.target is operator.getitem}
    values = node.meta["val"]
    for position in range(len(values)):
        if position not in found:
            with node.graph.inserting_after(node):
                found[position] = node.graph.call_function(operator.getitem, (node, position))
                found[position].meta["val"] = values[position]
    return found


def twin_forward(graph: fx.Graph, node: fx.Node, prefix: str) -> None:
    x, weight, bias, residual, groups, relu, *_ = node.args
    out, mean, rstd = (outputs(node)[position] for position in range(3))
    with graph.inserting_after(last(graph, (out, mean, rstd))):
        op = getattr(torch.ops.bissl_fast, f"{prefix}batch_norm_apply").default
        twin = graph.call_function(op, (x, weight, bias, residual, mean, rstd, groups, relu))
    twin.meta["val"] = out.meta["val"]
    redirect(out, twin)


def twin_backward(graph: fx.Graph, node: fx.Node, prefix: str) -> None:
    *tensors, groups, relu, with_residual = node.args
    dx, dresidual, sums = (outputs(node)[position] for position in range(3))
    with graph.inserting_after(last(graph, (dx, dresidual, sums))):
        op = getattr(torch.ops.bissl_fast, f"{prefix}batch_norm_bwd_apply").default
        twin = graph.call_function(op, (*tensors, sums, groups, relu, with_residual))
    twin.meta["val"] = (dx.meta["val"], dresidual.meta["val"])
    pieces = outputs(twin)
    redirect(dx, pieces[0])
    redirect(dresidual, pieces[1])


def last(graph: fx.Graph, nodes: tuple[fx.Node, ...]) -> fx.Node:
    """The one of ``nodes`` that stands last in the graph."""
    found: fx.Node = [node for node in graph.nodes if node in nodes][-1]
    return found


def redirect(old: fx.Node, new: fx.Node) -> None:
    """Let every reader of ``old`` read ``new``."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    new.meta["twin_of"] = old
