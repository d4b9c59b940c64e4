"""What holds inside of a loss while it is written down: where derivatives stop, and which values stay in the trace."""

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from bissl_fast.bilevel.checks.graphs import HOOKED, WITHIN
from bissl_fast.bilevel.tracing.written import NOT_TRACEABLE, VALUES_LEAVE, LossError

Tensor = torch.Tensor

DATA = Tensor.data.__get__  # type: ignore[attr-defined]
SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
LEAVING = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.__deepcopy__)
"""How values leave a tensor past everything that a trace sees; what ``item`` gives, it does see."""
MAKING = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
"""What makes a tensor of a list, and of tensors in it by their values."""
NORMS = {"layer_norm": "", "batch_norm": "training", "instance_norm": "use_input_stats"}
"""Norms whose tangent PyTorch differentiates wrongly, and the argument that has them take statistics of the batch."""
SOLVES = ("linalg_solve", "linalg_solve_ex", "linalg_tensorsolve", "linalg_householder_product", "orgqr")
DETERMINANTS = ("linalg_det", "det", "linalg_slogdet", "slogdet", "logdet")
FACTORED = (
    "the loss takes a forward derivative (jvp) of {name} of its own, whose derivatives in PyTorch are wrong without an "
    "error; take torch.linalg.inv or torch.linalg.cholesky in its place"
)
SETS_DATA = "it assigns to the .data of a tensor"
DETACHES_IN_PLACE = "it calls detach_(): write y = y.detach() instead"


class LossWatched(TorchFunctionMode):
    """Have writes through ``.data`` counted, and raise for hooks: each pass of a product would meet them once more."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse_hooks(func, args)
        if not torch.compiler.is_compiling():  # Dynamo traces this, and goes wrong where it cannot
            refuse_tangents(func, kwargs or {}, 0)
        if func == DATA:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def refuse_hooks(func: Any, args: Any) -> None:
    """Raise if this puts a hook on a tensor that can change its gradient.

    Those of ``torch.autograd.graph.register_multi_grad_hook``, which PyTorch's own counter of operations puts, cannot.
    """
    if func is not Tensor.register_hook:
        return
    code = getattr(args[-1], "__code__", None)
    if code is None or code.co_filename != torch.autograd.graph.__file__:
        raise LossError(HOOKED.format(what="a tensor inside the loss"))


def refuse_tangents(func: Any, kwargs: Any, own: int) -> None:
    """Raise if the loss, by forward mode of its own beside ``own`` levels of the product's, takes a tangent of these.

    PyTorch forms it from what the op has kept (statistics, factors) as if that were constant: right, but for its
    derivatives, of which even the first is wrong.
    """
    name = getattr(func, "__name__", "").removeprefix("native_")
    if name in NORMS and kwargs.get(NORMS[name], True):
        sentence = WITHIN.format(what=f"a forward derivative (jvp) of {name}")
    elif name in SOLVES or name in DETERMINANTS:
        sentence = FACTORED.format(name=name)
    else:
        return
    levels = torch._C._functorch.get_interpreter_stack() or []
    found = sum(level.key() == torch._C._functorch.TransformType.Jvp for level in levels)
    if found > own or (not levels and forward_ad._current_level >= 0):
        raise LossError(sentence)


class StopsHold(TorchFunctionMode):
    """Let ``no_grad``, ``.data`` and gradients without a graph hold back tangents, and values not leave the trace.

    Forward mode passes through both otherwise; and what has left the trace would be a constant of it, wrong at every
    other point.

    Raises:
        LossError: for a loss that takes values out, or detaches in place, which no trace can write down, or has hooks.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse_hooks(func, args)
        refuse_tangents(func, kwargs or {}, 1)
        if func is torch._C._set_grad_enabled:
            torch._C._set_fwd_grad_enabled(args[0])
        elif func == DATA:
            return args[0].detach()
        elif func == SET_DATA:  # PyTorch may end the process over it
            raise LossError(NOT_TRACEABLE.format(reason=SETS_DATA))
        elif func is Tensor.detach_:
            raise LossError(NOT_TRACEABLE.format(reason=DETACHES_IN_PLACE))
        elif func is torch.autograd.grad and not (kwargs or {}).get("create_graph"):
            return tree_map(lambda g: g if g is None else g.detach(), func(*args, **(kwargs or {})))
        elif any(map(is_traced, leaving(func, args))):
            raise LossError(NOT_TRACEABLE.format(reason=VALUES_LEAVE.format(name=func.__name__)))
        return func(*args, **(kwargs or {}))


def leaving(func: Any, args: Any) -> list[Any]:
    """What a call takes the values out of."""
    if func in LEAVING:
        return [args[0]]
    return tree_leaves([a for a in args if not isinstance(a, Tensor)]) if func in MAKING else []


def is_traced(value: Any) -> bool:
    """Whether a value follows from an input of the present trace."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot

    mode = get_proxy_mode()
    if mode is None or not isinstance(value, Tensor):
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    slot: Any = get_proxy_slot(value, mode.tracer, None)
    stack, seen = [] if slot is None else [slot.proxy.node], set()
    while stack:
        node = stack.pop()
        if node.op == "placeholder":
            return True
        seen.add(node)
        stack += [source for source in node.all_input_nodes if source not in seen]
    return False
