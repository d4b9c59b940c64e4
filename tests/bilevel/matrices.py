"""Small dense matrices as operators."""

import torch


class Dense:
    """A symmetric matrix that counts its products."""

    def __init__(self, matrix: torch.Tensor, segments: list[int] | None = None) -> None:
        self.matrix, self.segments, self.products = matrix, segments or [len(matrix)], 0

    def matvec(self, vector: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return self.matrix @ vector

    def matmat(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.matvec(v) for v in vectors])


def symmetric(eigenvalues: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A matrix with these eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator).double()).Q
    return (q * eigenvalues.double()) @ q.T


def vectors(count: int, length: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, generator=generator, dtype=torch.float64)
