"""How far features are from decorrelated ones of variance 1: ABRL's disentanglement penalty (its Eq. 2)."""

from typing import Any, Literal

import torch

Normalisation = Literal["sample", "population"]


def covariance(features: torch.Tensor, normalisation: Normalisation = "sample") -> torch.Tensor:
    """Of features ``(N, D)`` over the N images of a batch, ``(D, D)``.

    Args:
        features: N ≥ 2 rows.
        normalisation: whether squares are divided by N − 1 (``sample``, without bias) or by N (``population``).

    Raises:
        ValueError: for a single image.

    Example:
        >>> covariance(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor([[2., 0.],
                [0., 0.]])
    """
    if len(features) < 2:
        raise ValueError(f"a covariance takes at least 2 images, found {len(features)}")
    centred = features - features.mean(0)
    return centred.T @ centred / (len(features) - (normalisation == "sample"))


def identity_distance(matrix: torch.Tensor) -> torch.Tensor:
    """‖C − I‖²_F, a scalar. Of a batch's covariance its gradient is 4/(N − 1) · F_c (C − I), F_c the centred features.

    Args:
        matrix: ``(D, D)``, C.
    """
    return (matrix - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)).square().sum()


def least_distance(images: int, features: int) -> int:
    """What :func:`identity_distance` is at least, whatever the features: a batch's covariance has rank N − 1 at most.

    Example:
        >>> least_distance(128, 2048)
        1921
    """
    return max(0, features - (images - 1))


class RunningCovariance:
    """A covariance over many batches: ``C̄ ← m C̄ + (1 − m) C``, and the plain mean until so many have been seen.

    Args:
        momentum: m, in [0, 1); 0 has no memory.
        matrix: ``(D, D)``, C̄ at first.
    """

    def __init__(self, momentum: float, matrix: torch.Tensor) -> None:
        self.momentum, self.matrix, self.seen = momentum, matrix, 0

    def update(self, batch: torch.Tensor) -> torch.Tensor:
        """C̄ with a batch's covariance ``(D, D)`` in it, differentiable as if all of it were that batch's.

        So a distance of C̄ has the gradient of the batch's own, C̄ standing in C's place: λ means the same with any m.
        """
        kept = min(self.momentum, self.seen / (self.seen + 1))
        with torch.no_grad():
            self.matrix = kept * self.matrix + (1 - kept) * batch
        self.seen += 1
        return self.matrix + (batch - batch.detach())

    def state_dict(self) -> dict[str, Any]:
        return {"matrix": self.matrix, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.matrix, self.seen = state["matrix"], state["seen"]
