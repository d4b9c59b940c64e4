"""Products traced once and split at the tangent boundary (``linearized`` and ``gauss_newton``).

``θ ↦ ∇L(θ)`` is differentiated by forward over reverse, written down once as a graph, and cut in two: the primal half
runs once per point and batch and leaves residuals, the tangent half runs once per product and reads them. Weights,
constants and batches are inputs of the graph, so one trace serves every point.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from bissl_fast.bilevel.parameters import ParameterVector

if TYPE_CHECKING:
    from bissl_fast.bilevel.partition import Halves  # imports networkx

Loss = Callable[[Any, Any], torch.Tensor]
Tensors = tuple[torch.Tensor, ...]

NOT_TRACEABLE = (
    "the loss cannot be traced ({reason}). A loss for traced products is a function of the module and the batch alone, "
    "without branches on values; mode='reverse' takes any other."
)


class Program(NamedTuple):
    """A traced product and what it needs.

    Attributes:
        halves: the two graphs.
        primal, tangent: what runs them: the graphs themselves, or their compiled form.
        working_bytes: most that either half holds at once beside inputs and residuals.
    """

    halves: "Halves"
    primal: Callable[..., Tensors]
    tangent: Callable[..., Tensors]
    working_bytes: int


class LossModule(nn.Module):
    """The loss as a module, so that `functional_call` reaches the parameters of the module inside it."""

    def __init__(self, loss: Loss, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(self, batch: Any) -> Any:
        return self.loss(self.module, batch)


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

    def linearise(self, batch: Any) -> tuple[Program, Tensors]:
        """The program for batches like this one, and what its tangent half reads at the present parameters."""
        inputs, spec = self._inputs(batch)
        program = self._program(inputs, spec)
        with torch.no_grad():
            residuals = program.primal(*inputs)
        return program, (*map(own, residuals), *(inputs[position] for position in program.halves.reread))

    @torch.no_grad()
    def product(self, point: tuple[Program, Tensors], tangents: Sequence[torch.Tensor], last: bool = False) -> Tensors:
        """The product with a tangent, given as tensors shaped like the parameters; the ``last`` one is like all."""
        program, read = point
        return program.tangent(*read, *tangents)

    def program(self, batch: Any) -> Program:
        """The program for batches like this one; traced if there is none yet."""
        return self._program(*self._inputs(batch))

    def _inputs(self, batch: Any) -> tuple[list[torch.Tensor], TreeSpec]:
        leaves, spec = tree_flatten(batch)
        theta = [parameter.detach() for parameter in self._parameters.tensors]
        return [*theta, *self._constants().values(), *leaves], spec

    def _constants(self) -> dict[str, torch.Tensor]:
        """Everything in the module that is not differentiated: other parameters and buffers."""
        module, moving = self._parameters.module, set(self._parameters.names)
        named = {n: p.detach() for n, p in module.named_parameters() if n not in moving}
        return {**named, **dict(module.named_buffers())}

    def _program(self, inputs: list[torch.Tensor], spec: TreeSpec) -> Program:
        modes = tuple(module.training for module in self._parameters.module.modules())
        layout = tuple((t.shape, t.dtype, t.stride(), t.device) if isinstance(t, torch.Tensor) else t for t in inputs)
        key = (layout, spec, modes)
        if key not in self._programs:
            self._programs[key] = self._trace(inputs, spec)
        return self._programs[key]

    def _trace(self, inputs: list[torch.Tensor], spec: TreeSpec) -> Program:
        count = len(self._parameters.tensors)
        tangents = [torch.zeros_like(t) for t in inputs[:count]]
        traced = self._written_down(self._function(spec), inputs, tangents)
        refuse_random(traced)
        materialize_zeros(traced)
        from bissl_fast.bilevel.liveness import peak_bytes
        from bissl_fast.bilevel.partition import split

        halves = split(traced, count, self._recompute)
        working = max(peak_bytes(halves.primal.graph) - halves.residual_bytes, peak_bytes(halves.tangent.graph))
        if self._compiled:
            run = [torch.compile(half, fullgraph=True, dynamic=False) for half in (halves.primal, halves.tangent)]
            return Program(halves, run[0], run[1], working)
        return Program(halves, halves.primal, halves.tangent, working)

    def _written_down(
        self, function: Callable[..., Any], inputs: list[torch.Tensor], tangents: list[torch.Tensor]
    ) -> fx.GraphModule:
        """The function as a graph. Shapes alone are enough to write most down; the rest is computed once for it."""
        from torch.fx.experimental.proxy_tensor import make_fx

        for mode in ("fake", "real"):
            try:
                with autocast(inputs[0].device, self._dtype), torch.enable_grad():
                    return make_fx(function, tracing_mode=mode, _allow_non_fake_inputs=True)(inputs, tangents)
            except Exception as error:  # whatever the loss, or PyTorch below it, raises
                cause = error
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise ValueError(NOT_TRACEABLE.format(reason=reason)) from cause

    def _function(self, spec: TreeSpec) -> Callable[..., Any]:
        """``(inputs, tangents) -> product`` as plain tensors."""
        names, constants = self._parameters.names, list(self._constants())
        buffers = {name for name, _ in self._parameters.module.named_buffers()}
        count = len(names)

        def call(function: Callable[..., Any], theta: Tensors, inputs: list[torch.Tensor]) -> Any:
            rest = dict(zip(constants, inputs[count:], strict=False))
            rest = {name: t.clone() if name in buffers else t for name, t in rest.items()}  # forward passes move them
            batch = tree_unflatten(inputs[count + len(constants) :], spec)
            state = {f"module.{name}": t for name, t in {**dict(zip(names, theta, strict=True)), **rest}.items()}
            return torch.func.functional_call(LossModule(function, self._parameters.module), state, (batch,))

        def hessian_product(inputs: list[torch.Tensor], tangents: list[torch.Tensor]) -> Any:
            gradient = torch.func.grad(lambda theta: call(self._loss, theta, inputs))
            return torch.func.jvp(gradient, (tuple(inputs[:count]),), (tuple(tangents),))[1]

        def gauss_newton_product(inputs: list[torch.Tensor], tangents: list[torch.Tensor]) -> Any:
            outputs, criterion = self._loss.outputs, self._loss.criterion  # type: ignore[attr-defined]
            theta = tuple(inputs[:count])
            jvp, vjp = torch.func.jvp, torch.func.vjp
            values, moved, *_ = jvp(lambda t: call(outputs, t, inputs), (theta,), (tuple(tangents),))
            curved = jvp(torch.func.grad(criterion), (values,), (moved,))[1]
            return vjp(lambda t: call(outputs, t, inputs), theta)[1](curved)[0]

        return hessian_product if self._kind == "hessian" else gauss_newton_product


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Half precision inside the block, if ``dtype`` is one. Casts are not cached: a cached one belongs to one graph."""
    enabled = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled, cache_enabled=False)


def own(residual: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy where it would keep a larger one alive."""
    whole: int = residual.untyped_storage().nbytes()
    return residual.clone() if whole > residual.numel() * residual.element_size() else residual


def materialize_zeros(traced: fx.GraphModule) -> None:
    """Make zeros of symbolic ones, which autograd writes down for absent tangents and no kernel takes."""
    for node in traced.graph.nodes:
        if node.target is torch.ops.aten._efficientzerotensor.default:
            node.target = torch.ops.aten.zeros.default
    traced.recompile()


def refuse_random(traced: fx.GraphModule) -> None:
    """Raise if a traced loss draws random numbers: a batch that is linearised twice would be two different losses."""
    for node in traced.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ValueError(NOT_TRACEABLE.format(reason=f"it draws random numbers: {node.target}"))
