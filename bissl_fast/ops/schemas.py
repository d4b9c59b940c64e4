"""Raw contrastive kernels: what a backend implements, and how each op is declared to PyTorch.

NT-Xent and two-sided InfoNCE are one loss over the 2B stacked unit rows ``u``, with two sets of negatives:

    loss = 1/N Σ_i [ log Σ_{j in A(i)} exp(u_i·u_j / τ) − u_i·u_partner(i) / τ ],    N = 2B,

``A(i)`` being every other row (NT-Xent) or every row of the other view (``cross_view``, InfoNCE). A backend
is three kernels. ``z`` is float16, bfloat16, float32 or float64 with any strides; *wide* means float64 for
float64 inputs and float32 for all others; every output is contiguous.

``fwd(z1, z2, temperature, cross_view) -> (loss, units, inv_norms, lse, kept)``
    loss ``()`` wide; units ``(N, D)``: rows z / max(‖z‖, ε), wide (Triton: :func:`unit_dtype`); inv_norms
    ``(N,)`` wide: 1 / max(‖z‖, ε), exactly ``1/ε`` where the row was clamped; lse ``(N,)`` wide: natural log of
    the row sums (positives included); kept ``(K,)`` wide: whatever else the backend wants to see again, maybe nothing.
``bwd(units, inv_norms, lse, kept, temperature, cross_view) -> (grad, radial)``
    grad ``(N, D)`` wide: dloss/dz; radial ``(N,)`` wide: u_i · dloss/du_i.
``bwd_bwd(units, inv_norms, lse, kept, grad, radial, tangent, temperature, cross_view) -> product``
    tangent ``(N, D)`` wide, contiguous; product ``(N, D)`` wide: the Hessian in z times the tangent.

Triton's two derivatives also take what autograd hands on and give what it wants back, which saves launches and passes
over memory. With both views' gradients, tangents and products in the dtype of z, each ``(B, D)``:

``bwd(cotangent, units, inv_norms, lse, kept, dtype, temperature, cross_view) -> (g1, g2, grad, radial)``
    g1, g2: cotangent times the halves of grad.
``bwd_bwd(cotangent, v1, v2, units, inv_norms, lse, kept, grad, radial, temperature, cross_view) -> (slope, h1, h2)``
    slope ``()`` wide: ⟨grad, v⟩; h1, h2: cotangent times the halves of the product.

With G = dloss/du, n = ‖z‖ and the projector J = (I − u uᵀ)/n (J = I/ε on a clamped row):
grad = J G, u̇ = J v, and with Ġ the derivative of G along u̇,

    product_i = J (Ġ_i − radial_i u̇_i) − u_i (grad_i·u̇_i) − grad_i (u_i·v_i)/n    (J Ġ_i on a clamped row).
"""

from collections.abc import Callable
from typing import Any

import torch

NORM_EPS = 1e-12  # ε of torch.nn.functional.normalize

ARGUMENTS = {
    "fwd": "(Tensor z1, Tensor z2, float temperature, bool cross_view) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "bwd": "(Tensor units, Tensor inv_norms, Tensor lse, Tensor kept, float temperature, bool cross_view)"
    " -> (Tensor, Tensor)",
    "bwd_bwd": "(Tensor units, Tensor inv_norms, Tensor lse, Tensor kept, Tensor grad, Tensor radial, "
    "Tensor tangent, float temperature, bool cross_view) -> Tensor",
}
TRITON_ARGUMENTS = {
    "fwd": ARGUMENTS["fwd"],
    "bwd": "(Tensor cotangent, Tensor units, Tensor inv_norms, Tensor lse, Tensor kept, ScalarType dtype,"
    " float temperature, bool cross_view) -> (Tensor, Tensor, Tensor, Tensor)",
    "bwd_bwd": "(Tensor cotangent, Tensor v1, Tensor v2, Tensor units, Tensor inv_norms, Tensor lse, Tensor kept,"
    " Tensor grad, Tensor radial, float temperature, bool cross_view) -> (Tensor, Tensor, Tensor)",
}


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of sums, gradients and products for embeddings of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_dtype(z: torch.Tensor) -> torch.dtype:
    """Dtype of Triton's unit rows: half precision stays half on a GPU and widens on a CPU (the interpreter)."""
    return z.dtype if z.is_cuda else wide_dtype(z.dtype)


def kept_size(z1: torch.Tensor, cross_view: bool) -> int:
    """Length of ``kept``, as in csrc/cuda/contrastive.h and csrc/cpu/kept.h, with which opcheck compares it."""
    pairs, columns = z1.shape
    rows = 2 * pairs
    if z1.is_cuda:
        return 3 * rows
    tiles = pairs * pairs if cross_view else rows * (rows + 256) // 2
    return 16 + 2 * rows + (tiles if tiles <= min(20 * rows * columns, 1 << 26) else 0)


def fake_fwd(
    z1: torch.Tensor, z2: torch.Tensor, temperature: float, cross_view: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes and dtypes of ``fwd``, compiled."""
    rows, columns = z1.shape[0] + z2.shape[0], z1.shape[1]
    wide = wide_dtype(z1.dtype)
    return (
        z1.new_empty((), dtype=wide),
        z1.new_empty((rows, columns), dtype=wide),
        z1.new_empty((rows,), dtype=wide),
        z1.new_empty((rows,), dtype=wide),
        z1.new_empty((kept_size(z1, cross_view),), dtype=wide),
    )


def fake_triton_fwd(
    z1: torch.Tensor, z2: torch.Tensor, temperature: float, cross_view: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes and dtypes of ``fwd``, Triton: units as narrow as the embeddings, and one number kept."""
    loss, units, inv_norms, lse, kept = fake_fwd(z1, z2, temperature, cross_view)
    return loss, units.to(unit_dtype(z1)), inv_norms, lse, kept.new_empty(1)


def fake_bwd(
    units: torch.Tensor,
    inv_norms: torch.Tensor,
    lse: torch.Tensor,
    kept: torch.Tensor,
    temperature: float,
    cross_view: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes and dtypes of ``bwd``."""
    return units.new_empty(units.shape, dtype=lse.dtype), torch.empty_like(lse)


def fake_bwd_bwd(
    units: torch.Tensor,
    inv_norms: torch.Tensor,
    lse: torch.Tensor,
    kept: torch.Tensor,
    grad: torch.Tensor,
    radial: torch.Tensor,
    tangent: torch.Tensor,
    temperature: float,
    cross_view: bool,
) -> torch.Tensor:
    """Shape and dtype of ``bwd_bwd``."""
    return units.new_empty(units.shape, dtype=lse.dtype)


def fake_triton_bwd(
    cotangent: torch.Tensor,
    units: torch.Tensor,
    inv_norms: torch.Tensor,
    lse: torch.Tensor,
    kept: torch.Tensor,
    dtype: torch.dtype,
    temperature: float,
    cross_view: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes and dtypes of Triton's ``bwd``."""
    view = (units.shape[0] // 2, units.shape[1])
    grad, radial = fake_bwd(units, inv_norms, lse, kept, temperature, cross_view)
    return units.new_empty(view, dtype=dtype), units.new_empty(view, dtype=dtype), grad, radial


def fake_triton_bwd_bwd(
    cotangent: torch.Tensor,
    v1: torch.Tensor,
    v2: torch.Tensor,
    units: torch.Tensor,
    inv_norms: torch.Tensor,
    lse: torch.Tensor,
    kept: torch.Tensor,
    grad: torch.Tensor,
    radial: torch.Tensor,
    temperature: float,
    cross_view: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes and dtypes of Triton's ``bwd_bwd``."""
    return lse.new_empty(()), v1.new_empty(v1.shape), v2.new_empty(v2.shape)


FAKES: dict[str, Callable[..., Any]] = {"fwd": fake_fwd, "bwd": fake_bwd, "bwd_bwd": fake_bwd_bwd}
TRITON_FAKES: dict[str, Callable[..., Any]] = {
    "fwd": fake_triton_fwd,
    "bwd": fake_triton_bwd,
    "bwd_bwd": fake_triton_bwd_bwd,
}
