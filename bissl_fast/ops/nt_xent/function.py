"""NT-Xent through the best backend, differentiable twice."""

import torch

from bissl_fast.ops.backend import choose
from bissl_fast.ops.checks import check_views
from bissl_fast.ops.collectives import Ranks
from bissl_fast.ops.contrastive import contrastive_loss
from bissl_fast.ops.nt_xent import reference
from bissl_fast.ops.nt_xent.across_ranks import nt_xent_share
from bissl_fast.ops.rows import widened


def nt_xent_loss(
    z1: torch.Tensor, z2: torch.Tensor, temperature: float = 0.5, ranks: Ranks | None = None
) -> torch.Tensor:
    """Normalised temperature-scaled cross-entropy over two views (SimCLR, Eq. 1) in O(N·D) memory.

    Exact to second order: ``backward``, double ``backward`` and ``torch.func.jvp`` of a gradient run through
    fused kernels. Rows are normalised inside; a zero row gives what ``torch.nn.functional.normalize`` gives.

    Args:
        z1: ``(B, D)`` embeddings of the first views; float16, bfloat16, float32 or float64, any strides.
        z2: ``(B, D)`` embeddings of the second views, row i being the partner of row i of ``z1``.
        temperature: τ > 0, divides the cosine similarities.
        ranks: The negatives are those of all these ranks, of which each has as many rows; left out: of this process.

    Returns:
        The mean over all 2B rows, a scalar: float64 for float64 embeddings, float32 for all others. With ``ranks`` this
        rank's share of the mean over all ranks' rows: all shares are to be added
        (:mod:`bissl_fast.ops.collectives`), and so are their derivatives.

    Raises:
        TypeError: Embeddings that are not floating-point tensors of one dtype, or τ that is no number.
        ValueError: Shapes that differ or are empty, two devices, or τ that is not positive and finite.
        UserError: The backend that was chosen cannot serve these embeddings.
        NotImplementedError: A third derivative was asked for.

    Example:
        >>> z1, z2 = torch.randn(8, 32, requires_grad=True), torch.randn(8, 32)
        >>> nt_xent_loss(z1, z2, temperature=0.1).backward()
    """
    check_views(z1, z2, temperature)
    if ranks is not None:
        return nt_xent_share(z1, z2, float(temperature), ranks)
    name = choose(z1, float(temperature))
    if name == "reference":
        return widened(reference.nt_xent_loss, z1, z2, float(temperature))
    return contrastive_loss(z1, z2, float(temperature), False, name)
