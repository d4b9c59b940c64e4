"""How far a distribution is from a target, row by row, mean over the rows (GeSSL, Eq. 7 and Appendix G.3).

All take logarithms of probabilities (N, C). No gradient passes through the target: it is detached here, whoever made
it. In ``kl`` it stands first, KL(target ‖ prediction), as in Eq. 7.
"""

from collections.abc import Callable
from typing import Literal

import torch

Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(log target, log prediction) -> scalar``, each (N, C)."""

DivergenceName = Literal["kl", "ce", "mse", "wasserstein"]


def kullback_leibler(target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """Σ_c t log(t / p) (Eq. 26).

    Example:
        >>> kullback_leibler(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log())
        tensor(0.5108)
    """
    target = target.detach()
    return (target.exp() * (target - prediction)).sum(1).mean()


def cross_entropy(target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """−Σ_c t log p (Eq. 25): ``kl`` and the target's entropy, which is constant, so that the gradient is the same."""
    return -(target.detach().exp() * prediction).sum(1).mean()


def squared_distance(target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """Σ_c (t − p)² (Eq. 24, whose n is read as the number of samples)."""
    return (target.detach().exp() - prediction.exp()).square().sum(1).mean()


def wasserstein(target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """½ Σ_c |t − p|: the Wasserstein distance where all classes lie at distance 1 (Eq. 27, whose metric is unsaid)."""
    return (target.detach().exp() - prediction.exp()).abs().sum(1).mean() / 2


DIVERGENCES: dict[DivergenceName, Divergence] = {
    "kl": kullback_leibler,
    "ce": cross_entropy,
    "mse": squared_distance,
    "wasserstein": wasserstein,
}
