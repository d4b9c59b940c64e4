"""A module's tensors as one flat vector, and its buffers held still."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from bissl_fast.bilevel.written import LossError

SPREAD = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DataParallel")
"""Names of what torch wraps around modules; importing them all would take longer than everything else here."""
SPREADS = (
    "the module, or what the loss calls, is or holds a {kind}: a product would be that of this process's batches "
    "alone, or of its share of the parameters. Take the plain module (network.module, or for FSDP2 what "
    "bissl_fast.models.sharded.whole gives), and give the operator its ranks"
)


class ParameterVector:
    """The trainable tensors of a module, read and written as one flat vector of length L.

    Args:
        module: the module whose parameters are meant; its buffers are protected by the operators.
        prefix: only parameters whose name starts with ``prefix`` (``"backbone."``), all others being constants. A
            parameter with several names counts once, and counts if one of them has the prefix.

    Raises:
        ValueError: if no trainable parameter has that prefix, if they are not real numbers of one floating-point dtype
            on one device, or if the module is spread over processes or devices.

    Example:
        >>> theta = ParameterVector(nn.Linear(2, 1))
        >>> theta.segments, theta.flatten(theta.tensors).shape
        ([2, 1], torch.Size([3]))
    """

    def __init__(self, module: nn.Module, prefix: str = "") -> None:
        refuse_spread(module)
        every = module.named_parameters(remove_duplicate=False)
        named = {p: n for n, p in reversed(list(every)) if n.startswith(prefix) and p.requires_grad}
        if not named:
            raise ValueError(f"no trainable parameter of {type(module).__name__} starts with {prefix!r}")
        kinds = {(p.dtype, p.device) for p in named}
        if len(kinds) > 1 or not next(iter(kinds))[0].is_floating_point:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(f"parameters must have one real floating-point dtype and one device, found {found}")
        self.module = module
        self.names = list(named.values())[::-1]
        self.tensors: list[torch.Tensor] = [*reversed(named)]
        self.segments = [parameter.numel() for parameter in self.tensors]

    def __len__(self) -> int:
        return sum(self.segments)

    def flatten(self, tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """One vector ``(L,)`` of tensors shaped like the parameters; ``None`` (an unused gradient) is zero."""
        pairs = list(zip(tensors, self.tensors, strict=True))
        for name, (t, p) in zip(self.names, pairs, strict=True):
            if t is not None and t.shape != p.shape:
                raise ValueError(f"a tensor for {name} must have its shape, {tuple(p.shape)}, found {tuple(t.shape)}")
        return torch.cat([(torch.zeros_like(p) if t is None else t).reshape(-1) for t, p in pairs])

    def unflatten(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of a vector ``(L,)``, shaped like the parameters.

        They are row-major, also where a parameter is in channels_last. As gradients they suit every optimiser but
        PyTorch's fused ones: those refuse another memory order on a GPU, and on a CPU take elements for others. For
        one of these write ``torch.empty_like(p).copy_(piece)``.
        """
        if flat.shape != (len(self),):
            raise ValueError(f"a vector of the parameters must have shape ({len(self)},), found {tuple(flat.shape)}")
        pieces = torch.split(flat, self.segments)
        return [piece.view(p.shape) for piece, p in zip(pieces, self.tensors, strict=True)]

    def values(self) -> torch.Tensor:
        """A copy of the parameters as one vector ``(L,)``."""
        return self.flatten([p.detach() for p in self.tensors])

    @torch.no_grad()
    def assign(self, flat: torch.Tensor) -> None:
        """Write a vector ``(L,)`` into the parameters."""
        for parameter, piece in zip(self.tensors, self.unflatten(flat), strict=True):
            parameter.copy_(piece)


def refuse_spread(module: nn.Module) -> None:
    """Raise if a module or a part of it is spread over processes or devices."""
    for part in module.modules():
        refuse_spread_itself(part)


def refuse_spread_itself(module: nn.Module) -> None:
    """Likewise, whatever its parts are."""
    kind = next((base.__name__ for base in type(module).__mro__ if base.__name__ in SPREAD), None)
    if kind is not None:
        raise LossError(SPREADS.format(kind=kind))


@contextmanager
def spread_refused() -> Iterator[None]:
    """Raise if a module that is spread is called inside the block, by this thread, wherever it comes from.

    To be put around the call of a loss alone: Dynamo looks at global hooks, and compiles anew where there are others.
    """
    thread = threading.get_ident()

    def refuse(module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling() and threading.get_ident() == thread:
            refuse_spread_itself(module)

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


Place = tuple[dict[str, Any], str, torch.Tensor]
"""A module's table of parameters or buffers, a name in it, and a tensor for that name."""


def places(module: nn.Module, tensors: Mapping[torch.Tensor, torch.Tensor]) -> list[Place]:
    """Everywhere that a module holds one of the keys, with what shall stand there; names of one tensor stay one."""
    tables = [table for owner in module.modules() for table in (owner._parameters, owner._buffers)]
    held = [(table, name, tensor) for table in tables for name, tensor in table.items() if tensor is not None]
    return [(table, name, tensors[tensor]) for table, name, tensor in held if tensor in tensors]


@contextmanager
def replaced(held: Sequence[Place]) -> Iterator[None]:
    """Let other tensors stand at some places of a module inside the block.

    Unlike ``torch.func.functional_call``, which leaves its own tensors behind in a module that has two names.
    """
    before = [table[name] for table, name, _ in held]
    for table, name, tensor in held:
        table[name] = tensor
    try:
        yield
    finally:
        for (table, name, _), tensor in zip(held, before, strict=True):
            table[name] = tensor


def buffer_copies(*modules: nn.Module) -> list[Place]:
    """The buffers of modules, copied."""
    return [place for m in modules for place in places(m, {b: b.clone() for b in m.buffers()})]


@contextmanager
def frozen_buffers(*modules: nn.Module) -> Iterator[None]:
    """Let forward passes move copies of all buffers (batch-norm running statistics, counters) instead of the buffers.

    The output of a batch norm in train mode does not depend on its running statistics, so products are unchanged. The
    buffers themselves are put back on leaving; autograd, which remembers the copies, sees neither change.
    """
    with replaced(buffer_copies(*modules)):
        yield
