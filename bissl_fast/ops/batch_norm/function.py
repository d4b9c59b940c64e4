"""Batch norm, residual and ReLU through the best backend, differentiable twice."""

import math

from torch import Tensor

from bissl_fast.ops.backend import DTYPES, REBUILD, choose_among
from bissl_fast.ops.batch_norm import reference
from bissl_fast.ops.batch_norm.derivatives import batch_norm, has_kernels
from bissl_fast.ops.collectives import Ranks
from bissl_fast.ops.schemas import wide_dtype


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    groups: int = 1,
    relu: bool = False,
    eps: float = 1e-5,
    ranks: Ranks | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm by the batch's own statistics, a residual and a ReLU in one pass (Ioffe and Szegedy, 2015).

    ``out = relu(weight · (x − mean) / sqrt(var + eps) + bias + residual)``, where mean and var are those of a channel
    over the batch and all spatial axes. Exact to second order in reverse and forward mode.

    Args:
        x: ``(N, C, *spatial)`` or ``(N, C)``; float16, bfloat16, float32 or float64, any strides.
        weight: ``(C,)``, in the dtype of x or float32.
        bias: ``(C,)``, as weight.
        residual: Added before the ReLU, shaped like x.
        groups: G. The batch axis is cut into G equal parts with statistics of their own, as if each were a batch.
        relu: Whether negative results become zero.
        eps: Added to the variance, positive.
        ranks: Statistics are those of all these ranks' values, of which each has as many as this one; left out: of this
            process's. Derivatives are those of the sum of all ranks' shares (:mod:`bissl_fast.ops.collectives`).

    Returns:
        out: shaped like x, in its dtype; channels-last if x is that, else contiguous.
        mean: ``(G, C)``, float64 for float64 inputs and float32 for all others; has no gradient.
        var: ``(G, C)``, biased; as mean.

    Raises:
        TypeError: Not tensors, or dtypes other than those above.
        ValueError: Shapes that do not fit, fewer than two values per channel and group, two devices, or eps ≤ 0.
        UserError: The backend that was chosen cannot serve these tensors.
        NotImplementedError: A third derivative was asked for.

    Example:
        >>> import torch
        >>> x = torch.randn(8, 3, 4, 4, requires_grad=True)
        >>> out, mean, var = batch_norm_act(x, torch.ones(3), torch.zeros(3), relu=True, groups=2)
    """
    out, mean, rstd = normalised(x, weight, bias, residual, groups=groups, relu=relu, eps=eps, ranks=ranks)
    return out, mean, (rstd.pow(-2) - eps).clamp_min(0)


def normalised(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    *,
    groups: int,
    relu: bool,
    eps: float,
    ranks: Ranks | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`batch_norm_act`, with rstd, which is ``1 / sqrt(var + eps)``, in place of var."""
    check(x, weight, bias, residual, groups, eps, 1 if ranks is None else ranks.size)
    if residual is not None:
        residual = residual.to(x.dtype)
    name = choose_among(x, ("cpp", "triton"), lacks, "Batch norm runs")
    if name == "reference":
        return reference.batch_norm_act(x, weight, bias, residual, groups, relu, eps, ranks)
    return batch_norm(x, weight, bias, residual, groups, relu, eps, name, ranks)


def lacks(name: str, x: Tensor) -> str:
    """What the kernels of a backend cannot serve of tensors like ``x``, empty if nothing."""
    return "" if has_kernels(name) else f"it was built before it had batch norm; {REBUILD}"


def check(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, eps: float, ranks: int
) -> None:
    """Raise unless the arguments of :func:`batch_norm_act` fit each other."""
    tensors = {"x": x, "weight": weight, "bias": bias, **({} if residual is None else {"residual": residual})}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Batch norm takes tensors, found {type(tensor).__name__} as {name}.")
        if tensor.device != x.device:
            raise ValueError(f"Batch norm needs one device, found x on {x.device} and {name} on {tensor.device}.")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"Batch norm takes float16, bfloat16, float32 or float64, found {tensor.dtype} as {name}.")
    if x.dim() < 2 or x.shape[1] == 0:
        raise ValueError(f"Batch norm takes x of shape (N, C, ...) with C > 0, found {tuple(x.shape)}.")
    for name in ("weight", "bias"):
        if tensors[name].shape != x.shape[1:2]:
            found = tuple(tensors[name].shape)
            raise ValueError(f"Batch norm of {x.shape[1]} channels needs a {name} of as many, found {found}.")
        if tensors[name].dtype not in (x.dtype, wide_dtype(x.dtype)):
            raise TypeError(f"Batch norm of {x.dtype} cannot take a {name} of {tensors[name].dtype}.")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"The residual must be shaped like x, {tuple(x.shape)}, found {tuple(residual.shape)}.")
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(f"A batch of {x.shape[0]} cannot be cut into {groups} equal groups.")
    if ranks * (x.shape[0] // groups) * math.prod(x.shape[2:]) < 2:
        raise ValueError(f"Batch norm needs two values per channel and group, found {tuple(x.shape)}, groups={groups}.")
    if not eps > 0:
        raise ValueError(f"eps must be positive, found {eps}.")
