"""Networks without tensors: what is left to copy of one whose weights are not all here."""

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

KEPT: "WeakKeyDictionary[nn.Module, nn.Module]" = WeakKeyDictionary()
"""Of networks that cannot be copied any more, what they were."""


def without_tensors(network: nn.Module) -> nn.Module:
    """A copy that allocates nothing and has no hooks."""
    memo: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    pattern = copy.deepcopy(network, memo)
    for module in pattern.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return pattern


def keep_skeleton(network: nn.Module) -> None:
    """Keep what a network is, before something is done to it that forbids copies."""
    KEPT[network] = without_tensors(network)


def skeleton_of(network: nn.Module) -> nn.Module:
    """What :func:`keep_skeleton` has kept, in the modes that the network is in now; else the network itself."""
    kept = KEPT.get(network)
    if kept is None:
        return network
    for ours, theirs in zip(kept.modules(), network.modules(), strict=True):
        ours.training = theirs.training
    return kept
