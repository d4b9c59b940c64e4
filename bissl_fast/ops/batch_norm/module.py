"""Batch norm as a layer, and the number of groups that its statistics are taken over."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bissl_fast.errors import UserError
from bissl_fast.ops.batch_norm.function import normalised
from bissl_fast.ops.collectives import Ranks, summed_together


class BatchNormAct(_BatchNorm):
    """``nn.BatchNorm`` of any number of spatial axes, with a residual and a ReLU in the same pass.

    Parameters, buffers and their initialisation are those of ``nn.BatchNorm2d``. In train mode the running statistics
    move as its do; with ``groups`` (see :func:`statistics_groups`) they move group after group, as by separate passes.
    With ``ranks`` (see :func:`share_statistics`) they are those of all ranks' values.
    In eval mode it is plain PyTorch.

    The ReLU is asked for with each call and is no setting of the layer: whoever replaces the layer
    (``nn.SyncBatchNorm.convert_sync_batchnorm``) or folds it into a convolution (``fuse_conv_bn_eval``) loses none.

    Args:
        num_features: C.
        eps: Added to the variance.
        momentum: Weight of a new batch in the running statistics; None: every batch so far weighs the same.
        **options: ``track_running_stats``, ``device`` and ``dtype``, as of ``nn.BatchNorm2d``.

    Example:
        >>> layer = BatchNormAct(3)
        >>> out = layer(torch.randn(8, 3, 4, 4), residual=torch.randn(8, 3, 4, 4), relu=True)
    """

    groups = 1
    ranks: Ranks | None = None

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, **options: Any) -> None:
        super().__init__(num_features, eps, momentum, affine=True, **options)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """``(N, C, *spatial)`` or ``(N, C)``, and a residual of that shape, to the same shape.

        Args:
            x: what is normalised.
            residual: added after it.
            relu: whether negative results become zero.
        """
        if not self.training and self.running_mean is not None:
            return self._by_running_statistics(x, residual, relu)
        out, mean, rstd = normalised(
            x, self.weight, self.bias, residual, groups=self.groups, relu=relu, eps=self.eps, ranks=self.ranks
        )
        if self.training and self.running_mean is not None:
            size = 1 if self.ranks is None else self.ranks.size
            track(Statistics(self, mean, rstd, size * (x.numel() // mean.numel())))
        return out

    def _by_running_statistics(self, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        out = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if residual is not None:
            out += residual
        return out.relu_() if relu else out


class Statistics(NamedTuple):
    """What a layer has found in a batch: mean and rstd ``(G, C)``, and over how many values each."""

    layer: BatchNormAct
    mean: Tensor
    rstd: Tensor
    values: int


_later: ContextVar[list[Statistics] | None] = ContextVar("bissl_fast_statistics", default=None)
"""What the layers have found in the present block of :func:`statistics_at_once`."""


def track(found: Statistics) -> None:
    """Move a layer's running statistics, or leave that to the end of the block."""
    later = None if torch.compiler.is_compiling() else _later.get()
    if later is None:
        move_statistics([found])
        return
    if any(earlier.layer is found.layer for earlier in later):  # a second batch, which comes after the first
        move_statistics(later)
        later.clear()
    later.append(found)


@torch.no_grad()
def move_statistics(found: Sequence[Statistics]) -> None:
    """Move the running statistics of different layers, group after group, in a few launches for all of them."""
    variances = torch._foreach_pow([one.rstd for one in found], -2)
    torch._foreach_sub_(variances, [one.layer.eps for one in found])
    torch._foreach_clamp_min_(variances, 0)
    torch._foreach_mul_(variances, [one.values / (one.values - 1) for one in found])  # unbiased
    alike: dict[tuple[float | None, int], list[tuple[BatchNormAct, Tensor, Tensor]]] = defaultdict(list)
    for (layer, mean, _, _), variance in zip(found, variances, strict=True):
        alike[layer.momentum, len(mean)].append((layer, mean, variance))
    for (momentum, groups), own in alike.items():
        layers = [layer for layer, _, _ in own]
        running: list[Any] = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
        new = [tensor.to(running[0].dtype).unbind() for _, *both in own for tensor in both]
        counters: list[Any] = [layer.num_batches_tracked for layer in layers]
        for group in range(groups):
            torch._foreach_add_(counters, 1)
            moved = [of_groups[group] for of_groups in new]
            if momentum is not None:
                torch._foreach_lerp_(running, moved, momentum)
                continue
            for number, counter in enumerate(counters):  # a mean over all batches so far
                both = slice(2 * number, 2 * number + 2)
                torch._foreach_lerp_(running[both], moved[both], 1.0 / float(counter))


@contextmanager
def statistics_at_once() -> Iterator[None]:
    """Let running statistics move at the end of the block, or when their layer is met again, by the same numbers.

    A few launches then do what are seven for each layer otherwise. Outputs do not depend on it.

    Example:
        >>> network = BatchNormAct(3)
        >>> with statistics_at_once():
        ...     out = network(torch.randn(8, 3, 4, 4))
    """
    found: list[Statistics] = []
    token = _later.set(found)
    try:
        yield
    finally:
        _later.reset(token)
    if found:
        move_statistics(found)


def mixing(module: nn.Module) -> str | None:
    """Name and class of a layer of ``module`` that takes statistics and cannot keep groups apart, if there is one.

    Batch norms, and whatever has running statistics under the usual names; others show themselves in a pass only.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, BatchNormAct):
            continue
        has_running = any(key.startswith("running_") for key, buffer in layer._buffers.items() if buffer is not None)
        is_moving = layer.training and has_running
        if is_moving or (isinstance(layer, _BatchNorm) and (layer.training or not has_running)):
            return f"{name or 'the module'}, a {type(layer).__name__},"
    return None


@contextmanager
def statistics_groups(module: nn.Module, groups: int) -> Iterator[None]:
    """Let every batch norm of ``module`` cut the batch into ``groups`` equal parts inside the block.

    Several views or stored batches, concatenated, then pass at once and give the numbers that they give one by one.

    Args:
        module: All of its batch norms that take statistics from the batch must be :class:`BatchNormAct`.
        groups: G; batches in the block have a multiple of G images.

    Raises:
        UserError: A batch norm of another class would mix the groups, or ``groups`` is not positive.

    Example:
        >>> network, (view_1, view_2) = BatchNormAct(3), torch.randn(2, 8, 3, 4, 4)
        >>> with statistics_groups(network, 2):
        ...     first, second = network(torch.cat([view_1, view_2])).chunk(2)
    """
    if groups < 1:
        raise UserError(f"Statistics are taken over 1 group or more, found {groups}.")
    layers = [layer for layer in module.modules() if isinstance(layer, BatchNormAct)]
    if groups > 1 and (found := mixing(module)) is not None:
        raise UserError(
            f"{found} takes its statistics over all {groups} groups at once; `bissl_fast.models.fuse_batch_norm` "
            f"replaces those batch norms that it can."
        )
    before = [layer.groups for layer in layers]
    for layer in layers:
        layer.groups = groups
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.groups = value


def share_statistics(module: nn.Module, ranks: Ranks | None) -> nn.Module:
    """Let every batch norm of ``module`` take its statistics over all ranks from here on, in place.

    Outputs, derivatives and running statistics are then those of one process with the whole batch, whatever number of
    ranks it is spread over; each must have as many images. Layers that are copied stay so.

    Args:
        module: All of its batch norms that take statistics from the batch must be :class:`BatchNormAct`.
        ranks: ``None``, or ranks with ``own_statistics``: of this process's batch again.

    Returns:
        ``module`` itself.

    Raises:
        UserError: A batch norm of another class would take those of its rank alone.

    Example:
        >>> network = share_statistics(BatchNormAct(3), Ranks.present())
    """
    shared = None if ranks is None or ranks.own_statistics else ranks
    if shared is not None and (found := mixing(module)) is not None:
        raise UserError(
            f"{found} takes its statistics over the images of one rank alone; `bissl_fast.models.fuse_batch_norm` "
            f"replaces those batch norms that it can."
        )
    for layer in module.modules():
        if isinstance(layer, BatchNormAct):
            layer.ranks = shared
    return module


@torch.no_grad()
def average_statistics(ranks: Ranks | None, *modules: nn.Module) -> None:
    """Make the running statistics of modules the same on all ranks where each takes its own, once after each step.

    They become the means over the ranks: of the means, and of the variances that each rank's values had, which are
    those that its layers have divided by in training. (DistributedDataParallel takes rank 0's in place of all others'.)
    Both move linearly, so that it does not matter how many batches have passed since.

    Args:
        ranks: nothing is done without ``own_statistics``: the statistics are the same then.
        *modules: batch norms of any class, and whatever else has buffers named ``running_…``.
    """
    if ranks is None or not ranks.own_statistics:
        return
    named = {buffer: name for module in modules for name, buffer in module.named_buffers()}
    running = [
        b for b, name in named.items() if name.rpartition(".")[2].startswith("running_") and b.is_floating_point()
    ]
    if running:
        torch._foreach_copy_(running, [total / ranks.size for total in summed_together(running, ranks)])


@contextmanager
def unshared_statistics(*modules: nn.Module) -> Iterator[None]:
    """Let every batch norm take its statistics over this process's batch alone inside the block, shared or not.

    For work that ranks have to themselves while others have other work.

    Args:
        *modules: afterwards their layers share as before.

    Example:
        >>> network = share_statistics(BatchNormAct(3), Ranks.present())
        >>> with unshared_statistics(network):
        ...     out = network(torch.randn(8, 3, 4, 4))
    """
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, BatchNormAct)]
    before = [layer.ranks for layer in layers]
    for layer in layers:
        layer.ranks = None
    try:
        yield
    finally:
        for layer, ranks in zip(layers, before, strict=True):
            layer.ranks = ranks
