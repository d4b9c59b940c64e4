"""The log-sums by their definition, with the whole matrix of products."""

import torch
from torch import Tensor


def log_sums(x: Tensor, y: Tensor, scale: float, skip_diagonal: bool = False) -> Tensor:
    """``log Σ_j exp(scale · x_i·y_j)`` of rows ``(N, D)`` and ``(M, D)``: ``(N,)``, in their dtype."""
    scores = scale * (x @ y.T)  # (N, M)
    if skip_diagonal:
        scores = scores.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), float("-inf"))
    return scores.logsumexp(1)
