"""Weights spread over ranks: each holds a part of every tensor, and the whole of a block's only while that passes.

Fully sharded data parallelism (Rajbhandari et al., 2020, "ZeRO", stage 3) by PyTorch's FSDP2. Names of tensors are
those of the plain network, and so are loss, gradient and steps up to rounding; gradients and optimiser states, which
are made from the parameters, are spread as these are. What leaves the network (:func:`full_tensors`) is whole, so that
no file knows of ranks.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from bissl_fast.errors import UserError
from bissl_fast.models.heads import Network
from bissl_fast.models.skeletons import keep_skeleton, skeleton_of
from bissl_fast.ops.collectives import Ranks
from bissl_fast.ops.spread import is_spread


def shard(network: nn.Module, ranks: Ranks) -> nn.Module:
    """Spread a network's parameters over ranks, block by block, in place; buffers stay whole on each.

    A backward pass adds to the gradients the sum over the ranks: nothing is left to be reduced. Parameters are new
    objects: optimisers are made afterwards, and copies before, as FSDP2 allows none of a sharded module. Filters lie
    with their channels first, as FSDP2 wants them.

    Args:
        network: on its device, with the same weights on every rank. It is called as a whole from here on.
        ranks: that hold ``1 / R`` each of every tensor, cut along its first axis.

    Returns:
        ``network`` itself.

    Raises:
        UserError: for a parameter without axes, which FSDP2 cannot cut.

    Example:
        >>> from bissl_fast.models import build_backbone
        >>> if (ranks := Ranks.present()) is not None:
        ...     backbone = shard(build_backbone("resnet50", seed=0), ranks)
    """
    scalar = next((name for name, p in network.named_parameters() if p.dim() == 0), None)
    if scalar is not None:
        raise UserError(
            f"the parameter {scalar} is a number without axes, which FSDP2 cannot spread over ranks: leave out "
            "--distributed.shard, or take another --backbone."
        )
    from torch._C._distributed_c10d import _resolve_process_group
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    keep_skeleton(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    group: Any = _resolve_process_group(ranks.name)  # type: ignore[arg-type]
    mesh = DeviceMesh.from_group(group, next(network.parameters()).device.type)
    heads = [network.head] if isinstance(network, Network) else []
    for part in (*blocks(network), *heads, network):
        if any(True for _ in part.parameters()) and not isinstance(part, FSDPModule):
            # PyTorch keeps the outermost weights whole after a forward pass, and then a momentum copy's for good.
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    for part in network.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # a sum of shares; PyTorch's default is a mean
            part.set_force_sum_reduction_for_comms(True)  # gloo cannot scale in a reduction
    for name, parameter in network.named_parameters():
        parameter.name_in_network = name  # type: ignore[attr-defined]  # as what is gathered is another tensor
    return network


def blocks(network: nn.Module) -> list[nn.Module]:
    """What a network repeats: the members of a sequence or a list that have layers of their own, the innermost ones.

    ``layer1.0`` of a ResNet, ``blocks.0`` of a vision transformer, ``stages.0.blocks.0`` of a ConvNeXt. Parameters
    outside of them (stem, last norm, head) belong to what is around.
    """
    containers = (nn.Sequential, nn.ModuleList)
    found = [
        member
        for container in network.modules()
        if isinstance(container, containers)
        for member in container.children()
        if not isinstance(member, containers) and any(True for child in member.children() for _ in child.parameters())
    ]
    members = set(found)
    outer = {member for member in members if any(inner in members for inner in member.modules() if inner is not member)}
    return [member for member in dict.fromkeys(found) if member not in outer]


def is_sharded(network: nn.Module) -> bool:
    """Whether :func:`shard` has spread a network."""
    return any(is_spread(parameter) for parameter in network.parameters())


def full_tensors(tree: Any) -> Any:
    """Nested containers with every tensor that is spread whole, in the machine's memory, one gathered at a time.

    All ranks call it together. What is not spread stays what it is.

    Example:
        >>> full_tensors({"weight": torch.ones(2)})
        {'weight': tensor([1., 1.])}
    """

    def full(value: Any) -> Any:
        return value.detach().full_tensor().cpu() if is_spread(value) else value

    return tree_map(full, tree)


def spread_like(value: Any, like: torch.Tensor | None) -> Any:
    """A whole tensor spread as another of its shape is: this rank's part of it. No rank hears of another.

    Args:
        value: whole, on any device; anything else stays what it is.
        like: the tensor that it is to stand in for; where that is whole, or of another shape, so is the result.
    """
    if not isinstance(value, torch.Tensor) or like is None or not is_spread(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor

    spread: Any = like
    part, own = torch.empty_like(spread.to_local(), dtype=value.dtype), spread.device_mesh.get_local_rank()
    parts = value.chunk(spread.device_mesh.size())  # as FSDP2 cuts; the last ranks of many may have none
    if own < len(parts):
        part.copy_(parts[own])
    return DTensor.from_local(
        part, spread.device_mesh, spread.placements, run_check=False, shape=spread.shape, stride=spread.stride()
    )


def spread_state(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The whole tensors of a module's ``state_dict`` as its ``load_state_dict`` takes them."""
    if not is_sharded(module):
        return state
    own = module.state_dict()
    return {name: spread_like(value, own.get(name)) for name, value in state.items()}


def whole(network: nn.Module) -> nn.Module:
    """A plain copy of a sharded network, with all weights on every rank: what second-order products take.

    All ranks call it together. A network that is not sharded is returned itself.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> whole(network) is network
        True
    """
    if not is_sharded(network):
        return network
    pattern = skeleton_of(network)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    memo = {id(empty): _standing_in(empty, tensors[name]) for name, empty in _named_tensors(pattern)}
    return copy.deepcopy(pattern, memo)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _standing_in(empty: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of its own with all values of another."""
    values = tensor.detach()
    values = values.full_tensor() if is_spread(values) else values.clone()  # type: ignore[attr-defined]
    return nn.Parameter(values, tensor.requires_grad) if isinstance(empty, nn.Parameter) else values
