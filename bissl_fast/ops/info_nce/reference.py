"""Two-sided InfoNCE in plain PyTorch: the definition that every backend is measured against."""

import torch
import torch.nn.functional as F

from bissl_fast.ops.rows import unit_rows


def info_nce_loss(a: torch.Tensor, b: torch.Tensor, temperature: float = 0.07) -> torch.Tensor:
    """Symmetric cross-entropy over matched pairs (CLIP, Fig. 3), any dtype.

    Args:
        a: ``(B, D)`` embeddings of the one side.
        b: ``(B, D)`` embeddings of the other side, row i being the partner of row i of ``a``.
        temperature: τ > 0, divides the cosine similarities.

    Returns:
        The mean of the a-to-b and the b-to-a cross-entropies, a scalar in the dtype of the inputs.
    """
    similarities = unit_rows(a) @ unit_rows(b).T / temperature  # (B, B)
    partner = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(similarities, partner) + F.cross_entropy(similarities.T, partner)) / 2
