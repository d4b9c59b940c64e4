"""Several batches through a network in one pass, as if they came one by one."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from bissl_fast.models.separate import keeps_apart
from bissl_fast.ops.batch_norm import statistics_groups
from bissl_fast.ops.batch_norm.module import mixing


def forward_each(network: nn.Module, batches: Sequence[torch.Tensor], chunk: int | None = None) -> tuple[Any, ...]:
    """The network's output for each batch, with batch-norm statistics of the batch's own, or of each chunk of it.

    In one pass for each run of batches that are alike, which is faster (docs/bilevel.md), where nothing in the network
    would mix them or draws random numbers; else one after the other. Whether it would is tried once with a few images
    of noise. Running statistics move batch after batch in either case.

    Args:
        network: takes ``(N, …)`` and gives ``(N, …)``, or tuples of such.
        batches: tensors ``(N, …)``, of one or of several shapes.
        chunk: images that share statistics, the first ``chunk`` of each batch, then the next; running statistics move
            chunk after chunk, batch after batch in each. Left out: all of a batch do. The chunks pass together, too.

    Returns:
        One output per batch.

    Example:
        >>> first, second = forward_each(nn.Linear(3, 2), (torch.zeros(4, 3), torch.ones(4, 3)))
    """
    if chunk is not None:
        parts = [part for of_each in in_chunks(batches, chunk) for part in of_each]
        made = forward_each(network, parts)
        return tuple(joined(made[k :: len(batches)]) for k in range(len(batches)))
    apart = mixing(network) is not None
    outputs: list[Any] = []
    for _, run in groupby(batches, key=lambda batch: (batch.shape, batch.dtype)):
        alike = list(run)
        if apart or len(alike) == 1 or not keeps_apart(network, alike[0]):
            outputs += [network(batch) for batch in alike]
        else:
            outputs += _in_one_pass(network, alike)
    return tuple(outputs)


def in_chunks(batches: Sequence[torch.Tensor], size: int) -> list[tuple[torch.Tensor, ...]]:
    """The first ``size`` rows of each batch, then the next; the last may be fewer."""
    return list(zip(*(torch.split(batch, size) for batch in batches), strict=True))


def joined(outputs: Sequence[Any]) -> Any:
    """Outputs of chunks as that of their batch: tensors (N, …), or tuples of such, part by part."""
    return tree_map(lambda *parts: torch.cat(parts), *outputs)


def _in_one_pass(network: nn.Module, batches: Sequence[torch.Tensor]) -> list[Any]:
    count = len(batches)
    with statistics_groups(network, count):
        output = network(torch.cat(tuple(batches)))
    chunks = tree_map(lambda tensor: tensor.chunk(count), output)
    if isinstance(output, tuple):
        return [tuple(part[k] for part in chunks) for k in range(count)]
    return list(chunks)
