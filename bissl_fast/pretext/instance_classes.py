"""A batch of B images in V views each as a classification task of B classes (GeSSL, section 3.2).

What is returned are logarithms of probabilities, so that distances between them keep their digits.
"""

from collections.abc import Sequence

import torch

from bissl_fast.ops.rows import unit_rows


def log_similarities(embeddings: Sequence[torch.Tensor], temperature: float) -> torch.Tensor:
    """log π of each view over all other views: the softmax of their cosines over τ (Eq. 2).

    Args:
        embeddings: V tensors (B, D).
        temperature: τ.

    Returns:
        (VB, VB − 1): rows view by view, columns likewise, less the row's own.

    Example:
        >>> log_similarities([torch.eye(2), torch.eye(2)], 1.0).shape
        torch.Size([4, 3])
    """
    rows = unit_rows(torch.cat(tuple(embeddings)))
    return without_diagonal(rows @ rows.T / temperature).log_softmax(1)


def log_merged(log_pi: torch.Tensor, views: int) -> torch.Tensor:
    """log π over images in place of views: the sum over the views of each, less the row's own.

    Args:
        log_pi: (VB, VB − 1) of :func:`log_similarities`.
        views: V, at least 2.

    Returns:
        (VB, B).
    """
    total = len(log_pi)
    square = log_pi.new_full((total, total), float("-inf"))
    others = ~torch.eye(total, dtype=torch.bool, device=log_pi.device)
    square = square.masked_scatter(others, log_pi)
    return square.view(total, views, total // views).logsumexp(1)


def positives(images: int, views: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Where the other views of a row's image stand in its columns of :func:`log_similarities`: bool (VB, VB − 1)."""
    image = torch.arange(images, device=device).repeat(views)
    return without_diagonal(image[:, None] == image)


def without_diagonal(square: torch.Tensor) -> torch.Tensor:
    """(N, N) to (N, N − 1)."""
    count = len(square)
    return square.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)
