"""NT-Xent, SimCLR's contrastive loss."""

import torch
from torch import nn

from bissl_fast.ops.checks import check_temperature
from bissl_fast.ops.nt_xent.function import nt_xent_loss

__all__ = ["NTXentLoss", "nt_xent_loss"]


class NTXentLoss(nn.Module):
    """Module form of :func:`nt_xent_loss`.

    Args:
        temperature: τ > 0, divides the cosine similarities.

    Raises:
        TypeError: τ that is no number.
        ValueError: τ that is not positive and finite.

    Example:
        >>> loss = NTXentLoss(temperature=0.1)
        >>> loss(torch.randn(8, 32), torch.randn(8, 32)).shape
        torch.Size([])
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def extra_repr(self) -> str:
        """The settings, for ``print(module)``."""
        return f"temperature={self.temperature}"

    def forward(self, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        """Loss of two ``(B, D)`` batches of embeddings, a scalar."""
        return nt_xent_loss(z1, z2, self.temperature)
