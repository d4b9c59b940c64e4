"""A product written down as a graph of functional ops, and what cannot be written down refused."""

import re
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import fx

from bissl_fast.bilevel.checks.graphs import COMPILED, WRONG_ALONG_TANGENTS, WRONG_WITHIN, found_in, nodes

NOT_TRACEABLE = (
    "the loss cannot be traced ({reason}). A loss for traced products is a function of the module and the batch alone, "
    "without branches on values; mode='reverse' takes any other."
)
CAPTURED = (
    "the loss holds on to a parameter of its own accord instead of taking it from the module that it is called with, "
    "so the trace would take it for a constant; read it from the module"
)
COMPUTED_BEFORE = (
    "it takes a tensor that was computed from the parameters before, whose derivatives no trace sees: detach() it, or "
    "compute it in the loss"
)
MUTATES = "it writes into its batch, or into a tensor from elsewhere ({name})"
RANDOM = "it draws random numbers: {name}"
VALUES_LEAVE = (
    "it takes values out of a tensor ({name}), which would be constants of the trace; keep them in tensors, as with "
    "detach() in place of item() and torch.stack(list).detach() in place of torch.tensor(list)"
)
MAKES_PARAMETERS = "it makes a parameter, or another tensor of its own, out of what it has computed"
COMMUNICATES = (
    "the loss communicates by torch.distributed ({name}), through which no derivative passes and for which a traced "
    "product would not wait; take bissl_fast.ops.collectives, or let it compute this process's part alone and average "
    "the products over the processes"
)
REASONS = {
    "get value out of a tracing tensor": "it takes a value out of a tensor, as a branch on values does",
    "inference tensor": "it computes under torch.inference_mode: use torch.no_grad instead",
    "saved tensor hooks": "it saves tensors by hooks, as a checkpoint does",
    "setup_context": "it calls an autograd.Function without setup_context and jvp",
}
"""What PyTorch says, by a part of it, and what it means here."""
INSTEAD = {
    "cov": "centred.T @ centred / (rows - 1), with centred = x - x.mean(0)",
    "corrcoef": "z.T @ z / (rows - 1), with z = (x - x.mean(0)) / x.std(0)",
    "one_hot": "(labels[:, None] == torch.arange(classes, device=labels.device)).float()",
}
"""Functions that look at values on their way, and what to write for them."""
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


def refuse_wrong(values: Iterable[Any]) -> None:
    """Raise if forward derivatives of values would be wrong without an error."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    reason = found_in(tensors, WRONG_ALONG_TANGENTS)
    if reason is not None:
        raise LossError(NOT_TRACEABLE.format(reason=reason))
    reason = found_in(tensors, WRONG_WITHIN)
    if reason is not None:
        raise LossError(reason)


def written_down(
    function: Callable[..., Any], inputs: list[Any], tangents: list[torch.Tensor]
) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """The function as a graph without writes in place, and the tensors from elsewhere that it reads.

    Shapes alone are enough to write most down; the rest is computed once for it.

    Raises:
        ValueError: if the function cannot be written down, or would be another function when it is called again.
    """
    from torch._subclasses.fake_tensor import is_fake

    from bissl_fast.bilevel.tracing.writes import rewrite_writes, writes  # imports fake tensors

    traced = trace(function, inputs, tangents)
    traced.graph.eliminate_dead_code()
    refuse_communication(traced)
    refuse(traced, "data_dependent_output", VALUES_LEAVE)
    refuse(traced, "nondeterministic_seeded", RANDOM)
    rewrite_writes(traced.graph)
    traced.graph.eliminate_dead_code()
    if any(writes(node) for node in traced.graph.nodes):
        traced.recompile()
        traced = trace(torch.func.functionalize(traced, remove="mutations"), inputs, tangents)
    for node in traced.graph.nodes:
        if writes(node):  # what is left writes into inputs
            raise ValueError(NOT_TRACEABLE.format(reason=MUTATES.format(name=node.target)))
    refuse(traced, "dynamic_output_shape", DATA_DEPENDENT)
    materialize_zeros(traced)
    constants = [getattr(traced, node.target) for node in traced.graph.nodes if node.op == "get_attr"]
    if any(is_fake(constant) for constant in constants):
        raise ValueError(NOT_TRACEABLE.format(reason=MAKES_PARAMETERS))
    own = {t.untyped_storage().data_ptr() for t in inputs[: len(tangents)] if t.numel() > 0}
    if any(constant.untyped_storage().data_ptr() in own for constant in constants):
        raise ValueError(NOT_TRACEABLE.format(reason=CAPTURED))
    leaves = [node.variable for node in nodes(constants) if hasattr(node, "variable")]
    if any(leaf.untyped_storage().data_ptr() in own for leaf in leaves):
        raise ValueError(NOT_TRACEABLE.format(reason=COMPUTED_BEFORE))
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
    raise ValueError(why_not(cause)) from cause


def why_not(cause: Exception) -> str:
    """A sentence about what PyTorch raised while it traced."""
    for frame in traceback.extract_tb(cause.__traceback__):
        if Path(frame.filename).name == "distributed_c10d.py":
            return COMMUNICATES.format(name=frame.name)
    first = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    part, reason = next(((part, meaning) for part, meaning in REASONS.items() if part in str(cause)), ("", first))
    if part == "get value out of a tracing tensor":
        reason += where(cause)
    return NOT_TRACEABLE.format(reason=reason)


def where(cause: Exception) -> str:
    """The line of the loss that raised, and what to write instead of a function that is known to."""
    frames = traceback.extract_tb(cause.__traceback__)
    passed_on = {Path(torch.__file__).parent, Path(__file__).parents[1]}
    lines = [frame.line for frame in frames if passed_on.isdisjoint(Path(frame.filename).parents)]
    if not lines or not lines[-1]:
        return ""
    known = next((name for name in INSTEAD if re.search(rf"\b{name}\(", lines[-1])), None)
    return f": `{lines[-1]}`" + (f"; in place of {known}, write {INSTEAD[known]}" if known else "")


def refuse_communication(traced: fx.GraphModule) -> None:
    """Raise if a node is one of torch.distributed's own calls; functional collectives are others, and pass."""
    for node in traced.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "c10d":
            raise ValueError(COMMUNICATES.format(name=node.target))


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
