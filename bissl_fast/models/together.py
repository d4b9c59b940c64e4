"""Several batches through a network in one pass, as if they came one by one."""

from collections.abc import Sequence

import torch
from torch import nn

from bissl_fast.models.separate import keeps_apart
from bissl_fast.ops.batch_norm import statistics_groups
from bissl_fast.ops.batch_norm.module import mixing


def forward_each(network: nn.Module, batches: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The network's output for each batch, with batch-norm statistics of the batch's own.

    In one pass, which is faster (docs/bilevel.md), where the batches are alike and nothing in the network would mix
    them or draws random numbers; else one after the other. Whether it would is tried once with a few images of noise.
    Running statistics move batch after batch in either case.

    Args:
        network: takes ``(N, …)``.
        batches: tensors ``(N, …)``.

    Returns:
        One output per batch.

    Example:
        >>> first, second = forward_each(nn.Linear(3, 2), (torch.zeros(4, 3), torch.ones(4, 3)))
    """
    first = batches[0]
    alike = all(batch.shape == first.shape and batch.dtype == first.dtype for batch in batches)
    apart = len(batches) == 1 or not alike or mixing(network) is not None
    if apart or not keeps_apart(network, first):
        return tuple(network(batch) for batch in batches)
    with statistics_groups(network, len(batches)):
        outputs: torch.Tensor = network(torch.cat(tuple(batches)))
    return outputs.chunk(len(batches))
