"""Raw kernels of vector work: what the compiled backends implement, and how the ops are declared to PyTorch.

Vectors are ``(L,)``, float32 or float64, contiguous, all of one dtype and on one device; ``segments`` are S lengths
that add up to L, zero among them or not. Sums are formed in float64 and returned in the vectors' dtype. Their order
depends on the segments alone: the same bits for any number of threads.

``segment_dots(a, b, segments) -> dots``
    dots ``(S,)``.
``cg_update(x!, r!, d!, q, rz, segments, inverse_diagonal=None) -> (curvature, rz_next, rr_next)``
    rz ``(S,)``: r·z before the update, ``z = inverse_diagonal ∘ r`` or r. Outputs ``(S,)``. What is updated in place
    (x, r, d) may share no memory with another argument.

Both wait for nothing: no scalar leaves the device, nothing is copied to it, and memory comes from PyTorch's allocator.
"""

from collections.abc import Sequence

import torch

from bissl_fast.ops import native

ADVICE = "It is vector work of solvers: call it on detached tensors, or under `ops.backend('reference')`."


def fake_segment_dots(a: torch.Tensor, b: torch.Tensor, segments: Sequence[int]) -> torch.Tensor:
    """Shape and dtype of ``segment_dots``."""
    return a.new_empty(len(segments))


def fake_cg_update(
    x: torch.Tensor,
    r: torch.Tensor,
    d: torch.Tensor,
    q: torch.Tensor,
    rz: torch.Tensor,
    segments: Sequence[int],
    inverse_diagonal: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes and dtypes of ``cg_update``."""
    return torch.empty_like(rz), torch.empty_like(rz), torch.empty_like(rz)


_LIBRARY = native.register_compiled({"segment_dots": fake_segment_dots, "cg_update": fake_cg_update}, ADVICE)
