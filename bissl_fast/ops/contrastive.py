"""Derivatives of the contrastive losses, exact to second order: reverse, forward, and forward or reverse over reverse.

Three functions in a chain, each the derivative of the one before, each with a reverse rule and a forward rule:
``ContrastiveLoss`` → ``ContrastiveGradient`` → ``ContrastiveProduct``. Reverse-over-reverse and
forward-over-reverse meet in the same kernel, because the Hessian is symmetric. The last one refuses to be
differentiated: a third order raises, it is never silently zero. So does forward over forward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from bissl_fast.ops.functions import TwiceDifferentiable
from bissl_fast.ops.schemas import NORM_EPS

ELSE = 'Use `with bissl_fast.ops.backend("reference"):` around the loss, which PyTorch differentiates in any mode.'
THIRD_ORDER = (
    "The fused contrastive losses are differentiable twice, and a third derivative was asked for; a derivative of a "
    "Hessian product counts as one, even in the vector, so `torch.autograd.functional.vhp` works and `hvp` does not. "
    f"{ELSE}"
)
FORWARD_TWICE = (
    "The fused contrastive losses cannot be differentiated by forward mode over forward mode: PyTorch drops the outer "
    "tangent inside a custom function, and the result would be zero. Put `torch.func.jvp` over `torch.func.grad`. "
    f"{ELSE}"
)
NO_VMAP = (
    "The fused contrastive losses have no batching rule for vmap, which torch.func.hessian, jacfwd and jacrev use; "
    f"`torch.func.jacrev(..., chunk_size=1)` and `torch.autograd.functional.hessian` need none. {ELSE}"
)


ZERO_ROW = 0.999 / NORM_EPS
"""An inverse norm from here on is that of a row shorter than ε."""


def refuse_forward_over_forward(sentence: str = FORWARD_TWICE) -> None:
    """Raise under two levels of forward mode."""
    levels = torch._C._functorch.get_interpreter_stack() or []
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in levels) > 1:
        raise NotImplementedError(sentence)


class ContrastiveLoss(TwiceDifferentiable):
    """``(z1, z2) -> loss``, with what the derivatives reuse as further outputs."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(z1: Tensor, z2: Tensor, temperature: float, cross_view: bool, backend: str) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = raw(backend, "fwd", z1, z2, temperature, cross_view)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        z1, z2, *ctx.settings = inputs
        _, *reused = output
        ctx.mark_non_differentiable(*reused)
        ctx.save_for_backward(z1, z2, *reused)
        ctx.save_for_forward(z1, z2, *reused)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if cotangent is None:
            return None, None, None, None, None
        grads = ContrastiveGradient.apply(cotangent, *ctx.saved_tensors, *ctx.settings)
        return grads[0], grads[1], None, None, None

    @staticmethod
    def jvp(ctx: Any, t1: Tensor | None, t2: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        refuse_forward_over_forward()
        z1, z2, *reused = ctx.saved_tensors
        one = torch.ones_like(reused[2][0])  # in the dtype of lse
        grads = ContrastiveGradient.apply(one, z1, z2, *reused, *ctx.settings)
        along = sum((g * t).sum(dtype=one.dtype) for g, t in zip(grads, (t1, t2), strict=False) if t is not None)
        return along, None, None, None, None


class ContrastiveGradient(TwiceDifferentiable):
    """``cotangent · dloss/d(z1, z2)``, with the gradient at unit cotangent as a further output."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(
        cotangent: Tensor,
        z1: Tensor,
        z2: Tensor,
        units: Tensor,
        inv_norms: Tensor,
        lse: Tensor,
        kept: Tensor,
        temperature: float,
        cross_view: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        saved = (units, inv_norms, lse, kept)
        if backend == "triton":
            g1, g2, grad, radial = raw(backend, "bwd", cotangent, *saved, z1.dtype, temperature, cross_view)
            return g1, g2, grad, radial
        grad, radial = raw(backend, "bwd", *saved, temperature, cross_view)
        return *halves(cotangent, grad, z1.dtype, inv_norms), grad, radial

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, temperature, cross_view, backend = inputs
        _, _, *reused = output
        ctx.settings = (temperature, cross_view, backend)
        ctx.mark_non_differentiable(*reused)
        ctx.save_for_backward(*tensors, *reused)
        ctx.save_for_forward(*tensors, *reused)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, v1: Tensor | None, v2: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if v1 is None and v2 is None:
            return (None,) * 10
        slope, h1, h2 = ContrastiveProduct.apply(*pair(ctx, v1, v2), *ctx.saved_tensors, *ctx.settings)
        return slope, h1, h2, *(None,) * 7

    @staticmethod
    def jvp(ctx: Any, ct: Tensor | None, t1: Tensor | None, t2: Tensor | None, *_: None) -> tuple[Any, ...]:
        refuse_forward_over_forward()
        _, z1, _, _, inv_norms, _, _, grad, _ = ctx.saved_tensors
        along: list[Tensor] = []
        if ct is not None:
            along = [*halves(ct, grad, z1.dtype, inv_norms)]
        if t1 is not None or t2 is not None:
            _, *products = ContrastiveProduct.apply(*pair(ctx, t1, t2), *ctx.saved_tensors, *ctx.settings)
            along = [a + p for a, p in zip(along, products, strict=True)] if along else products
        return *along, None, None


class ContrastiveProduct(TwiceDifferentiable):
    """``(⟨grad, v⟩, cotangent · Hessian · v)`` along ``v = (v1, v2)``."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(
        v1: Tensor,
        v2: Tensor,
        cotangent: Tensor,
        z1: Tensor,
        z2: Tensor,
        units: Tensor,
        inv_norms: Tensor,
        lse: Tensor,
        kept: Tensor,
        grad: Tensor,
        radial: Tensor,
        temperature: float,
        cross_view: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        saved = (units, inv_norms, lse, kept, grad, radial)
        if backend == "triton":
            slope, h1, h2 = raw(backend, "bwd_bwd", cotangent, v1, v2, *saved, temperature, cross_view)
            return slope, h1, h2
        v = torch.cat([v1, v2]).to(grad.dtype)  # (2B, D)
        product = raw(backend, "bwd_bwd", *saved, v, temperature, cross_view)
        return (grad * v).sum(), *halves(cotangent, product, z1.dtype, inv_norms)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(THIRD_ORDER)

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(THIRD_ORDER)


def contrastive_loss(z1: Tensor, z2: Tensor, temperature: float, cross_view: bool, backend: str) -> Tensor:
    """The loss through the kernels of ``backend``; arguments are already checked."""
    if torch.compiler.is_dynamo_compiling():
        allow_in_graph()
    return apply_loss(z1, z2, temperature, cross_view, backend)


def apply_loss(z1: Tensor, z2: Tensor, temperature: float, cross_view: bool, backend: str) -> Tensor:
    """What a compiled graph holds as one call."""
    loss: Tensor = ContrastiveLoss.apply(z1, z2, temperature, cross_view, backend)[0]
    return loss


def allow_in_graph() -> bool:
    """Make Dynamo pass ``apply_loss`` on: it cannot trace a custom jvp, but AOTAutograd below it can."""
    torch.compiler.allow_in_graph(apply_loss)  # type: ignore[no-untyped-call]
    return True


# Run, not traced, when Dynamo meets it: as by torch.compiler.assume_constant_result, whose import is slow.
allow_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def raw(backend: str, name: str, *arguments: Any) -> Any:
    """A raw kernel of a backend, past its autograd kernel, which only refuses, and which no function here needs.

    ``cpp`` and ``cuda`` share their ops, and the device tells which runs.
    """
    prefix = "triton_contrastive_" if backend == "triton" else "contrastive_"
    op = getattr(torch.ops.bissl_fast, prefix + name).default
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def halves(factor: Tensor, stacked: Tensor, dtype: torch.dtype, inv_norms: Tensor) -> tuple[Tensor, Tensor]:
    """``factor`` times a wide ``(2B, D)`` -> two ``(B, D)`` in the dtype of the embeddings.

    The gradient of a zero row has a factor 1/ε, which float16 does not hold: there it saturates, to stay finite.
    Elsewhere an overflow is infinite, as gradient scalers want to see it.
    """
    first, second = (factor * half for half in stacked.chunk(2))  # no views of one tensor: forward mode refuses them
    if dtype == torch.float16:
        limit = torch.finfo(dtype).max
        zero1, zero2 = (inv_norms >= ZERO_ROW).unsqueeze(1).chunk(2)
        first = torch.where(zero1, first.clamp(-limit, limit), first)
        second = torch.where(zero2, second.clamp(-limit, limit), second)
    return first.to(dtype), second.to(dtype)


def pair(ctx: FunctionCtx, v1: Tensor | None, v2: Tensor | None) -> tuple[Tensor, Tensor]:
    """Replace an absent half of a tangent by zeros."""
    _, z1, z2, *_ = ctx.saved_tensors  # type: ignore[attr-defined]
    return torch.zeros_like(z1) if v1 is None else v1, torch.zeros_like(z2) if v2 is None else v2
