"""One LARS step of tensors that lie spread over ranks, each rank at its own parts."""

from collections.abc import Sequence

import torch

from bissl_fast.ops.collectives import Ranks, summed
from bissl_fast.ops.lars.reference import LarsSettings


def lars_step_of_parts(
    weights: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    settings: LarsSettings,
    ranks: Ranks,
) -> None:
    """:func:`~bissl_fast.ops.lars.lars_step` of the whole tensors: one sum of two numbers for each makes their norms.

    Args:
        weights: this rank's parts, cut along the first axis; it may hold none of a tensor.
        momenta: likewise.
        gradients: likewise, of all ranks' images; left as they are.
        settings: numbers of the step.
        ranks: which call this together, with the parts of the same tensors.
    """
    adapted = [k for k, weight in enumerate(weights) if weight.ndim != 1 or not settings.exclude_1d]
    updates = list(gradients)
    if adapted:
        decayed = {k: gradients[k] + settings.weight_decay * weights[k] for k in adapted}
        both = [tensor for k in adapted for tensor in (weights[k], decayed[k])]
        squares = torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64).square() for t in both])
        of_weights, of_updates = summed(squares, ranks).sqrt().view(-1, 2).unbind(1)
        ratios = settings.trust_coefficient * of_weights / of_updates
        ratios = torch.where((of_weights > 0) & (of_updates > 0), ratios, 1.0)
        for k, ratio in zip(adapted, ratios.unbind(), strict=True):
            updates[k] = decayed[k] * ratio
    for weight, momentum, update in zip(weights, momenta, updates, strict=True):
        momentum.mul_(settings.momentum).add_(update)
        weight.sub_(settings.lr * momentum)
