"""Other people's ``autograd.Function``s: whether their backward passes, differentiated again, tell the truth.

A backward pass of plain Python can be right and yet have no derivative, or a wrong one, and PyTorch cannot tell. So a
Function that is neither PyTorch's nor ours is called again beside the inputs that it had, alone: what the loss holds
for constants around it stays as it is, and no kink of a network lies in the way. Of a Function whose backward is not
the derivative of its forward that would say nothing; there the whole product is held against whole gradients.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves, tree_map

from bissl_fast.bilevel.checks.graphs import nodes

Tensors = tuple[torch.Tensor, ...]
Arguments = tuple[Any, ...]

SHARE = 0.05
"""How far, relative to the larger of both, a derivative may be from what differences say."""
PROBES = 4
STEPS = {torch.float64: (3e-7, 1e-7, 3e-4, 1e-4), torch.float32: (3e-2, 1e-2, 3e-3, 1e-3)}
"""Relative steps, in pairs: what two steps disagree about tells nothing."""
CONFIRMED = {torch.float64: 1e-3, torch.float32: 0.02}
"""How far a product may be from differences of the gradient that are to confirm it."""
REFUSED = (
    "the loss contains {{name}} of {{module}}, an autograd.Function {what}, and differences of the gradient do not "
    "confirm the product through it, so it has no exact product; mode='finite_difference' estimates it; or write what "
    "it does with PyTorch's own operations"
)
REFUSALS = {
    "wrong": REFUSED.format(what="whose backward, differentiated again, is not the derivative of that backward"),
    "unsure": REFUSED.format(
        what="whose backward is not the derivative of its forward as a function of the tensors that it is given"
    ),
}


def is_foreign(function: type) -> bool:
    """Whether a Function is neither PyTorch's nor ours; what ``register_autograd`` makes is its user's."""
    name = function.__name__
    if name.startswith("GeneratedBackwardFor_"):
        return not name.startswith(("GeneratedBackwardFor_torch_nn_", "GeneratedBackwardFor_bissl_fast_"))
    return function.__module__.partition(".")[0] not in ("torch", "bissl_fast")


def foreign_in(value: torch.Tensor) -> list[Any]:
    """The classes of foreign Functions in the value's graph."""
    found = {node._forward_cls: None for node in nodes([value]) if hasattr(node, "_forward_cls")}
    return [function for function in found if is_foreign(function)]


@contextmanager
def recorded(functions: Sequence[Any]) -> Iterator[dict[Any, tuple[Any, Arguments]]]:
    """One application of each kind that the block makes: the class, and copies of its arguments."""
    found: dict[Any, tuple[Any, Arguments]] = {}

    def recording(function: Any, forward: Any) -> Any:
        own = function.setup_context is not torch.autograd.Function.setup_context

        def passing(*args: Any) -> Any:
            given = args if own else args[1:]
            key = (function, *map(kind, given))
            if key not in found and any(map(differentiable, given)):
                found[key] = (function, tree_map(detached, given))
            return forward(*args)

        return staticmethod(passing)

    before = [(function, function.forward, function.__dict__.get("forward")) for function in functions]
    for function, forward, _ in before:
        function.forward = recording(function, forward)  # apply itself may have been taken off the class long ago
    try:
        yield found
    finally:
        for function, _, own in before:
            if own is None:
                del function.forward
            else:
                function.forward = own


def differentiable(leaf: Any) -> bool:
    """Whether a leaf is a tensor with a gradient."""
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad


def detached(leaf: Any) -> Any:
    """A copy of a tensor without its graph; whatever else is itself."""
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, torch.Tensor) else leaf


def kind(argument: Any) -> Any:
    """What two arguments have in common that a Function treats alike."""
    if isinstance(argument, torch.Tensor):
        return argument.shape, argument.dtype, argument.requires_grad
    return argument if isinstance(argument, (bool, int, float, str, type(None))) else type(argument)


def judged(function: Any, args: Arguments) -> Literal["right", "wrong", "unsure"]:
    """What can be told of a Function around arguments that it had; in float64 where it takes that, to see more."""
    own = next(a.dtype for a in args if differentiable(a))
    own = own if own in STEPS else torch.float64
    found = []
    for dtype in dict.fromkeys((own, torch.float64)):
        try:
            found.append(Beside(function, args, dtype))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever it raises where it is called alone, or in another dtype
            continue
    if not found:
        return "unsure"
    beside = found[-1] if all(map(alike, found[-1].outputs, found[0].outputs)) else found[0]
    try:
        return "wrong" if beside.second() else "unsure" if beside.first() else "right"
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of the backward pass
        return "unsure"


def alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether outputs in two dtypes are the same, so that a kernel made for one of them has not misread the other."""
    difference = found.detach().to(expected.dtype) - expected.detach()
    return bool(difference.norm() <= 0.01 * expected.detach().norm())


class Beside:
    """A Function as ``backward(x, g)``, around the arguments that it had.

    Inputs move in proportion to themselves, so that what is zero (where a rectifier has its kink) stays zero. Those to
    which its backward gives no gradient are constants of it, and stay, too.

    Args:
        function: the class.
        args: what it was applied to.
        dtype: in which it is called, float32 or float64.
    """

    def __init__(self, function: Any, args: Arguments, dtype: torch.dtype) -> None:
        self._function, self._dtype = function, dtype
        self._args = tree_map(self._cast, args)
        self._places = [k for k, a in enumerate(self._args) if differentiable(a)]
        self._generators: dict[torch.device, torch.Generator] = {}
        self.inputs, self.outputs = self.applied(0.0, None)
        self.cotangents = [self._like(self.outputs) for _ in range(PROBES)]
        self.pulled = self.pull(self.cotangents[0])
        self.directions = tuple(
            torch.zeros_like(x) if g is None else around(x, self._like([x])[0])
            for x, g in zip(self.inputs, self.pulled, strict=True)
        )

    def _cast(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        return leaf.detach().to(self._dtype).requires_grad_(leaf.requires_grad)

    def _like(self, tensors: Sequence[torch.Tensor]) -> Tensors:
        return tuple(
            torch.randn(t.shape, generator=self._drawn_on(t.device), dtype=t.dtype, device=t.device) for t in tensors
        )

    def _drawn_on(self, device: torch.device) -> torch.Generator:
        return self._generators.setdefault(device, torch.Generator(device).manual_seed(0))

    def applied(self, step: float, directions: Tensors | None) -> tuple[Tensors, Tensors]:
        """Inputs that have moved, and differentiable outputs there; random numbers are the same each time."""
        args = list(tree_map(detached, self._args))
        for k, place in enumerate(self._places):
            if directions is not None:
                args[place] = (args[place].detach() + step * directions[k]).requires_grad_()
        inputs = tuple(args[place] for place in self._places)
        with forked(inputs), torch.enable_grad():
            out = tree_leaves(self._function.apply(*(1 * a if k in self._places else a for k, a in enumerate(args))))
        return inputs, tuple(o for o in out if differentiable(o))

    def pull(self, cotangents: Tensors, at: tuple[Tensors, Tensors] | None = None, graph: bool = False) -> Any:
        """What the backward makes of cotangents of the outputs, at the arguments themselves or elsewhere."""
        inputs, outputs = at or (self.inputs, self.outputs)
        with forked(inputs):
            return torch.autograd.grad(
                outputs, inputs, cotangents, retain_graph=True, create_graph=graph, allow_unused=True
            )

    def first(self) -> bool:
        """Whether the backward is seen not to be the derivative of the forward."""
        found = torch.stack([dot(self.pull(g), self.directions) for g in self.cotangents])

        def difference(step: float) -> torch.Tensor:
            ends = [self.applied(sign * step, self.directions)[1] for sign in (1, -1)]
            return torch.stack([(dot(ends[0], g) - dot(ends[1], g)) / (2 * step) for g in self.cotangents])

        size = torch.stack([dot(self.outputs, g, absolute=True) for g in self.cotangents])
        differ = apart(found, difference, size, self._dtype)
        return differ and not self._rounds(difference)

    def _rounds(self, difference: Any) -> bool:
        """Whether the forward is constant between jumps (straight-through), and has nothing but its inputs to read."""
        constants = [a for a in tree_leaves([a for k, a in enumerate(self._args) if k not in self._places])]
        flat = not any(difference(step).any() for step in STEPS[self._dtype][:2])
        return flat and not any(isinstance(a, torch.Tensor) for a in constants)

    def second(self) -> bool:
        """Whether derivatives of the backward are seen not to be its differences, along inputs or along cotangents."""
        g, dg = tuple(t.clone().requires_grad_() for t in self.cotangents[0]), self.cotangents[1]
        base = self.pull(g, graph=True)
        probes = [weighed(self._like(filled(base, self.inputs)), base) for _ in range(PROBES)]
        along_inputs, along_cotangents = [], []
        for probe in probes:
            value = dot(base, probe)
            found: Any = [None] * (len(self.inputs) + len(g))
            if value.requires_grad:
                with forked(self.inputs):
                    found = torch.autograd.grad(value, [*self.inputs, *g], retain_graph=True, allow_unused=True)
            along_inputs.append(dot(found[: len(self.inputs)], self.directions))
            along_cotangents.append(dot(found[len(self.inputs) :], dg))

        def of_inputs(step: float) -> torch.Tensor:
            ends = [self.pull(self.cotangents[0], self.applied(sign * step, self.directions)) for sign in (1, -1)]
            return torch.stack([(dot(ends[0], p) - dot(ends[1], p)) / (2 * step) for p in probes])

        def of_cotangents(step: float) -> torch.Tensor:
            ends = [self.pull(moved(self.cotangents[0], dg, sign * step)) for sign in (1, -1)]
            return torch.stack([(dot(ends[0], p) - dot(ends[1], p)) / (2 * step) for p in probes])

        size = torch.stack([dot(self.pulled, p, absolute=True) for p in probes])
        pairs = ((along_inputs, of_inputs), (along_cotangents, of_cotangents))
        return any(apart(torch.stack(found), difference, size, self._dtype) for found, difference in pairs)


def apart(found: torch.Tensor, difference: Any, size: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether derivatives differ from differences by more than `SHARE`, and than these tell: kinks, and rounding."""
    for long, short in zip(STEPS[dtype][::2], STEPS[dtype][1::2], strict=True):
        far, near = difference(long), difference(short)
        doubt = 3 * (far - near).norm() + 100 * torch.finfo(dtype).eps * size.norm() / short
        distance, allowed = (found - near).norm(), SHARE * torch.maximum(found.norm(), near.norm())
        if distance <= allowed:
            return False
        if distance > allowed + doubt:
            return True
    return False


def dot(first: Sequence[torch.Tensor | None], second: Sequence[torch.Tensor], absolute: bool = False) -> torch.Tensor:
    """The sum of products of two lists of tensors, real and in float64; ``None`` is zero."""
    total = torch.zeros((), dtype=torch.float64, device=second[0].device)
    for a, b in zip(first, second, strict=True):
        if a is not None:
            product = (a * b.conj()).real
            total = total + (product.abs() if absolute else product).sum(dtype=torch.float64)
    return total


def around(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Noise in proportion to a tensor, or as it is where all is zero."""
    moved = x.detach() * noise
    return moved if bool(moved.any()) else noise


def weighed(noise: Tensors, like: Sequence[torch.Tensor | None]) -> Tensors:
    """Noise that weighs tensors of all sizes alike."""
    sizes = [None if t is None else t.detach().abs().pow(2).mean().sqrt() for t in like]
    return tuple(n if s is None or s == 0 else n / s for n, s in zip(noise, sizes, strict=True))


def moved(tensors: Tensors, directions: Tensors, step: float) -> Tensors:
    """Tensors a step further."""
    return tuple(t + step * d for t, d in zip(tensors, directions, strict=True))


def filled(tensors: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Zeros in place of what is not there."""
    return [torch.zeros_like(x) if t is None else t for t, x in zip(tensors, like, strict=True)]


@contextmanager
def forked(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """The same random numbers in each block, which the generators outside know nothing of."""
    devices = {t.device.index or 0 for t in tensors if t.is_cuda}
    with torch.random.fork_rng([*devices]):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[d] for d in devices)):
            generator.manual_seed(0)  # torch.manual_seed writes a list of what it shall do once there is a GPU
        yield
