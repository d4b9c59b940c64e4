"""Modules that are spread over processes or devices, whose products would be those of a part."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from bissl_fast.bilevel.tracing.written import LossError

SPREAD = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DataParallel")
"""Names of what torch wraps around modules; importing them all would take longer than everything else here."""
SPREADS = (
    "the module, or what the loss calls, is or holds a {kind}: a product would be that of this process's batches "
    "alone, or of its share of the parameters. Take the plain module (network.module, or for FSDP2 what "
    "bissl_fast.models.sharded.whole gives), and give the operator its ranks"
)


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
