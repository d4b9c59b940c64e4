"""Several networks of one architecture in one pass: their channels stand side by side, and convolutions have groups."""

import copy
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from bissl_fast.errors import UserError
from bissl_fast.models.plain_layers import is_plain
from bissl_fast.models.separate import alike, keeps_apart, random_state, random_twin
from bissl_fast.models.skeletons import without_tensors
from bissl_fast.models.small_maps import SmallMapConv2d
from bissl_fast.ops.batch_norm import statistics_groups
from bissl_fast.ops.batch_norm.module import mixing

IMAGES = 2


class Stack:
    """n networks of one architecture as one with n times the channels.

    Convolutions get n times the groups, linear layers become batched products, batch norms have n times the channels:
    all else that a network does to channels it does to each alone, and so do these. The stack holds no weights. Each
    pass puts those of the networks side by side, inside autograd, so that gradients of any order arrive at the networks
    themselves, and each network's buffers move as by a pass of its own.

    Args:
        network: one of the networks, as a pattern.
        count: n.

    Raises:
        UserError: if a layer cannot be put side by side: it has weights and is no convolution, linear layer or batch
            norm with a fixed momentum.

    Example:
        >>> networks = [nn.Linear(3, 2) for _ in range(4)]
        >>> first, *_ = Stack(networks[0], 4)(networks, [torch.zeros(5, 3)] * 4)
        >>> first.shape
        torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        self.count = count
        self.pattern = without_tensors(network)
        for name, layer in self.pattern.named_modules():
            widen(layer, count, name)

    def __call__(self, networks: Sequence[nn.Module], batches: Sequence[torch.Tensor], groups: int = 1) -> list[Any]:
        """The k-th network's outputs for the k-th batch.

        Args:
            networks: n of them, in the same modes as the first.
            batches: n tensors of one shape, (N, C, H, W) or (N, F).
            groups: equal parts of a batch, each with batch-norm statistics of its own.

        Returns:
            What each network gives: a tensor (N, …), or a tuple of such.
        """
        for ours, theirs in zip(self.pattern.modules(), networks[0].modules(), strict=True):
            ours.training = theirs.training
        weights = side_by_side([dict(network.named_parameters()) for network in networks])
        buffers = side_by_side([dict(network.named_buffers()) for network in networks])
        with statistics_groups(self.pattern, groups):
            output = torch.func.functional_call(self.pattern, weights | buffers, (torch.cat(tuple(batches), 1),))
        give_back(buffers, networks)
        parts = tree_map(lambda tensor: tensor.chunk(self.count, 1), output)
        return [tuple(part[k] for part in parts) if isinstance(output, tuple) else parts[k] for k in range(self.count)]

    def forward_each(self, networks: Sequence[nn.Module], batches: Sequence[Sequence[torch.Tensor]]) -> list[list[Any]]:
        """The k-th network's output for each batch of the k-th list, with batch-norm statistics of the batch's own.

        As :func:`bissl_fast.models.forward_each` does for one network: runs of batches of one shape pass together where
        the network keeps them apart.

        Args:
            networks: n of them.
            batches: n lists of as many tensors, of the same shapes in turn.
        """
        outputs: list[list[Any]] = [[] for _ in networks]
        for _, run in groupby(zip(*batches, strict=True), key=lambda of_each: of_each[0].shape):
            views = list(run)  # [view][network]
            apart = len(views) > 1 and mixing(networks[0]) is None and keeps_apart(networks[0], views[0][0])
            joined = [[torch.cat(of_one) for of_one in zip(*views, strict=True)]] if apart else views
            groups = len(views) if apart else 1
            for of_each in joined:
                for found, output in zip(outputs, self(networks, of_each, groups), strict=True):
                    found += split(output, groups)
        return outputs


def stacks_exactly(network: nn.Module, like: torch.Tensor) -> bool:
    """Whether copies of a network give, and keep, in a :class:`Stack` what they give alone.

    Two twins in float64 with random weights pass a few images of noise both ways, in the modes that the network is in;
    the network, its buffers and PyTorch's random numbers stay as they are.

    Args:
        network: takes ``(N, …)``.
        like: a batch, whose shape the images have.
    """
    devices = [like.device.index or 0] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(0)
        try:
            alone = [random_twin(network).double() for _ in range(2)]
            stack, together = Stack(network, 2), copy.deepcopy(alone)
            batches = torch.randn(2, IMAGES, *like.shape[1:], dtype=torch.float64, device=like.device).unbind()
            before = random_state(like.device)
            found = stack(together, batches)
            expected = [twin(batch) for twin, batch in zip(alone, batches, strict=True)]
            if not torch.equal(random_state(like.device), before):
                return False
            return all(
                map(
                    alike,
                    (*tree_leaves(expected), *(b for twin in alone for b in twin.buffers())),
                    (*tree_leaves(found), *(b for twin in together for b in twin.buffers())),
                )
            )
        except Exception:  # its layers cannot be put side by side, or do not fit what they then get
            return False


class SideBySideLinear(nn.Linear):
    """n linear layers: ``(N, n·F)`` to ``(N, n·O)``, with weights ``(n·O, F)``."""

    count = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inputs = x.reshape(len(x), self.count, self.in_features).transpose(0, 1)  # (n, N, F)
        weights = self.weight.reshape(self.count, self.out_features, self.in_features).mT  # (n, F, O)
        found: torch.Tensor = (inputs @ weights).transpose(0, 1).flatten(1)
        return found if self.bias is None else found + self.bias


def widen(layer: nn.Module, count: int, name: str) -> None:
    """Make a layer do what ``count`` of its kind do to channels that stand side by side; in place.

    Raises:
        UserError: if it is not known how.
    """
    if is_plain(layer, nn.Conv1d, nn.Conv2d, nn.Conv3d, SmallMapConv2d):
        for size in ("groups", "in_channels", "out_channels"):
            setattr(layer, size, getattr(layer, size) * count)
    elif is_plain(layer, nn.Linear):
        layer.__class__ = SideBySideLinear
        layer.count = count  # type: ignore[assignment]
    elif isinstance(layer, _BatchNorm) and layer.momentum is not None:
        layer.num_features *= count
    elif any(True for _ in layer.parameters(recurse=False)) or any(True for _ in layer.buffers(recurse=False)):
        raise UserError(
            f"{name or 'The network'}, a {type(layer).__name__}, cannot be put side by side with others of its kind: "
            "train such networks one by one."
        )


def side_by_side(tensors: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """By name, those of all networks along their first axis; of counters, which have none, a copy of the first's."""
    first = tensors[0]
    return {
        name: torch.cat([of_one[name] for of_one in tensors]) if tensor.dim() else tensor.clone()
        for name, tensor in first.items()
    }


@torch.no_grad()
def give_back(buffers: Mapping[str, torch.Tensor], networks: Sequence[nn.Module]) -> None:
    """Let the networks' buffers be what a pass has made of them; counters go on by as much as the first network's."""
    first = dict(networks[0].named_buffers())
    steps = {name: moved - first[name] for name, moved in buffers.items() if not moved.dim()}
    for k, network in enumerate(networks):
        for name, buffer in network.named_buffers():
            if name in steps:
                buffer.add_(steps[name])
            else:
                buffer.copy_(buffers[name].chunk(len(networks))[k])


def split(output: Any, count: int) -> list[Any]:
    """Equal parts of a batch of outputs, tuples part by part."""
    parts = tree_map(lambda tensor: tensor.chunk(count), output)
    return [tuple(part[k] for part in parts) for k in range(count)] if isinstance(output, tuple) else list(parts)
