"""A module's tensors as one flat vector."""

from collections.abc import Sequence

import torch
from torch import nn

from bissl_fast.bilevel.checks.spread import refuse_spread


class ParameterVector:
    """The trainable tensors of a module in the order of ``module.parameters()``, as one flat vector of length L.

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
        named: dict[nn.Parameter, str] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name.startswith(prefix) and parameter.requires_grad:
                named.setdefault(parameter, name)
        if not named:
            raise ValueError(f"no trainable parameter of {type(module).__name__} starts with {prefix!r}")
        kinds = {(p.dtype, p.device) for p in named}
        if len(kinds) > 1 or not next(iter(kinds))[0].is_floating_point:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(f"parameters must have one real floating-point dtype and one device, found {found}")
        self.module = module
        self.names = list(named.values())
        self.tensors: list[torch.Tensor] = list(named)
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
