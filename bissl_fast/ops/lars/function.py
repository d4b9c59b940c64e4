"""One LARS step of many tensors: in one call for those that the kernels take, one by one for the rest."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from bissl_fast.ops.backend import choose_compiled
from bissl_fast.ops.lars import reference, schemas  # noqa: F401
from bissl_fast.ops.lars.reference import LarsSettings

Trio = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # a tensor, its momentum, its gradient


def lars_step(
    weights: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    settings: LarsSettings,
) -> None:
    """One step of LARS, in place on weights and momenta. For the formula see :class:`bissl_fast.training.lars.LARS`.

    Tensors in float32 or float64 that are contiguous or channels last, their momentum and gradient like them, go
    through the compiled kernels together; what these do not take (sparse gradients, subclasses, mixed dtypes, gaps, a
    learning rate that is a tensor) goes through plain PyTorch one by one. Call it under ``torch.no_grad()``.

    Args:
        weights: tensors of any shapes.
        momenta: one per tensor, of its shape.
        gradients: one per tensor, of its shape; left as they are.
        settings: numbers of the step.

    Raises:
        ValueError: for lists of different lengths.
    """
    trios = list(zip(weights, momenta, gradients, strict=True))
    together, alone = divide(trios) if takes(settings, weights) else ([], trios)
    for trio in alone:
        reference.lars_step(*trio, settings)
    lr, weight_decay, momentum, trust_coefficient, exclude_1d = settings
    for group in together:
        if choose_compiled(group[0][0], "The LARS step runs") == "reference":
            for trio in group:
                reference.lars_step(*trio, settings)
        else:
            lists = (list(tensors) for tensors in zip(*group, strict=True))
            torch.ops.bissl_fast.lars_step(*lists, exclude_1d, lr, weight_decay, momentum, trust_coefficient)


def takes(settings: LarsSettings, weights: Sequence[torch.Tensor]) -> bool:
    """Whether no setting is a tensor, which the kernels would wait for, and no weight is stepped twice."""
    starts = [w.data_ptr() for w in weights if is_plain(w) and w.numel() > 0]
    return len(set(starts)) == len(starts) and not any(isinstance(value, torch.Tensor) for value in settings)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is dense and of no subclass that would want to see what is done to it."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided


def divide(trios: Sequence[Trio]) -> tuple[list[list[Trio]], list[Trio]]:
    """What the kernels take, a list per device and dtype, and the rest."""
    together: dict[tuple[torch.device, torch.dtype], list[Trio]] = defaultdict(list)
    alone = []
    for trio in trios:
        if fits(trio):
            together[trio[0].device, trio[0].dtype].append(trio)
        else:
            alone.append(trio)
    return list(together.values()), alone


def fits(trio: Trio) -> bool:
    """Whether the kernels take a tensor, its momentum and its gradient."""
    weight = trio[0]
    return (
        weight.dtype in (torch.float32, torch.float64)
        and all(is_plain(t) for t in trio)
        and all(t.dtype == weight.dtype and t.device == weight.device and t.shape == weight.shape for t in trio)
        and (
            all(t.is_contiguous() for t in trio)
            or (weight.ndim == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in trio))
        )
    )
