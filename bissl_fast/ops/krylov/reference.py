"""Vector work of conjugate gradients in plain PyTorch: the definition that the kernels are compared with."""

from collections.abc import Sequence

import torch


def segment_dots(a: torch.Tensor, b: torch.Tensor, segments: Sequence[int]) -> torch.Tensor:
    """Inner products of the segments of two vectors ``(L,)``, summed in float64: ``(S,)``."""
    pairs = zip(torch.split(a, list(segments)), torch.split(b, list(segments)), strict=True)
    return torch.stack([torch.dot(x.double(), y.double()) for x, y in pairs]).to(a.dtype)


def cg_update(
    x: torch.Tensor,
    r: torch.Tensor,
    d: torch.Tensor,
    q: torch.Tensor,
    rz: torch.Tensor,
    segments: Sequence[int],
    inverse_diagonal: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One iteration of conjugate gradients after the product ``q = A d``, in place on x, r and d.

    Per segment, with ``z = M⁻¹ r`` (z = r without a preconditioner): ``α = rz / d·q``, ``x += α d``, ``r −= α q``,
    ``β = r·z / rz``, ``d = z + β d``; α is zero where rz is, and β where either product is. Returns
    ``(d·q, new r·z, new r·r)``, each ``(S,)``.
    """
    curvature = segment_dots(d, q, segments)
    alpha = ratio(rz, curvature)
    lengths = torch.tensor(segments, device=x.device)
    spread = alpha.repeat_interleave(lengths, output_size=x.numel())
    x.addcmul_(spread, d)
    r.addcmul_(spread, q, value=-1)
    z = r if inverse_diagonal is None else inverse_diagonal * r
    rz_next = segment_dots(r, z, segments)
    beta = torch.where(rz == 0, 0.0, ratio(rz_next, rz))
    d.mul_(beta.repeat_interleave(lengths, output_size=x.numel())).add_(z)
    return curvature, rz_next, segment_dots(r, r, segments)


def ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Quotient of step lengths; zero where the numerator is, otherwise as it comes."""
    return torch.where(numerator == 0, 0.0, numerator / denominator)
