"""Derivatives of batch norm, exact to second order: reverse, forward, and either over the other.

``BatchNorm`` → ``BatchNormGradient`` → ``BatchNormProduct``, each the derivative of the one before. With J the
Jacobian of the forward pass and g a cotangent, the gradient is ``Jᵀg``; along u, its tangent in (x, weight) is the
Hessian of ⟨g, out⟩ times u, and its adjoint in g is ``J u``: ``BatchNormTangent``. The Hessian is symmetric, so that
reverse over reverse and forward over reverse meet in one kernel. The last of the chain refuses to be differentiated.
The mask of the ReLU is locally constant, and so is ``out``, which stands for it. Without a ReLU nobody reads ``out``:
x stands in its place, so that an activation after it may overwrite the output.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bissl_fast.ops.batch_norm import across_ranks
from bissl_fast.ops.collectives import Ranks
from bissl_fast.ops.contrastive import refuse_forward_over_forward
from bissl_fast.ops.functions import TwiceDifferentiable

ELSE = 'Use `with bissl_fast.ops.backend("reference"):` around it, which PyTorch differentiates in any mode.'
THIRD_ORDER = f"The fused batch norm is differentiable twice, and a third derivative was asked for. {ELSE}"
FORWARD_TWICE = (
    "The fused batch norm cannot be differentiated by forward mode over forward mode: PyTorch drops the outer tangent "
    f"inside a custom function, and the result would be zero. Put `torch.func.jvp` over `torch.func.grad`. {ELSE}"
)
NO_VMAP = f"The fused batch norm has no batching rule for vmap, which torch.func.hessian and jacrev use. {ELSE}"


PREFIX = {"cpp": "batch_norm_", "triton": "triton_batch_norm_"}
"""Of the ops of each backend that has batch norm."""


def kernel(backend: str, name: str, ranks: Ranks | None = None) -> Callable[..., Any]:
    """A raw kernel of a backend, see :mod:`bissl_fast.ops.batch_norm.schemas`, or what stands for it across ranks."""
    if ranks is not None:
        return partial(getattr(across_ranks, name), ranks, partial(kernel, backend))
    op: Callable[..., Any] = getattr(torch.ops.bissl_fast, PREFIX[backend] + name)
    return op


def has_kernels(backend: str) -> bool:
    """Whether the raw kernels of a backend are registered; a binary built from older sources lacks them."""
    return hasattr(torch.ops.bissl_fast, f"{PREFIX[backend]}tangent_moments")


class BatchNorm(TwiceDifferentiable):
    """``(x, weight, bias, residual) -> out``, with mean and rstd as further outputs."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        groups: int,
        relu: bool,
        eps: float,
        backend: str,
        ranks: Ranks | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, rstd = kernel(backend, "fwd", ranks)(x, weight, bias, residual, groups, relu, eps)
        return out, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, residual, groups, relu, _, backend, ranks = inputs
        out, mean, rstd = output
        saved = (x, weight, out if relu else x, mean, rstd)
        ctx.settings, ctx.with_residual = (groups, relu, backend, ranks), residual is not None
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * 9
        dx, dresidual, dweight, dbias, *_ = BatchNormGradient.apply(
            grad_out, *ctx.saved_tensors, *ctx.settings, ctx.with_residual
        )
        return dx, dweight, dbias, dresidual if ctx.with_residual else None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, None, None]:
        refuse_forward_over_forward(FORWARD_TWICE)
        x_t, weight_t, bias_t, residual_t = tangents[:4]
        x, *_ = ctx.saved_tensors
        along = (in_dtype_of(x, x_t), weight_t, bias_t, in_dtype_of(x, residual_t))
        out_t = BatchNormTangent.apply(*along, *ctx.saved_tensors, *ctx.settings)
        return out_t, None, None


class BatchNormTangent(TwiceDifferentiable):
    """``J u`` for ``u = (x_t, weight_t, bias_t, residual_t)``; an absent one is zero."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(
        x_t: Tensor | None,
        weight_t: Tensor | None,
        bias_t: Tensor | None,
        residual_t: Tensor | None,
        x: Tensor,
        weight: Tensor,
        out: Tensor,
        mean: Tensor,
        rstd: Tensor,
        groups: int,
        relu: bool,
        backend: str,
        ranks: Ranks | None,
    ) -> Tensor:
        out_t: Tensor = kernel(backend, "jvp", ranks)(
            x_t, x, out, weight, mean, rstd, weight_t, bias_t, residual_t, groups, relu
        )
        return out_t

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, groups, relu, backend, ranks = inputs
        ctx.settings = (groups, relu, backend, ranks)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 13
        tangents, saved = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        x_t, weight_t, _, residual_t = tangents
        with_residual = residual_t is not None
        d_x_t, d_residual_t, d_weight_t, d_bias_t, *sums = BatchNormGradient.apply(
            grad, *saved, *ctx.settings, with_residual
        )
        dx, _, dweight, _ = BatchNormProduct.apply(None, x_t, weight_t, grad, *saved, *ctx.settings, False, *sums)
        found = (d_x_t, d_weight_t, d_bias_t, d_residual_t)
        of_tangents = (d if t is not None else None for d, t in zip(found, tangents, strict=True))
        return *of_tangents, dx, dweight, *(None,) * 7

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> Tensor:
        refuse_forward_over_forward(FORWARD_TWICE)
        raise NotImplementedError(THIRD_ORDER)


class BatchNormGradient(TwiceDifferentiable):
    """``Jᵀ grad_out``: gradients of x, residual, weight and bias. Sums per group follow, over ranks also own ones."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(
        grad_out: Tensor,
        x: Tensor,
        weight: Tensor,
        out: Tensor,
        mean: Tensor,
        rstd: Tensor,
        groups: int,
        relu: bool,
        backend: str,
        ranks: Ranks | None,
        with_residual: bool,
    ) -> tuple[Tensor, ...]:
        dx, dresidual, *sums = kernel(backend, "bwd", ranks)(
            grad_out, x, out, weight, mean, rstd, groups, relu, with_residual
        )  # over all ranks first, and last this one's own
        return dx, dresidual, *over_groups(sums[-1], weight), *sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, groups, relu, backend, ranks, with_residual = inputs
        _, dresidual, _, _, *sums = output
        ctx.settings, ctx.with_residual = (groups, relu, backend, ranks), with_residual
        ctx.mark_non_differentiable(*sums, *(() if with_residual else (dresidual,)))
        ctx.save_for_backward(*tensors, *sums)
        ctx.save_for_forward(*tensors, *sums)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        u_x, u_residual, u_weight, u_bias = cotangents[:4]
        if all(u is None for u in cotangents[:4]):
            return (None,) * 11
        grad_out, *saved = ctx.saved_tensors[:6]
        sums = ctx.saved_tensors[6:]
        d_grad_out = BatchNormTangent.apply(u_x, u_weight, u_bias, u_residual, *saved, *ctx.settings)
        dx = dweight = None
        if u_x is not None or u_weight is not None:
            dx, _, dweight, _ = BatchNormProduct.apply(
                None, u_x, u_weight, grad_out, *saved, *ctx.settings, False, *sums
            )
        return d_grad_out, dx, dweight, *(None,) * 8

    @staticmethod
    def jvp(
        ctx: Any, grad_out_t: Tensor | None, x_t: Tensor | None, weight_t: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        refuse_forward_over_forward(FORWARD_TWICE)
        saved, sums = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        along = (in_dtype_of(saved[0], grad_out_t), in_dtype_of(saved[0], x_t), weight_t)
        tangents = BatchNormProduct.apply(*along, *saved, *ctx.settings, ctx.with_residual, *sums)
        dx_t, dresidual_t, dweight_t, dbias_t = tangents
        return dx_t, dresidual_t if ctx.with_residual else None, dweight_t, dbias_t, *(None,) * len(sums)


class BatchNormProduct(TwiceDifferentiable):
    """The tangent of ``BatchNormGradient`` along (grad_out, x, weight)."""

    no_vmap = NO_VMAP

    @staticmethod
    def forward(
        grad_out_t: Tensor | None,
        x_t: Tensor | None,
        weight_t: Tensor | None,
        grad_out: Tensor,
        x: Tensor,
        weight: Tensor,
        out: Tensor,
        mean: Tensor,
        rstd: Tensor,
        groups: int,
        relu: bool,
        backend: str,
        ranks: Ranks | None,
        with_residual: bool,
        sums: Tensor,
        *own_sums: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        saved = (grad_out, x, out, weight, mean, rstd, sums)
        dx_t, dresidual_t, sums_t = kernel(backend, "bwd_jvp", ranks)(
            grad_out_t, x_t, weight_t, *saved, groups, relu, with_residual, *own_sums
        )
        return dx_t, dresidual_t, *over_groups(sums_t, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(THIRD_ORDER)

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(THIRD_ORDER)


def in_dtype_of(primal: Tensor, tangent: Tensor | None) -> Tensor | None:
    """The tangent as the kernels take it: PyTorch's layers in bfloat16 give float32 tangents where weights move."""
    return None if tangent is None else tangent.to(primal.dtype)


def over_groups(sums: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sums ``(2, G, C)`` -> the gradients ``(C,)`` of weight and bias."""
    sum_g, sum_gx = sums.unbind()
    return sum_gx.sum(0).to(weight.dtype), sum_g.sum(0).to(weight.dtype)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    groups: int,
    relu: bool,
    eps: float,
    backend: str,
    ranks: Ranks | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(out, mean, rstd)`` through the kernels of ``backend``; arguments are already checked."""
    if torch.compiler.is_dynamo_compiling():
        allow_in_graph()
    return apply_batch_norm(x, weight, bias, residual, groups, relu, eps, backend, ranks)


def apply_batch_norm(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What a compiled graph holds as one call."""
    out, mean, rstd = BatchNorm.apply(*arguments)
    return out, mean, rstd


def allow_in_graph() -> bool:
    """Make Dynamo pass ``apply_batch_norm`` on: it cannot trace a custom jvp, but AOTAutograd below it can."""
    torch.compiler.allow_in_graph(apply_batch_norm)  # type: ignore[no-untyped-call]
    return True


# Run, not traced, when Dynamo meets it: as by torch.compiler.assume_constant_result, whose import is slow.
allow_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]
