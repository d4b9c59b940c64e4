"""The loss of a pretext task as products take it: a function of a network and of stored views."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from bissl_fast.bilevel import CompositeLoss
from bissl_fast.models import Network, forward_each
from bissl_fast.pretext.simclr import SimCLR


def pretext_loss(task: SimCLR, forward: Callable[[], AbstractContextManager[Any]] = nullcontext) -> CompositeLoss:
    """``loss(network, views)``, in which batch-norm statistics are a view's own.

    Args:
        task: the pretext task.
        forward: the context of the forward pass, as autocast.
    """

    def outputs(network: Network, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with forward():
            return forward_each(network, views)

    return CompositeLoss(outputs, task.loss)


def mean_pretext_loss(task: SimCLR) -> CompositeLoss:
    """``loss(network, batches)``: the mean over batches of views, all of them in one pass where that can be."""

    def outputs(network: Network, batches: Sequence[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        return forward_each(network, [view for views in batches for view in views])

    def mean(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        losses = [task.loss(outputs[k : k + task.views]) for k in range(0, len(outputs), task.views)]
        return torch.stack(losses).mean()

    return CompositeLoss(outputs, mean)
