"""Raw batch-norm kernels: what a backend implements, and how each op is declared to PyTorch.

One op is batch norm over the batch and all spatial axes, an optional residual and an optional ReLU; the batch is
cut into G equal groups (views, stored batches) with statistics of their own. With M values per group and channel,

    xhat = (x − mean) · rstd,   rstd = 1/sqrt(var + eps),   out = relu(weight · xhat + bias + residual).

x is ``(N, C, *spatial)``, or ``(N, C)``; weight and bias are ``(C,)``. Whatever is shaped like x is returned in
x's layout: channels-last where x is that and not contiguous, contiguous otherwise. *Statistics* are ``(G, C)``,
contiguous and *wide*: float64 for float64 inputs, float32 for all others. The mask of the ReLU is ``out > 0``, a NaN
passes.

``fwd -> (out, mean, rstd)`` and ``apply -> out``
    apply gives the bits of fwd's out again from x and its statistics.
``bwd -> (dx, dresidual, sums)`` and ``bwd_apply -> (dx, dresidual)``
    With g = mask · grad_out: dx = weight · rstd · (g − sum_g/M − xhat · sum_gx/M), where sum_g = Σ g and
    sum_gx = Σ g · xhat, sums ``(2, G, C)``, are per group what the gradients of bias and weight are in total.
    dresidual = g, or empty ``(0,)`` without a residual. bwd_apply takes the sums as given.
``jvp -> out_t``
    With a = mean(x_t), s = mean(xhat · x_t): xhat_t = rstd · (x_t − a − xhat · s), rstd_t = −rstd² · s and
    out_t = mask · (weight_t · xhat + weight · xhat_t + bias_t + residual_t). An absent tangent is zero.
``bwd_jvp -> (dx_t, dresidual_t, sums_t)``
    The tangents of bwd's outputs along grad_out_t, x_t and weight_t.

Where ``ranks`` processes with as many values each are normalised together, M is that of all, and the kernels are given
what would otherwise be formed inside: this process's own sums are made apart, for a collective to join.

``statistics -> (2, G, C)``
    Mean and variance of this process's values; fwd takes ``every`` ``(2R, G, C)``, those of all ranks in turn.
``moments -> (2, G, C)``
    Σ v and Σ v · xhat, v being masked with ``relu``: bwd's own sums, and what jvp takes of x_t, in sum over the ranks.
``tangent_moments -> (5, G, C)``
    Σ x_t, Σ x_t · xhat, Σ g · x_t, Σ g_t and Σ g_t · xhat; bwd_jvp takes their sum over the ranks and ``own_moments``,
    with the sums of bwd likewise, and gives the tangents of this process's own sums.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bissl_fast.ops import native
from bissl_fast.ops.batch_norm.outputs import empty_like, empty_planes, empty_residual, empty_statistics

ARGUMENTS = {
    "statistics": "(Tensor x, int groups) -> Tensor",
    "fwd": "(Tensor x, Tensor weight, Tensor bias, Tensor? residual, int groups, bool relu, float eps,"
    " Tensor? every=None) -> (Tensor, Tensor, Tensor)",
    "apply": "(Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor mean, Tensor rstd, int groups, bool relu)"
    " -> Tensor",
    "moments": "(Tensor v, Tensor x, Tensor out, Tensor mean, Tensor rstd, int groups, bool relu) -> Tensor",
    "bwd": "(Tensor grad_out, Tensor x, Tensor out, Tensor weight, Tensor mean, Tensor rstd, int groups, bool relu,"
    " bool with_residual) -> (Tensor, Tensor, Tensor)",
    "bwd_apply": "(Tensor grad_out, Tensor x, Tensor out, Tensor weight, Tensor mean, Tensor rstd, Tensor sums,"
    " int groups, bool relu, bool with_residual, int ranks=1) -> (Tensor, Tensor)",
    "jvp": "(Tensor? x_t, Tensor x, Tensor out, Tensor weight, Tensor mean, Tensor rstd, Tensor? weight_t,"
    " Tensor? bias_t, Tensor? residual_t, int groups, bool relu, Tensor? moments=None, int ranks=1) -> Tensor",
    "tangent_moments": "(Tensor? grad_out_t, Tensor? x_t, Tensor grad_out, Tensor x, Tensor out, Tensor mean,"
    " Tensor rstd, int groups, bool relu) -> Tensor",
    "bwd_jvp": "(Tensor? grad_out_t, Tensor? x_t, Tensor? weight_t, Tensor grad_out, Tensor x, Tensor out,"
    " Tensor weight, Tensor mean, Tensor rstd, Tensor sums, int groups, bool relu, bool with_residual,"
    " Tensor? own_sums=None, Tensor? moments=None, Tensor? own_moments=None, int ranks=1)"
    " -> (Tensor, Tensor, Tensor)",
}
"""Of every kernel, by the name that follows ``batch_norm_`` (C++; csrc/registration.cpp says the same) or
``triton_batch_norm_``."""


def fake_statistics(x: Tensor, groups: int) -> Tensor:
    """Shape and dtype of ``statistics``."""
    return empty_planes(x, 2, groups)


def fake_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes and dtypes of ``fwd``."""
    return empty_like(x), empty_statistics(x, groups), empty_statistics(x, groups)


def fake_apply(x: Tensor, *_: Any) -> Tensor:
    """Shape and dtype of ``apply``."""
    return empty_like(x)


def fake_moments(v: Tensor, x: Tensor, out: Tensor, mean: Tensor, rstd: Tensor, groups: int, relu: bool) -> Tensor:
    """Shape and dtype of ``moments``."""
    return empty_planes(x, 2, groups)


def fake_bwd(
    grad_out: Tensor,
    x: Tensor,
    out: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    relu: bool,
    with_residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes and dtypes of ``bwd``."""
    return empty_like(x), empty_residual(x, with_residual), empty_planes(x, 2, groups)


def fake_bwd_apply(
    grad_out: Tensor,
    x: Tensor,
    out: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    groups: int,
    relu: bool,
    with_residual: bool,
    ranks: int = 1,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of ``bwd_apply``."""
    return empty_like(x), empty_residual(x, with_residual)


def fake_jvp(x_t: Tensor | None, x: Tensor, *_: Any) -> Tensor:
    """Shape and dtype of ``jvp``."""
    return empty_like(x)


def fake_tangent_moments(
    grad_out_t: Tensor | None,
    x_t: Tensor | None,
    grad_out: Tensor,
    x: Tensor,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    relu: bool,
) -> Tensor:
    """Shape and dtype of ``tangent_moments``."""
    return empty_planes(x, 5, groups)


def fake_bwd_jvp(
    grad_out_t: Tensor | None,
    x_t: Tensor | None,
    weight_t: Tensor | None,
    grad_out: Tensor,
    x: Tensor,
    out: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    groups: int,
    relu: bool,
    with_residual: bool,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes and dtypes of ``bwd_jvp``."""
    return empty_like(x), empty_residual(x, with_residual), empty_planes(x, 2, groups)


FAKES: dict[str, Callable[..., Any]] = {
    "statistics": fake_statistics,
    "fwd": fake_fwd,
    "apply": fake_apply,
    "moments": fake_moments,
    "bwd": fake_bwd,
    "bwd_apply": fake_bwd_apply,
    "jvp": fake_jvp,
    "tangent_moments": fake_tangent_moments,
    "bwd_jvp": fake_bwd_jvp,
}

ADVICE = "Call bissl_fast.ops.batch_norm_act, which is differentiable twice."


def triton_kernel(name: str) -> Callable[..., Any]:
    """A kernel that imports Triton when it is first called."""

    def call(*args: Any) -> Any:
        from bissl_fast.ops.triton import batch_norm

        return getattr(batch_norm, name)(*args)

    return call


_LIBRARY = native.register_compiled({f"batch_norm_{name}": fake for name, fake in FAKES.items()}, ADVICE)
native.register_triton(
    _LIBRARY, "triton_batch_norm_", ARGUMENTS, {name: triton_kernel(name) for name in ARGUMENTS}, FAKES, ADVICE
)
