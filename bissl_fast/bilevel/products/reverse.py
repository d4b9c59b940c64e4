"""Products without a trace: reverse over reverse, and finite differences of the gradient."""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map

from bissl_fast.bilevel.buffers import frozen_buffers, places, replaced
from bissl_fast.bilevel.checks import foreign
from bissl_fast.bilevel.checks.attributes import put_back
from bissl_fast.bilevel.checks.graphs import NOT_TWICE, ONCE, WRONG_WITHIN, found_in, untouched_grads
from bissl_fast.bilevel.checks.restless import drawn_from, refuse_restless
from bissl_fast.bilevel.checks.spread import spread_refused
from bissl_fast.bilevel.checks.unseen import versions
from bissl_fast.bilevel.parameters import ParameterVector
from bissl_fast.bilevel.products.loss import Loss, modules_of
from bissl_fast.bilevel.products.precision import autocast
from bissl_fast.bilevel.tracing.stops import LossWatched
from bissl_fast.bilevel.tracing.written import refuse_no_loss
from bissl_fast.ops.krylov import norm

Gradient = tuple[torch.Tensor | None, ...]
Names = tuple[str, ...]
Saved = tuple[torch.Tensor, int]
"""A tensor that a graph has saved, and its version then."""

OVERWRITTEN = (
    "a tensor that the loss computes with, {dtype} {shape}, was written in place after it had been read, so the "
    "product would be wrong. Let the loss write in place less (inplace=False, or y = y + 1 for y += 1), and call "
    "update() after changing a tensor that it takes from elsewhere"
)
WRITES = (
    "the loss writes into a parameter or into its batch, so that each pass of a product would have another point: let "
    "it compute with a copy (1.1 * w in place of w.data.mul_(1.1)), or write between products and call update()"
)
NO_HOOKS = "support saved tensor hooks"
"""Part of what PyTorch says of torch.func where saved tensors are watched."""
TRANSFORMS = (
    "the loss calls torch.func (grad, vjp, jacrev or hessian), which does not run where saved tensors are watched: "
    "take mode='linearized', or torch.autograd.grad with create_graph=True in the loss"
)
HIDDEN = (
    "the layers of {names} are inside a function that calls backward on its own, so their part of the product would "
    "be lost; for torch.utils.checkpoint set use_reentrant=False"
)


class ReverseProducts:
    """Differentiate the gradient's own graph, which is kept as the linearisation.

    Args:
        loss: ``loss(module, batch) -> scalar``.
        parameters: what is differentiated.
        dtype: of autocast; parameters and vectors stay as they are.

    Raises:
        ValueError: in :meth:`linearise`, for a loss that is no scalar, does not depend on the parameters, cannot be
            differentiated twice, or hides some of them from its gradient.
        RuntimeError: where a tensor that the graph has saved was written in place, or the loss has written into a
            parameter or its batch.
    """

    def __init__(self, loss: Loss, parameters: ParameterVector, dtype: torch.dtype = torch.float32) -> None:
        self._loss, self._parameters, self._dtype = loss, parameters, dtype
        self._unused: set[Names] = set()
        self._verified: deque[int] = deque(maxlen=1024)
        self._seen: dict[int, torch.Tensor | None] = {}
        self.graph_bytes = 0
        """Bytes that the graph of the last linearisation holds beside parameters."""

    def forget(self) -> None:
        """What the loss was so far is no more to be compared with: the parameters or batches are others."""
        self._seen.clear()

    def from_elsewhere(self, batch: Any) -> tuple[()]:
        """None are known; a product raises where a kept graph has read one that changed."""
        return ()

    def linearise(self, batch: Any, seed: int = 0) -> Gradient:
        """The gradient at the present parameters, with its graph; random numbers of the loss start from the seed."""
        held: dict[int, int] = {}

        def weigh(tensor: torch.Tensor) -> Saved:
            storage = tensor.untyped_storage()
            held[storage._cdata] = storage.nbytes()
            return saved(tensor)

        theta = self._parameters.tensors
        with torch.enable_grad(), saved_tensors_hooks(weigh, unchanged):
            try:
                with unwritten(self._parameters, batch):
                    value = value_of(self._loss, self._parameters, batch, seed, self._dtype)
            except RuntimeError as error:
                if NO_HOOKS not in str(error):
                    raise
                raise ValueError(TRANSFORMS) from error
            gradient = torch.autograd.grad(value, theta, create_graph=True, allow_unused=True)
        self._require_one_function(value.detach(), seed)
        refusal = found_in([value], WRONG_WITHIN) or found_in([value, *(g for g in gradient if g is not None)], ONCE)
        if refusal is not None:
            raise ValueError(refusal)
        refuse_hidden(gradient, self._unused, self._loss, self._parameters, batch, seed, self._dtype)
        functions = foreign.foreign_in(value)
        if functions and seed not in self._verified:  # each batch of an update has another
            modules = modules_of(self._loss, self._parameters)
            leaves = [p for m in modules if isinstance(m, nn.Module) for p in m.parameters()]
            with put_back(*modules), untouched_grads(value, leaves):
                refuse_wrong_functions(functions, self._loss, self._parameters, batch, seed)
            self._verified.append(seed)
        own = {tensor.untyped_storage()._cdata for tensor in theta}
        self.graph_bytes = sum(size for storage, size in held.items() if storage not in own)
        return gradient

    def _require_one_function(self, value: torch.Tensor, seed: int) -> None:
        """Raise if a batch that keeps no graph has another value in its second pass; later ones wait for no device."""
        before = self._seen.get(seed, value)
        if before is not None and before is not value:
            refuse_restless(before, value)
        self._seen[seed] = None if seed in self._seen else value

    def product(self, gradient: Gradient, tangents: Sequence[torch.Tensor], last: bool) -> Gradient:
        """The product with a tangent; the graph is freed with the ``last`` one."""
        # A gradient that does not depend on the parameters has a Hessian of zero and no graph to walk.
        pairs = [(g, t) for g, t in zip(gradient, tangents, strict=True) if g is not None and g.requires_grad]
        try:
            return torch.autograd.grad(
                [g for g, _ in pairs],
                self._parameters.tensors,
                grad_outputs=[t for _, t in pairs],
                retain_graph=not last,
                allow_unused=True,
            )
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise ValueError(NOT_TWICE.format(what=f"an operation that is differentiable once ({error})")) from error


class DifferenceProducts:
    """``(∇L(θ + ε v) − ∇L(θ − ε v)) / 2ε``: an estimator of the product, not the product.

    A network with ReLU or max pooling has gradients that jump, and a difference across a jump measures the jump: it is
    the curvature of a smoothed loss. What the loss makes of θ under ``torch.no_grad`` or ``detach`` moves along with θ
    here; the exact modes hold it still. Rounding adds an error of about ``eps·‖∇L‖/ε``. Docs: bilevel.md.

    Args:
        loss: ``loss(module, batch) -> scalar``.
        parameters: what is differentiated, float32 or float64; moved for each gradient and put back.
        step: relative step, positive: ``ε = step · (1 + ‖θ‖) / ‖v‖``.

    Raises:
        ValueError: for a step that is not positive, or parameters whose dtype is too coarse for steps; in a product, as
            :class:`ReverseProducts` for parameters that the gradient misses.
        RuntimeError: in a product, as :class:`ReverseProducts` for writes of the loss.
    """

    def __init__(self, loss: Loss, parameters: ParameterVector, step: float = 1e-4) -> None:
        if not 0 < step < float("inf"):
            raise ValueError(f"the step of finite differences must be positive and finite, found {step}")
        dtype = parameters.tensors[0].dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"finite differences need float32 or float64: a small step is lost in {dtype}")
        self._loss, self._parameters, self._step = loss, parameters, step
        self._unused: set[Names] = set()
        self._settled: deque[int] = deque(maxlen=1024)

    def from_elsewhere(self, batch: Any) -> tuple[()]:
        """None are known, and none looked for."""
        return ()

    def linearise(self, batch: Any, seed: int = 0) -> tuple[Any, int]:
        """Nothing is computed ahead."""
        return batch, seed

    def product(self, point: tuple[Any, int], tangents: Sequence[torch.Tensor], last: bool) -> Gradient:
        """The estimate along a tangent; zero along zero."""
        self._require_one_function(*point)
        flat = self._parameters.flatten(tangents)
        largest = flat.abs().amax()  # the norm of a tiny or huge vector is 0 or infinite in float32
        is_zero = largest == 0
        direction = torch.where(is_zero, 0.0, flat / largest)
        length = norm(direction)
        values = self._parameters.values()
        epsilon = self._step * (1 + norm(values)) / torch.where(is_zero, 1.0, length)
        sides = []
        for sign in (1, -1):
            with self._moved_to(values + sign * epsilon * direction), torch.enable_grad():
                gradient = self._gradient(*point)
            refuse_hidden(gradient, self._unused, self._loss, self._parameters, *point, torch.float32)
            sides.append(self._parameters.flatten(gradient))
        return tuple(self._parameters.unflatten((sides[0] - sides[1]) * (largest / (2 * epsilon))))

    def _require_one_function(self, batch: Any, seed: int) -> None:
        """Raise if the loss changes from call to call, which over a small step is any number; once for each batch."""
        if seed in self._settled:
            return
        with torch.enable_grad(), unwritten(self._parameters, batch):
            first, second = (value_of(self._loss, self._parameters, batch, seed).detach() for _ in range(2))
        refuse_restless(first, second)
        self._settled.append(seed)

    def _gradient(self, batch: Any, seed: int) -> Gradient:
        """The gradient at the parameters' present values.

        What it has saved is watched, but for a loss that calls torch.func, which does not run where it is.
        """
        for watched in (saved_tensors_hooks(saved, unchanged), nullcontext()):
            try:
                with watched, unwritten(self._parameters, batch):
                    value = value_of(self._loss, self._parameters, batch, seed)
                    return torch.autograd.grad(value, self._parameters.tensors, allow_unused=True)
            except RuntimeError as error:
                if NO_HOOKS not in str(error):
                    raise
        raise AssertionError("torch.func was refused without hooks")

    @contextmanager
    def _moved_to(self, flat: torch.Tensor) -> Iterator[None]:
        """Other values in the parameters themselves, so that a loss that holds on to them sees them, too."""
        before = [parameter.data for parameter in self._parameters.tensors]
        try:
            for parameter, piece in zip(self._parameters.tensors, self._parameters.unflatten(flat), strict=True):
                parameter.data = piece.clone()
            yield
        finally:
            for parameter, data in zip(self._parameters.tensors, before, strict=True):
                parameter.data = data


def value_of(
    loss: Loss, parameters: ParameterVector, batch: Any, seed: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The loss at the parameters' values, with random numbers of its own and copies of all buffers."""
    device = parameters.tensors[0].device
    with ExitStack() as stack:
        stack.enter_context(frozen_buffers(*(p for p in modules_of(loss, parameters) if isinstance(p, nn.Module))))
        stack.enter_context(drawn_from(seed))
        stack.enter_context(torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []))
        stack.enter_context(autocast(device, dtype))
        stack.enter_context(LossWatched())
        stack.enter_context(spread_refused())
        torch.manual_seed(seed)
        value = loss(parameters.module, batch)
    refuse_no_loss(value)
    return value


@contextmanager
def unwritten(parameters: ParameterVector, batch: Any) -> Iterator[None]:
    """Raise if a parameter, or a tensor of the batch, has been written to inside the block."""
    given = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
    tensors = [*parameters.module.parameters(), *given]
    before = versions(tensors)
    yield
    if versions(tensors) != before:
        raise RuntimeError(WRITES)


def saved(tensor: torch.Tensor) -> Saved:
    """What a graph keeps of a tensor; an output's own graph would hold itself through its hook."""
    return tensor.detach(), tensor._version


def unchanged(kept: Saved) -> torch.Tensor:
    """The saved tensor, unless it was written in place since: PyTorch itself does not look where there are hooks."""
    tensor, version = kept
    if tensor._version != version:
        raise RuntimeError(OVERWRITTEN.format(dtype=tensor.dtype, shape=tuple(tensor.shape)))
    return tensor


def refuse_hidden(
    gradient: Gradient,
    unused: set[Names],
    loss: Loss,
    parameters: ParameterVector,
    batch: Any,
    seed: int,
    dtype: torch.dtype,
) -> None:
    """Raise if ``backward`` reaches a parameter that is missing in the gradient.

    Such a parameter is hidden in a function that calls ``backward`` on its own, as a reentrant checkpoint does. The
    loss is called once more, with stand-ins for the module's parameters: their ``grad`` and hooks stay out of it.
    Names that turn out to be those of unused parameters are added to ``unused``, and not asked for again.
    """
    absent = [(n, p) for n, p, g in zip(parameters.names, parameters.tensors, gradient, strict=True) if g is None]
    names = tuple(name for name, _ in absent)
    if not absent or names in unused:
        return
    module = parameters.module
    stand_ins: dict[torch.Tensor, torch.Tensor] = {
        p: p.detach().requires_grad_(p.requires_grad) for p in module.parameters()
    }
    with torch.enable_grad(), replaced(places(module, stand_ins)):
        value = value_of(loss, parameters, batch, seed, dtype)
        with untouched_grads(value):
            value.backward()  # type: ignore[no-untyped-call]
            hidden = [name for name, parameter in absent if stand_ins[parameter].grad is not None]
    if hidden:
        raise ValueError(HIDDEN.format(names=", ".join(hidden[:3]) + (", …" if len(hidden) > 3 else "")))
    unused.add(names)


def refuse_wrong_functions(
    functions: Sequence[Any], loss: Loss, parameters: ParameterVector, batch: Any, seed: int
) -> None:
    """Raise if products through one of these foreign Functions are seen to be wrong, or cannot be seen to be right.

    The loss is called once more, to see what they are applied to. In a process group nothing is looked at: a Function
    may communicate, and processes that look at different things would wait for each other.
    """
    spread = torch.distributed.is_available() and torch.distributed.is_initialized()
    if spread and torch.distributed.get_world_size() > 1:
        return
    with torch.enable_grad(), foreign.recorded(functions) as found:
        value_of(loss, parameters, batch, seed)
    with frozen_buffers(*(m for m in modules_of(loss, parameters) if isinstance(m, nn.Module))):
        verdicts = [(function, foreign.judged(function, args)) for function, args in found.values()]
    verdicts += [(function, "unsure") for function in functions if all(function is not seen for seen, _ in verdicts)]
    doubted = [(function, verdict) for function, verdict in verdicts if verdict != "right"]
    if doubted and not is_confirmed(loss, parameters, batch, seed):
        function, verdict = min(doubted, key=lambda pair: pair[1] != "wrong")
        raise ValueError(foreign.REFUSALS[verdict].format(name=function.__qualname__, module=function.__module__))


def is_confirmed(loss: Loss, parameters: ParameterVector, batch: Any, seed: int) -> bool:
    """Whether differences of the gradient agree with a product along one direction: in float64 if the loss takes it."""
    with in_double(parameters, batch) as (theta, given):
        try:
            return agrees(loss, theta, given, seed)
        except (RuntimeError, ValueError, TypeError):
            if theta.tensors[0].dtype == parameters.tensors[0].dtype:
                raise
    return agrees(loss, parameters, batch, seed)


def agrees(loss: Loss, parameters: ParameterVector, batch: Any, seed: int) -> bool:
    """Whether a product and the difference by some step are one, as far as rounding lets them."""
    theta, dtype = parameters.tensors, parameters.tensors[0].dtype
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(len(parameters), generator=generator, dtype=torch.float64).to(theta[0])
    with torch.enable_grad():
        value = value_of(loss, parameters, batch, seed)
        gradient = torch.autograd.grad(value, theta, create_graph=True, allow_unused=True)
        flat = parameters.flatten(gradient)
        parts = torch.autograd.grad(flat @ v, theta, allow_unused=True) if flat.requires_grad else [None] * len(theta)
    found = parameters.flatten(parts).detach()  # a backward may have gradients switched on
    steps = (1e-4, 1e-6, 1e-8) if dtype == torch.float64 else (1e-2, 3e-3, 1e-3)
    width = steps[0] * (1 + norm(parameters.values())) / norm(v)
    noise = 10 * torch.finfo(dtype).eps * norm(flat.detach()) / width
    for step in steps:  # kinks want a small one, rounding a large one
        difference = DifferenceProducts(loss, parameters, step).product((batch, seed), parameters.unflatten(v), True)
        seen = parameters.flatten(difference).detach()
        if norm(found - seen) <= foreign.CONFIRMED[dtype] * torch.maximum(norm(found), norm(seen)) + noise:
            return True
    return False


@contextmanager
def in_double(parameters: ParameterVector, batch: Any) -> Iterator[tuple[ParameterVector, Any]]:
    """Let copies in float64 stand in the module for its parameters and buffers: what they are there, and a batch."""

    def double(tensor: Any) -> Any:
        whole = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
        return tensor.detach().double().requires_grad_(tensor.requires_grad) if whole else tensor

    module = parameters.module
    stand_ins = {tensor: double(tensor) for tensor in (*module.parameters(), *module.buffers())}
    theta = copy.copy(parameters)
    theta.tensors = [stand_ins[tensor] for tensor in parameters.tensors]
    with replaced(places(module, stand_ins)):
        yield theta, tree_map(double, batch)
