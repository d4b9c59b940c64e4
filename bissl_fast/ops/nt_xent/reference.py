"""NT-Xent in plain PyTorch: the definition that every backend is measured against."""

import torch
import torch.nn.functional as F

from bissl_fast.ops.rows import unit_rows


def nt_xent_loss(z1: torch.Tensor, z2: torch.Tensor, temperature: float = 0.5) -> torch.Tensor:
    """Normalised temperature-scaled cross-entropy over two views (SimCLR, Eq. 1), any dtype.

    Args:
        z1: ``(B, D)`` embeddings of the first views.
        z2: ``(B, D)`` embeddings of the second views, row i being the partner of row i of ``z1``.
        temperature: τ > 0, divides the cosine similarities.

    Returns:
        The mean over all 2B rows, a scalar in the dtype of the inputs.
    """
    u = unit_rows(torch.cat([z1, z2]))  # (2B, D)
    similarities = u @ u.T / temperature  # (2B, 2B)
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    partner = torch.arange(len(u), device=u.device).roll(len(z1))
    return F.cross_entropy(similarities.masked_fill(itself, float("-inf")), partner)
