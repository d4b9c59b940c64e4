"""A product written down as a graph of functional ops, and what cannot be written down refused."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from bissl_fast.bilevel.graphs import COMPILED, UNTRACEABLE, found_in

NOT_TRACEABLE = (
    "the loss cannot be traced ({reason}). A loss for traced products is a function of the module and the batch alone, "
    "without branches on values; mode='reverse' takes any other."
)
CAPTURED = (
    "the loss holds on to a parameter of its own accord instead of taking it from the module that it is called with, "
    "so the trace would take it for a constant; read it from the module"
)
MUTATES = "it writes into its batch, or into a tensor from elsewhere ({name})"
RANDOM = "it draws random numbers: {name}"
DATA_DEPENDENT = "the shape of a result depends on values: {name}"


class LossError(ValueError):
    """A loss that no trace can take, in a sentence of its own."""


DETACHED = "the loss does not depend on the parameters: is it detached, or is there another network in it?"


def refuse_no_loss(value: Any) -> None:
    """Raise unless a loss has returned a scalar that depends on the parameters."""
    if not isinstance(value, torch.Tensor) or value.dim() > 0:
        found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise LossError(f"a loss must return a scalar tensor, of shape (), found {found}")
    if not value.requires_grad:
        raise LossError(DETACHED)


def refuse_torchscript(values: Iterable[Any]) -> None:
    """Raise if values have been computed by TorchScript's own derivatives."""
    reason = found_in([value for value in values if isinstance(value, torch.Tensor)], UNTRACEABLE)
    if reason is not None:
        raise LossError(NOT_TRACEABLE.format(reason=reason))


def written_down(
    function: Callable[..., Any], inputs: list[Any], tangents: list[torch.Tensor]
) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """The function as a graph without writes in place, and the tensors from elsewhere that it reads.

    Shapes alone are enough to write most down; the rest is computed once for it.

    Raises:
        ValueError: if the function cannot be written down, or would be another function when it is called again.
    """
    traced = trace(function, inputs, tangents)
    refuse(traced, "nondeterministic_seeded", RANDOM)
    if any(writes(node) for node in traced.graph.nodes):
        traced = trace(torch.func.functionalize(traced, remove="mutations"), inputs, tangents)
    for node in traced.graph.nodes:
        if writes(node):  # what is left writes into inputs
            raise ValueError(NOT_TRACEABLE.format(reason=MUTATES.format(name=node.target)))
    refuse(traced, "dynamic_output_shape", DATA_DEPENDENT)
    materialize_zeros(traced)
    constants = [getattr(traced, node.target) for node in traced.graph.nodes if node.op == "get_attr"]
    own = {t.untyped_storage().data_ptr() for t in inputs[: len(tangents)] if t.numel() > 0}
    if any(constant.untyped_storage().data_ptr() in own for constant in constants):
        raise ValueError(NOT_TRACEABLE.format(reason=CAPTURED))
    return traced, constants


def trace(function: Callable[..., Any], inputs: list[Any], tangents: list[torch.Tensor]) -> fx.GraphModule:
    """The function as a graph."""
    from torch.fx.experimental.proxy_tensor import make_fx

    for mode in ("fake", "real"):
        try:
            with warnings.catch_warnings():  # PyTorch's own, at the first trace of a process
                warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")
                return make_fx(function, tracing_mode=mode, _allow_non_fake_inputs=True)(inputs, tangents)
        except LossError:
            raise
        except Exception as error:  # whatever the loss, or PyTorch below it, raises
            cause = error
    if "dynamo-optimized" in str(cause):
        raise LossError(COMPILED) from cause
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    raise ValueError(NOT_TRACEABLE.format(reason=reason)) from cause


def writes(node: fx.Node) -> bool:
    """Whether a node writes into one of its arguments: such nodes can neither be left out nor run twice."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def refuse(traced: fx.GraphModule, tag: str, reason: str) -> None:
    """Raise if a node has one of PyTorch's tags, and means it."""
    for node in traced.graph.nodes:
        if getattr(torch.Tag, tag) in getattr(node.target, "tags", ()) and not has_static_shape(node):
            raise ValueError(NOT_TRACEABLE.format(reason=reason.format(name=node.target)))


def has_static_shape(node: fx.Node) -> bool:
    """Whether a node only gathers by integers or by constants: the tag of indexing is for other masks."""
    if node.target is not torch.ops.aten.index.Tensor:
        return False
    indices: Any = node.args[1]
    found = [i for i in indices if i is not None]
    return all(i.op == "get_attr" or i.meta["val"].dtype in (torch.int64, torch.int32) for i in found)


def materialize_zeros(traced: fx.GraphModule) -> None:
    """Make zeros of symbolic ones, which autograd writes down for absent tangents and no kernel takes."""
    for node in traced.graph.nodes:
        if node.target is torch.ops.aten._efficientzerotensor.default:
            node.target = torch.ops.aten.zeros.default
    traced.recompile()
