"""Cut a traced product at the tangent boundary: what runs once per point, and what runs once per product.

Every node that depends on the tangent belongs to the tangent half. It reads values of the primal half, and which of
these are kept as residuals and which are computed again is a minimum cut: bytes kept are the price; convolutions,
matrix products and reductions are never computed twice, elementwise work is.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import networkx as nx
import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from bissl_fast.bilevel.tracing.matrix_products import use_matrix_products
from bissl_fast.bilevel.tracing.rematerialize import use_cheap_twins
from bissl_fast.bilevel.tracing.simplify import simplify

aten = torch.ops.aten

CHEAP = frozenset(
    {
        "alias",
        "clone",
        "detach",
        "expand",
        "full",
        "full_like",
        "max_pool2d_with_indices",
        "max_pool2d_with_indices_backward",
        "new_full",
        "new_zeros",
        "ones",
        "ones_like",
        "permute",
        "reshape",
        "select",
        "slice",
        "squeeze",
        "t",
        "transpose",
        "unsqueeze",
        "view",
        "_unsafe_view",
        "_to_copy",
        "zeros",
        "zeros_like",
        "batch_norm_apply",
        "batch_norm_bwd_apply",
        "triton_batch_norm_apply",
        "triton_batch_norm_bwd_apply",
    }
)
"""Ops that a tangent half may compute again, beside everything that PyTorch tags as pointwise."""


class Halves(NamedTuple):
    """A product in two graphs.

    Attributes:
        primal: inputs in the order of the trace, less the tangents, to the residuals.
        tangent: ``(residuals, inputs read again, tangents)``, flat, to the product.
        reread: positions, among the primal inputs, of those that the tangent half reads again.
        residual_bytes: bytes of the residuals.
    """

    primal: fx.GraphModule
    tangent: fx.GraphModule
    reread: tuple[int, ...]
    residual_bytes: int


def split(traced: fx.GraphModule, tangents: int, recompute: bool = True) -> Halves:
    """Split a traced ``(*inputs, *tangents) -> product`` whose last ``tangents`` placeholders are the tangent.

    Args:
        traced: a functional graph with static shapes.
        tangents: how many placeholders at the end belong to the tangent.
        recompute: choose residuals by a minimum cut; otherwise keep every value that crosses the boundary.
    """
    graph = traced.graph
    simplify(graph)
    use_cheap_twins(graph)  # after it: what only a twin stands for has no reader of its own
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs, tangent_inputs = placeholders[: len(placeholders) - tangents], placeholders[len(placeholders) - tangents :]
    moving = descendants(tangent_inputs)
    output = next(node for node in graph.nodes if node.op == "output")
    moving.add(output)
    boundary = {source for node in moving for source in node.all_input_nodes if source not in moving}
    boundary = {leaf for node in boundary for leaf in (node.users if is_tuple(node) else [node]) if leaf not in moving}
    kept = minimum_cut(graph, moving, boundary) if recompute else {node for node in boundary if not is_free(node)}
    residuals = [node for node in graph.nodes if node in kept and node.op != "placeholder"]
    tangent, reread = tangent_half(traced, moving, residuals, inputs, tangent_inputs)
    primal = primal_half(traced, inputs, residuals)
    for half in (primal, tangent):
        use_matrix_products(half.graph)
        half.recompile()
    positions = tuple(inputs.index(node) for node in reread)
    return Halves(primal, tangent, positions, sum(size(node) for node in residuals))


def descendants(roots: Iterable[fx.Node]) -> set[fx.Node]:
    """Every node that depends on one of ``roots``, the roots included."""
    found, stack = set(roots), list(roots)
    while stack:
        for user in stack.pop().users:
            if user not in found:
                found.add(user)
                stack.append(user)
    return found


def minimum_cut(graph: fx.Graph, moving: set[fx.Node], boundary: set[fx.Node]) -> set[fx.Node]:
    """The fewest bytes of primal values from which all of ``boundary`` follow by cheap ops and inputs alone."""
    network = nx.DiGraph()
    for node in graph.nodes:
        if node in moving:
            continue
        capacity = 0 if is_free(node) else math.inf if is_tuple(node) else size(node)
        network.add_edge((node, "in"), (node, "out"), capacity=capacity)
        if not is_free(node) and not is_cheap(node):
            network.add_edge("source", (node, "in"), capacity=math.inf)
        elif is_free(node):
            network.add_edge("source", (node, "in"), capacity=1)
        for user in node.users:
            if user not in moving:
                network.add_edge((node, "out"), (user, "in"), capacity=math.inf)
        if node in boundary:
            network.add_edge((node, "out"), "sink", capacity=math.inf)
    _, (reached, _) = nx.minimum_cut(network, "source", "sink")
    return {key[0] for key in reached if isinstance(key, tuple) and key[1] == "in" and (key[0], "out") not in reached}


def is_free(node: fx.Node) -> bool:
    """Whether a value is at hand anyway: an input, or a constant of the graph."""
    return node.op in ("placeholder", "get_attr")


def is_tuple(node: fx.Node) -> bool:
    """Whether a node has several outputs, read by ``getitem``."""
    return isinstance(node.meta.get("val"), (tuple, list))


def is_cheap(node: fx.Node) -> bool:
    """Whether a value may be computed again in every product."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return node.op == "call_function"  # getitem
    name = target._schema.name.split("::")[1]
    return name in CHEAP or torch.Tag.pointwise in target.tags


def size(node: fx.Node) -> int:
    """Bytes of a node's value."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(node.meta.get("val")) if is_tensor(leaf))


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def primal_half(traced: fx.GraphModule, inputs: list[fx.Node], residuals: list[fx.Node]) -> fx.GraphModule:
    """The part of the graph that makes the residuals."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node, copy in copies.items():
        copy.meta = node.meta
    wanted = [original(node) for node in residuals]
    copy_needed(traced.graph, graph, copies, wanted, original)
    graph.output(tuple(copies[node] for node in wanted))
    return fx.GraphModule(traced, graph)


def original(node: fx.Node) -> fx.Node:
    """What a twin is the twin of; any other node itself."""
    twin_of: fx.Node = node.meta.get("twin_of", node)
    return twin_of


def copy_needed(
    source: fx.Graph,
    graph: fx.Graph,
    copies: dict[fx.Node, fx.Node],
    wanted: list[fx.Node],
    choose: Callable[[fx.Node], fx.Node] = lambda node: node,
) -> None:
    """Copy into ``graph`` what ``wanted`` follows from, in the order of ``source``, each input as ``choose`` has it."""
    needed, stack = set(), [node for node in wanted if node not in copies]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += [choose(n) for n in node.all_input_nodes if choose(n) not in copies]
    for node in source.nodes if needed else ():
        if node in needed:
            copies[node] = graph.node_copy(node, lambda n: copies[choose(n)])


def tangent_half(
    traced: fx.GraphModule,
    moving: set[fx.Node],
    residuals: list[fx.Node],
    inputs: list[fx.Node],
    tangents: list[fx.Node],
) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The part of the graph that depends on the tangent, cheap values made again just before their use."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    read = {*residuals}  # what the half needs beyond residuals, found by walking back from it
    stack = [source for node in moving for source in node.all_input_nodes]
    while stack:
        node = stack.pop()
        if node not in read and node not in moving:
            read.add(node)
            stack += node.all_input_nodes
    reread = [node for node in inputs if node in read]
    for node in (*residuals, *reread, *tangents):
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = node.meta
    for node in traced.graph.nodes:
        if node in moving and node.op == "call_function":
            copy_needed(traced.graph, graph, copies, list(node.all_input_nodes))
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    output = next(node for node in traced.graph.nodes if node.op == "output")
    copy_needed(traced.graph, graph, copies, list(output.all_input_nodes))
    graph.output(fx.map_arg(output.args[0], lambda n: copies[n]))
    return fx.GraphModule(traced, graph), reread
