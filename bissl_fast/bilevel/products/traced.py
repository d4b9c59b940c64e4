"""Products traced once and split at the tangent boundary (``linearized`` and ``gauss_newton``).

``θ ↦ ∇L(θ)`` is differentiated by forward over reverse, written down once as a graph, and cut in two: the primal half
runs once per point and batch and leaves residuals, the tangent half runs once per product and reads them. Weights,
constants and batches are inputs of the graph, so one trace serves every point.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from bissl_fast.bilevel.buffers import places, replaced
from bissl_fast.bilevel.checks.attributes import Attributes
from bissl_fast.bilevel.checks.restless import draws_refused, refuse_restless
from bissl_fast.bilevel.checks.spread import spread_refused
from bissl_fast.bilevel.parameters import ParameterVector
from bissl_fast.bilevel.products.loss import Loss, modules_of
from bissl_fast.bilevel.products.precision import autocast
from bissl_fast.bilevel.tracing.stops import StopsHold
from bissl_fast.bilevel.tracing.written import DETACHED, LossError, refuse_no_loss, refuse_wrong, written_down

if TYPE_CHECKING:
    from bissl_fast.bilevel.tracing.partition import Halves  # imports networkx

Tensors = tuple[torch.Tensor, ...]

PLAIN = (torch.Tensor, bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))
"""What a batch may hold, in tuples, lists and dicts."""

MOST_PROGRAMS = 64
"""How many programs are kept: a number in a batch that is another at each update makes a new one each time."""

OPAQUE = (
    "a batch for traced products is made of tensors and numbers in tuples, lists and dicts, found {kind}; take it "
    "apart, or use mode='reverse', which passes a batch on as it is"
)
COMPLEX = (
    "mode 'gauss_newton' takes real outputs, found complex ones: let outputs return torch.view_as_real of them, and "
    "the criterion torch.view_as_complex"
)
NOT_IN_HALF = (
    "PyTorch has no forward derivative in {dtype} of a layer of this network ({error}); use dtype='float32', "
    "mode='reverse', or for batch norms bissl_fast.models.fused.fuse_batch_norm"
)


class Program(NamedTuple):
    """A traced product and what it needs.

    Attributes:
        halves: the two graphs.
        primal, tangent: what runs them: the graphs themselves, or their compiled form.
        working_bytes: most that either half holds at once beside inputs and residuals.
        constants: tensors that the loss takes from elsewhere than module and batch.
    """

    halves: "Halves"
    primal: Callable[..., Tensors]
    tangent: Callable[..., Tensors]
    working_bytes: int
    constants: list[torch.Tensor]


class Point(NamedTuple):
    """A program at a point, and what its tangent half reads there."""

    program: Program
    read: Tensors


class TracedProducts:
    """Linearise at a point, then multiply: the two halves of a traced product.

    Args:
        loss: ``loss(module, batch) -> scalar``; for ``gauss_newton`` one with ``outputs`` and ``criterion``.
        parameters: what is differentiated.
        kind: ``"hessian"`` or ``"gauss_newton"``.
        compiled: compile both halves with Inductor, which keeps what it made on disk between runs.
        recompute: choose residuals by minimum cut.
        dtype: of the products' forward and backward passes; parameters and vectors stay as they are.

    Raises:
        ValueError: when a batch is met whose loss cannot be traced.
        ValueError: in a product, if PyTorch cannot take it in half precision.
    """

    def __init__(
        self,
        loss: Loss,
        parameters: ParameterVector,
        kind: Literal["hessian", "gauss_newton"] = "hessian",
        compiled: bool = False,
        recompute: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._loss, self._parameters, self._kind = loss, parameters, kind
        self._compiled, self._recompute, self._dtype = compiled, recompute, dtype
        self._programs: dict[Any, Program] = {}
        self._attributes = Attributes(*modules_of(loss, parameters))

    def linearise(self, batch: Any, seed: int = 0) -> Point:
        """The program for batches like this one, and what its tangent half reads at the present parameters.

        The seed is not needed: a loss that draws random numbers is refused.
        """
        inputs, spec = self._inputs(batch)
        program = self._program(inputs, spec)
        with torch.no_grad():
            residuals = program.primal(*inputs)
        read = (*map(own, residuals), *(inputs[position] for position in program.halves.reread))
        return Point(program, read)

    @torch.no_grad()
    def product(self, point: Point, tangents: Sequence[torch.Tensor], last: bool = False) -> Tensors:
        """The product with a tangent, given as tensors shaped like the parameters; the ``last`` one is like all."""
        try:
            return point.program.tangent(*point.read, *tangents)
        except RuntimeError as error:
            if self._dtype == torch.float32 or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(NOT_IN_HALF.format(dtype=self._dtype, error=str(error).splitlines()[0])) from error

    def program(self, batch: Any) -> Program:
        """The program for batches like this one; traced if there is none yet."""
        return self._program(*self._inputs(batch))

    def from_elsewhere(self, batch: Any) -> list[torch.Tensor]:
        """Tensors from elsewhere that the loss reads for batches like this one, and that have to stay as they are."""
        return self.program(batch).constants

    def _inputs(self, batch: Any) -> tuple[list[Any], TreeSpec]:
        leaves, spec = tree_flatten(batch)
        for leaf in leaves:
            if not isinstance(leaf, PLAIN):
                raise ValueError(OPAQUE.format(kind=type(leaf).__name__))
        theta = [parameter.detach() for parameter in self._parameters.tensors]
        batch = [leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        return [*theta, *(constant.detach() for constant in self._constants()), *batch], spec

    def _constants(self) -> list[torch.Tensor]:
        """Everything in the module that is not differentiated: other parameters and buffers."""
        module, moving = self._parameters.module, set(self._parameters.tensors)
        return [*(p for p in module.parameters() if p not in moving), *module.buffers()]

    def _program(self, inputs: list[Any], spec: TreeSpec) -> Program:
        modes = tuple(module.training for module in self._parameters.module.modules())
        layout = tuple(
            (t.shape, t.dtype, t.stride(), t.device) if isinstance(t, torch.Tensor) else (type(t), t) for t in inputs
        )
        place = (layout, spec, modes)
        key = (*place, *self._attributes.values().items())
        if key not in self._programs:
            with self._attributes.passing():
                program = self._trace(inputs, spec)
            key = (*place, *self._attributes.values().items())  # less those that the loss itself moves
            self._programs[key] = program
            if len(self._programs) > MOST_PROGRAMS:
                del self._programs[next(iter(self._programs))]  # the oldest
        return self._programs[key]

    def _trace(self, inputs: list[Any], spec: TreeSpec) -> Program:
        count = len(self._parameters.tensors)
        tangents = [torch.zeros_like(t) for t in inputs[:count]]
        with autocast(inputs[0].device, self._dtype), torch.enable_grad(), spread_refused():
            try:
                traced, constants = written_down(self._function(spec), inputs, tangents)
            except LossError:
                raise
            except ValueError:
                self._raise_what_the_loss_raises(spec, inputs)
                raise
            value = self._value(spec, inputs)  # what is imported by and by may have drawn until here
            with draws_refused():
                again = self._value(spec, inputs)
            refuse_restless(value, again)
        from bissl_fast.bilevel.tracing.liveness import peak_bytes
        from bissl_fast.bilevel.tracing.partition import split

        halves = split(traced, count, self._recompute)
        working = max(peak_bytes(halves.primal.graph) - halves.residual_bytes, peak_bytes(halves.tangent.graph))
        run: list[Callable[..., Tensors]] = [halves.primal, halves.tangent]
        if self._compiled:
            run = [torch.compile(half, fullgraph=True, dynamic=False) for half in run]
        return Program(halves, run[0], run[1], working, constants)

    def _value(self, spec: TreeSpec, inputs: list[Any]) -> torch.Tensor:
        """The loss, without its graph where it asks for no gradient of its own."""
        theta = tuple(inputs[: len(self._parameters.tensors)])
        try:
            with torch.no_grad():
                value: torch.Tensor = self._call(self._loss, spec, theta, inputs)
        except RuntimeError:
            value = self._call(self._loss, spec, tuple(1 * t.detach().requires_grad_() for t in theta), inputs)
        return value.detach()

    def _raise_what_the_loss_raises(self, spec: TreeSpec, inputs: list[Any]) -> None:
        """Call the loss without a trace: an error of its own is none of tracing."""
        copies = [t.clone() if isinstance(t, torch.Tensor) else t for t in inputs]
        theta = tuple(1 * t.requires_grad_() for t in copies[: len(self._parameters.tensors)])
        try:
            self._call(self._loss, spec, theta, copies)
        except Exception as error:
            raise error from None

    def _function(self, spec: TreeSpec) -> Callable[..., Any]:
        """``(inputs, tangents) -> product`` as plain tensors."""
        product = self._hessian_product if self._kind == "hessian" else self._gauss_newton_product
        return partial(product, spec)

    def _call(self, function: Callable[..., Any], spec: TreeSpec, theta: Tensors, inputs: list[Any]) -> Any:
        """``function(module, batch)`` with everything that the module holds taken from ``theta`` and ``inputs``."""
        module, moving, constants = self._parameters.module, self._parameters.tensors, self._constants()
        buffers = set(module.buffers())
        rest = zip(constants, inputs[len(moving) :], strict=False)
        state = dict(zip(moving, theta, strict=True))
        state |= {t: value.clone() if t in buffers else value for t, value in rest}  # forward passes move buffers
        batch = tree_unflatten(inputs[len(moving) + len(constants) :], spec)
        with replaced(places(module, state)), StopsHold():
            return function(module, batch)

    def _hessian_product(self, spec: TreeSpec, inputs: list[Any], tangents: list[torch.Tensor]) -> Any:
        def value(theta: Tensors) -> torch.Tensor:
            found: torch.Tensor = self._call(self._loss, spec, theta, inputs)
            refuse_no_loss(found)
            refuse_wrong([found])
            return found

        theta = tuple(inputs[: len(tangents)])
        return torch.func.jvp(torch.func.grad(value), (theta,), (tuple(tangents),))[1]

    def _gauss_newton_product(self, spec: TreeSpec, inputs: list[Any], tangents: list[torch.Tensor]) -> Any:
        theta = tuple(inputs[: len(tangents)])
        loss: Any = self._loss
        fixed: dict[str, Any] = {}

        def outputs(theta: Tensors) -> list[torch.Tensor]:
            leaves, form = tree_flatten(self._call(loss.outputs, spec, theta, inputs))
            refuse_wrong(leaves)
            if any(t.is_complex() and t.requires_grad for t in leaves):
                raise LossError(COMPLEX)
            fixed.update(form=form, leaves=[None if t.is_floating_point() else t for t in leaves])
            return [t for t in leaves if t.is_floating_point()]

        def criterion(values: list[torch.Tensor]) -> torch.Tensor:
            rest = iter(values)
            leaves = [next(rest) if t is None else t for t in fixed["leaves"]]
            with StopsHold():
                found: torch.Tensor = loss.criterion(tree_unflatten(leaves, fixed["form"]))
            refuse_no_loss(found)
            refuse_wrong([found])
            return found

        def reaching(theta: Tensors) -> list[torch.Tensor]:
            found = outputs(theta)
            if not any(t.requires_grad for t in found):
                raise LossError(DETACHED)
            return found

        values, moved, *_ = torch.func.jvp(outputs, (theta,), (tuple(tangents),))
        curved = torch.func.jvp(torch.func.grad(criterion), (values,), (moved,))[1]
        return torch.func.vjp(reaching, theta)[1](curved)[0]


def own(residual: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy where it would keep a larger one alive."""
    whole: int = residual.untyped_storage().nbytes()
    return residual.clone() if whole > residual.numel() * residual.element_size() else residual
