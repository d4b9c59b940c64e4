"""Vector work of conjugate gradients in plain PyTorch: the definition that the kernels are compared with."""

from collections.abc import Sequence

import torch


def segment_dots(a: torch.Tensor, b: torch.Tensor, segments: Sequence[int]) -> torch.Tensor:
    """Inner products of the segments of two vectors ``(L,)``: ``(S,)``."""
    pairs = zip(torch.split(a, list(segments)), torch.split(b, list(segments)), strict=True)
    return torch.stack([torch.dot(x, y) for x, y in pairs])


def cg_update(
    x: torch.Tensor, r: torch.Tensor, d: torch.Tensor, q: torch.Tensor, rr: torch.Tensor, segments: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One iteration of conjugate gradients after the product ``q = A d``, in place on x, r and d.

    Per segment: ``α = rr / d·q``, ``x += α d``, ``r −= α q``, ``β = r·r / rr``, ``d = r + β d``; a quotient with
    numerator zero is zero. Returns ``(d·q, new r·r)``, each ``(S,)``.
    """
    curvature = segment_dots(d, q, segments)
    alpha = ratio(rr, curvature)
    lengths = torch.tensor(segments, device=x.device)
    spread = alpha.repeat_interleave(lengths, output_size=x.numel())
    x.addcmul_(spread, d)
    r.addcmul_(spread, q, value=-1)
    rr_next = segment_dots(r, r, segments)
    beta = ratio(rr_next, rr)
    d.mul_(beta.repeat_interleave(lengths, output_size=x.numel())).add_(r)
    return curvature, rr_next


def ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Quotient of step lengths; zero where the numerator is, otherwise as it comes."""
    return torch.where(numerator == 0, 0.0, numerator / denominator)
