"""A module's tensors as one flat vector, and its buffers held still."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


class ParameterVector:
    """The trainable tensors of a module, read and written as one flat vector of length L.

    Args:
        module: the module whose parameters are meant; its buffers are protected by the operators.
        prefix: only parameters whose name starts with ``prefix`` (``"backbone."``), all others being constants.

    Raises:
        ValueError: if no trainable parameter has that prefix.

    Example:
        >>> theta = ParameterVector(nn.Linear(2, 1))
        >>> theta.segments, theta.flatten(theta.tensors).shape
        ([2, 1], torch.Size([3]))
    """

    def __init__(self, module: nn.Module, prefix: str = "") -> None:
        named = [(n, p) for n, p in module.named_parameters() if n.startswith(prefix) and p.requires_grad]
        if not named:
            raise ValueError(f"no trainable parameter of {type(module).__name__} starts with {prefix!r}")
        self.module = module
        self.names = [name for name, _ in named]
        self.tensors: list[torch.Tensor] = [parameter for _, parameter in named]
        self.segments = [parameter.numel() for parameter in self.tensors]

    def __len__(self) -> int:
        return sum(self.segments)

    def flatten(self, tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """One vector ``(L,)`` of tensors shaped like the parameters; ``None`` (an unused gradient) is zero."""
        pairs = zip(tensors, self.tensors, strict=True)
        return torch.cat([(torch.zeros_like(p) if t is None else t).reshape(-1) for t, p in pairs])

    def unflatten(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of a vector ``(L,)``, shaped like the parameters."""
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


@contextmanager
def frozen_buffers(*modules: nn.Module) -> Iterator[None]:
    """Let forward passes move copies of all buffers (batch-norm running statistics, counters) instead of the buffers.

    The output of a batch norm in train mode does not depend on its running statistics, so products are unchanged. The
    buffers themselves are put back on leaving; autograd, which remembers the copies, sees neither change.
    """
    kept = {
        (owner, name): buffer
        for module in modules
        for owner in module.modules()
        for name, buffer in owner._buffers.items()  # named_buffers() leaves out the second name of a shared buffer
        if buffer is not None
    }
    copies = {id(buffer): buffer.clone() for buffer in kept.values()}
    for (owner, name), buffer in kept.items():
        setattr(owner, name, copies[id(buffer)])
    try:
        yield
    finally:
        for (owner, name), buffer in kept.items():
            setattr(owner, name, buffer)
