"""A module's buffers held still, and other tensors put into its places."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

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
