"""The D × D products of embeddings that tasks take the squares of, in O(N·D) memory."""

import torch

WIDE = 2
"""Columns per row from where on N × N products serve. They cost no more than a D × D one then, and lose no digits."""


def diagonal_and_rest(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The diagonal of C = firstᵀ second, and Σ C_ij² over i ≠ j.

    Embeddings of D < 2N columns make C, whose diagonal is set to zero before anything is squared: nearly whitened ones
    would lose the rest in a difference. For wider ones Σ C_ij² = ⟨first firstᵀ, second secondᵀ⟩, which takes N × N
    products, N / D of the memory and, of one set of embeddings with itself, N / D of the work. There C has rank N at
    most, so that the rest is no smaller than the diagonal's share if the diagonal is even: the difference keeps its
    digits. (Where one of 100 columns is ten times as long as the others, a gradient in float32 is 1e-6 off and not
    3e-7.) Both are plain PyTorch, exact to second order in any mode, and have no branch on values.

    Args:
        first: (N, D), centred if C shall be a covariance.
        second: (N, D), or ``first`` itself.

    Returns:
        (D,) and a scalar, in their dtype.

    Example:
        >>> diagonal_and_rest(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        (tensor([3., 8.]), tensor(52.))
    """
    rows, columns = first.shape
    diagonal = (first * second).sum(0)
    if columns < WIDE * rows:
        product = torch.diagonal_scatter(first.T @ second, torch.zeros_like(diagonal))
        return diagonal, product.square().sum()
    of_first = first @ first.T
    of_second = of_first if second is first else second @ second.T
    return diagonal, (of_first * of_second).sum() - diagonal.square().sum()
