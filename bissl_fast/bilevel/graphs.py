"""What autograd's graph of a loss tells before it is differentiated twice."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.autograd.graph import Node

NOT_TWICE = "the loss contains {what}, so it has no exact product; mode='finite_difference' estimates it"
COMPILED = (
    "the loss contains something that torch.compile has made, which PyTorch cannot differentiate twice; pass it as it "
    "was before (what torch.compile(network) was given is its ._orig_mod). mode='linearized' compiles its products "
    "itself, with compiled=True"
)
ONCE = {
    "WeightNormInterfaceBackward0": NOT_TWICE.format(
        what="PyTorch's fused weight norm, whose second derivative is wrong"
    ),
    "torch::autograd::Error": NOT_TWICE.format(what="a function that is marked @once_differentiable"),
    "CompiledFunctionBackward": COMPILED,
}
"""Nodes of a graph that PyTorch passes in silence, though nothing right can come of them in a second derivative."""

UNTRACEABLE = {
    "torch::jit::(anonymous namespace)::DifferentiableGraphBackward": "it calls TorchScript, whose derivatives a trace "
    "does not see"
}
"""Nodes that make a trace wrong in silence."""


def nodes(tensors: Iterable[torch.Tensor]) -> Iterator[Node]:
    """Every node of the tensors' graphs, once."""
    stack = [tensor.grad_fn for tensor in tensors]
    seen = set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [below for below, _ in node.next_functions]
            yield node


def found_in(tensors: Iterable[torch.Tensor], table: Mapping[str, str]) -> str | None:
    """What the graphs hold of a table of nodes' names; ``None`` if nothing."""
    return next((table[node.name()] for node in nodes(tensors) if node.name() in table), None)


@contextmanager
def untouched_grads(value: torch.Tensor) -> Iterator[None]:
    """Let ``value.backward()`` inside the block leave nothing in the ``grad`` of the graph's leaves."""
    leaves = [node.variable for node in nodes([value]) if hasattr(node, "variable")]
    before = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None  # what is there would be added to in place
    try:
        yield
    finally:
        for leaf, grad in zip(leaves, before, strict=True):
            leaf.grad = grad
