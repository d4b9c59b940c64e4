"""What autograd's graph of a loss tells before it is differentiated twice."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node

NOT_TWICE = "the loss contains {what}, so it has no exact product; mode='finite_difference' estimates it"
COMPILED = (
    "the loss contains something that torch.compile has made, which PyTorch cannot differentiate twice; pass it as it "
    "was before (what torch.compile(network) was given is its ._orig_mod). mode='linearized' compiles its products "
    "itself, with compiled=True"
)
HOOKED = (
    "a hook on {what} can change the gradient, which is then that of no loss and has no Hessian: take the hook away "
    "for products"
)
ONCE = {
    "WeightNormInterfaceBackward0": NOT_TWICE.format(
        what="PyTorch's fused weight norm, whose second derivative is wrong"
    ),
    "AsStridedScatterBackward0": "the loss contains torch.as_strided_scatter, of which PyTorch has even the first "
    "derivative wrong; write into a clone instead",
    **{
        f"GeneratedBackwardFor_torch_nn__linear_cross_entropy_batch_chunked_{kind}defaultBackward": NOT_TWICE.format(
            what="linear_cross_entropy in pieces, whose second derivative is wrong (without options it is right)"
        )
        for kind in ("", "no_reduction_")
    },
    "BackwardHookFunctionBackward": HOOKED.format(what="a module's backward pass"),
    "EmbeddingBackward0(altered)": "the loss contains an embedding with padding_idx or scale_grad_by_freq, whose "
    "gradient is that of no loss: its derivative is not symmetric, and reverse would take the transpose. "
    "mode='linearized' takes the derivative itself; or leave these options out",
    "torch::autograd::Error": NOT_TWICE.format(what="a function that is marked @once_differentiable"),
    "CompiledFunctionBackward": COMPILED,
}
"""Nodes of a graph that PyTorch passes in silence, though nothing right can come of them in a second derivative."""

IS_WRONG = "PyTorch has a wrong forward derivative of {what}"
WRONG_ALONG_TANGENTS = {
    "torch::jit::(anonymous namespace)::DifferentiableGraphBackward": "it calls TorchScript, whose derivatives a trace "
    "does not see",
    "CholeskyInverseBackward0": IS_WRONG.format(
        what="torch.cholesky_inverse; take torch.cholesky_solve of the identity"
    ),
    "TriangularSolveBackward0": IS_WRONG.format(what="torch.triangular_solve; take torch.linalg.solve_triangular"),
    "ScatterReduceBackward0(prod)": IS_WRONG.format(what="scatter_reduce with 'prod'; take exp of a sum of logarithms"),
}
"""Nodes whose forward derivatives are wrong without an error."""

WRITTEN_OUT = "(x - x.mean(-1, keepdim=True)) * (x.var(-1, correction=0, keepdim=True) + eps).rsqrt()"
WITHIN = (
    "the loss takes {what} of its own, whose derivatives in PyTorch are wrong without an error; write the norm out, a "
    f"layer norm as {WRITTEN_OUT}, before its weight and bias"
)
WRONG_WITHIN = {
    "NativeLayerNormBackwardBackward0": WITHIN.format(what="a gradient of a layer norm"),
    "NativeBatchNormBackwardBackward0(train)": WITHIN.format(
        what="a gradient of a batch or instance norm in training mode"
    ),
}
"""Nodes of gradients that the loss itself takes, which PyTorch differentiates as if a norm's statistics stood still."""

NO_ROW = 2**64 - 1
"""What PyTorch keeps of an embedding without padding: -1."""
MARKED = once_differentiable(lambda ctx: ctx).__code__


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
    return next((table[name] for name in map(name_of, nodes(tensors)) if name in table), None)


def name_of(node: Node) -> str:
    """A node's name, and what else tells whether its derivatives are right: a reduction, a gradient that is altered.

    A function that is marked as differentiable once counts as the error that it would raise: PyTorch raises it only
    where the gradient that arrives depends on the parameters, and loses the function's own derivatives elsewhere.
    """
    function: Any = getattr(node, "_forward_cls", None)
    if function is not None and is_marked(inspect.unwrap(function.backward, stop=is_marked)):
        return "torch::autograd::Error"
    if getattr(node, "_saved_padding_idx", NO_ROW) != NO_ROW or getattr(node, "_saved_scale_grad_by_freq", False):
        return f"{node.name()}(altered)"
    if getattr(node, "_saved_train", False):
        return f"{node.name()}(train)"
    reduction = getattr(node, "_saved_reduce", None)
    return f"{node.name()}({reduction})" if isinstance(reduction, str) else node.name()


def is_marked(function: Any) -> bool:
    """Whether a function is what ``@once_differentiable`` makes."""
    return getattr(function, "__code__", None) is MARKED


@contextmanager
def untouched_grads(value: torch.Tensor, others: Iterable[torch.Tensor] = ()) -> Iterator[None]:
    """Let ``backward`` inside the block leave nothing in the ``grad`` of the value's leaves, or of others."""
    leaves = [*{*others, *(node.variable for node in nodes([value]) if hasattr(node, "variable"))}]
    before = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None  # what is there would be added to in place
    try:
        yield
    finally:
        for leaf, grad in zip(leaves, before, strict=True):
            leaf.grad = grad


@contextmanager
def without_hooks(leaves: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let no hook on a leaf see or change its gradient inside the block: it would see vectors and products, too."""
    tables: list[Any] = [leaf._backward_hooks for leaf in leaves if leaf._backward_hooks]
    before = [dict(table) for table in tables]
    for table in tables:  # autograd holds on to the table itself
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, before, strict=True):
            table.update(hooks)
