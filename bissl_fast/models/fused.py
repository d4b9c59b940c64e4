"""Batch norms joined with the ReLU and the residual that follow them, without renaming a parameter."""

import sys
from collections import Counter
from itertools import pairwise

from torch import nn

from bissl_fast.ops import BatchNormAct

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fuse_batch_norm(network: nn.Module) -> nn.Module:
    """Let every batch norm that can be replaced run through :class:`BatchNormAct`, in place.

    In the residual blocks and the stem of timm's ResNets and in plain ``nn.Sequential``s, a ReLU that follows (and the
    shortcut added in between) become part of it. Elsewhere, and in blocks with anything unusual (another activation,
    squeeze-and-excitation, drop path, anti-aliasing, hooks), batch norms are replaced one by one. Subclasses of the
    layers concerned, synchronised batch norms among them, stay as they are. Numbers, parameters, buffers, their names
    and their order are the same; a fused network can be copied, pickled and given to an optimiser's old parameters.

    Args:
        network: Any module; convert it to synchronised batch norms before, not after.

    Returns:
        ``network`` itself.

    Example:
        >>> network = fuse_batch_norm(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU()))
        >>> [type(layer).__name__ for layer in network]
        ['Linear', 'BatchNormAct', 'Identity']
    """
    uses = Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
    owners = [module for module in network.modules() if uses[id(module)] == 1]
    for owner in owners:
        if type(owner) is nn.Sequential:
            for first, second in pairwise(owner._modules):  # named_children() leaves out what comes twice
                fuse_pair(owner, first, second, uses)
    if "timm.models.resnet" in sys.modules:  # else there is no timm module in it
        from bissl_fast.models.fused_resnet import fuse_resnet

        for owner in owners:
            fuse_resnet(owner, uses)
    for module in network.modules():
        if is_batch_norm(module):
            replace(module, relu=False)
    return network


def fuse_pair(owner: nn.Module, norm: str, activation: str, uses: Counter[int]) -> None:
    """Make the ReLU of an ``owner`` that calls the two children one after the other part of the batch norm."""
    first, second = getattr(owner, norm), getattr(owner, activation)
    if is_batch_norm(first) and is_relu(second) and uses[id(first)] == 1:
        replace(first, relu=True)
        setattr(owner, activation, nn.Identity())


def replace(norm: nn.Module, relu: bool) -> None:
    """Turn a batch norm into a :class:`BatchNormAct` that keeps its identity, parameters, buffers and settings."""
    norm.__class__ = BatchNormAct
    assert isinstance(norm, BatchNormAct)
    norm.relu = relu


def is_batch_norm(module: object) -> bool:
    """Whether a module is a batch norm with weights, and nothing else."""
    return isinstance(module, BATCH_NORMS) and is_plain(module, *BATCH_NORMS) and module.affine


def is_relu(module: object) -> bool:
    """Whether a module is a ReLU and nothing else."""
    return is_plain(module, nn.ReLU)


def is_plain(module: object, *classes: type) -> bool:
    """Whether a module is of one of the classes, not of a subclass, and has no hooks that see its inputs or outputs."""
    return type(module) in classes and not any(
        getattr(module, f"_{hooks}")
        for hooks in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    )
