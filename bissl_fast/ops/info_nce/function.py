"""Two-sided InfoNCE through the best backend, differentiable twice."""

import torch

from bissl_fast.ops.backend import choose
from bissl_fast.ops.checks import check_views
from bissl_fast.ops.contrastive import contrastive_loss
from bissl_fast.ops.info_nce import reference
from bissl_fast.ops.rows import widened


def info_nce_loss(a: torch.Tensor, b: torch.Tensor, temperature: float = 0.07) -> torch.Tensor:
    """Symmetric cross-entropy over matched pairs (CLIP, Fig. 3) in O(B·D) memory, exact to second order.

    It is NT-Xent with the negatives of the other side only, and runs through the same kernels.

    Args:
        a: ``(B, D)`` embeddings of the one side; float16, bfloat16, float32 or float64, any strides.
        b: ``(B, D)`` embeddings of the other side, row i being the partner of row i of ``a``.
        temperature: τ > 0, divides the cosine similarities.

    Returns:
        The mean of the a-to-b and the b-to-a cross-entropies, a scalar: float64 for float64 embeddings,
        float32 for all others.

    Raises:
        TypeError: Embeddings that are not floating-point tensors of one dtype, or τ that is no number.
        ValueError: Shapes that differ or are empty, two devices, or τ that is not positive and finite.
        UserError: The backend that was chosen cannot serve these embeddings.
        NotImplementedError: A third derivative was asked for.

    Example:
        >>> images, texts = torch.randn(8, 32, requires_grad=True), torch.randn(8, 32)
        >>> info_nce_loss(images, texts).backward()
    """
    check_views(a, b, temperature)
    name = choose(a, float(temperature))
    if name == "reference":
        return widened(reference.info_nce_loss, a, b, float(temperature))
    return contrastive_loss(a, b, float(temperature), True, name)
