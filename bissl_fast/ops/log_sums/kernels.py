"""Raw kernels of log-sums in plain PyTorch, tile by tile: O((N + M) D) memory, and one node each of a traced graph.

With s_ij = scale · x_i·y_j, lse_i = log Σ_j exp(s_ij), P_ij = exp(s_ij − lse_i) and a cotangent c (N,):

``fwd -> lse`` (N,)
``bwd -> (gx, gy)``
    gx = scale · (c∘P) y, gy = scale · (c∘P)ᵀ x.
``jvp -> lse_t``
    lse_t_i = Σ_j P_ij ṡ_ij, with ṡ_ij = scale · (x_t_i·y_j + x_i·y_t_j).
``bwd_jvp -> (lse_t, gx_t, gy_t)``
    With W = c∘P and Ẇ = c_t∘P + W∘(ṡ − lse_t): gx_t = scale · (Ẇ y + W y_t), gy_t = scale · (Ẇᵀ x + Wᵀ x_t).

x is (N, D), y is (M, D), both float32 or float64 and on one device; with ``skip``, M = N and the diagonal is left out.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from bissl_fast.ops import native

TILE = 1024
"""Rows and columns of the matrix of products that are there at once."""

TAKEN = "Tensor x, Tensor y, Tensor lse, float scale, bool skip"
ARGUMENTS = {
    "fwd": "(Tensor x, Tensor y, float scale, bool skip) -> Tensor",
    "bwd": f"(Tensor c, {TAKEN}) -> (Tensor, Tensor)",
    "jvp": f"(Tensor x_t, Tensor y_t, {TAKEN}) -> Tensor",
    "bwd_jvp": f"(Tensor? c_t, Tensor x_t, Tensor y_t, Tensor c, {TAKEN}) -> (Tensor, Tensor, Tensor)",
}

Kernel = Callable[..., Any]


def in_full_precision(kernel: Kernel) -> Kernel:
    """A kernel whose products autocast does not see."""

    @wraps(kernel)
    def run(*args: Any) -> Any:
        device = next(a for a in args if isinstance(a, Tensor)).device
        with torch.autocast(device.type, enabled=False):
            return kernel(*args)

    return run


def slices(length: int) -> Iterator[slice]:
    """Neighbouring pieces of so many rows."""
    return (slice(start, min(start + TILE, length)) for start in range(0, length, TILE))


def scores(x: Tensor, y: Tensor, rows: slice, columns: slice, scale: float, skip: bool) -> Tensor:
    """A tile of s."""
    found = scale * (x[rows] @ y[columns].T)
    return found.fill_diagonal_(float("-inf")) if skip and rows == columns else found


def tiles(x: Tensor, y: Tensor, lse: Tensor, scale: float, skip: bool) -> Iterator[tuple[slice, slice, Tensor]]:
    """Every tile of P, with its rows and columns."""
    for rows in slices(len(x)):
        for columns in slices(len(y)):
            yield rows, columns, (scores(x, y, rows, columns, scale, skip) - lse[rows, None]).exp_()


def slopes(x_t: Tensor, y_t: Tensor, x: Tensor, y: Tensor, rows: slice, columns: slice, scale: float) -> Tensor:
    """A tile of ṡ."""
    return scale * (x_t[rows] @ y[columns].T + x[rows] @ y_t[columns].T)


@in_full_precision
def fwd(x: Tensor, y: Tensor, scale: float, skip: bool) -> Tensor:
    lse = x.new_full((len(x),), float("-inf"))
    for rows in slices(len(x)):
        for columns in slices(len(y)):
            more = scores(x, y, rows, columns, scale, skip).logsumexp(1)
            lse[rows] = torch.logaddexp(lse[rows], more)
    return lse


@in_full_precision
def bwd(c: Tensor, x: Tensor, y: Tensor, lse: Tensor, scale: float, skip: bool) -> tuple[Tensor, Tensor]:
    gx, gy = zeros_like(x), zeros_like(y)
    for rows, columns, weights in tiles(x, y, lse, scale, skip):
        weights.mul_(c[rows, None])
        gx[rows].addmm_(weights, y[columns], alpha=scale)
        gy[columns].addmm_(weights.T, x[rows], alpha=scale)
    return gx, gy


@in_full_precision
def jvp(x_t: Tensor, y_t: Tensor, x: Tensor, y: Tensor, lse: Tensor, scale: float, skip: bool) -> Tensor:
    lse_t = torch.zeros_like(lse)
    for rows, columns, weights in tiles(x, y, lse, scale, skip):
        lse_t[rows] += (weights * slopes(x_t, y_t, x, y, rows, columns, scale)).sum(1)
    return lse_t


@in_full_precision
def bwd_jvp(
    c_t: Tensor | None, x_t: Tensor, y_t: Tensor, c: Tensor, x: Tensor, y: Tensor, lse: Tensor, scale: float, skip: bool
) -> tuple[Tensor, Tensor, Tensor]:
    lse_t = jvp(x_t, y_t, x, y, lse, scale, skip)
    gx_t, gy_t = zeros_like(x), zeros_like(y)
    for rows, columns, weights in tiles(x, y, lse, scale, skip):
        moved = slopes(x_t, y_t, x, y, rows, columns, scale).sub_(lse_t[rows, None]).mul_(c[rows, None])
        moved = (moved if c_t is None else moved.add_(c_t[rows, None])).mul_(weights)
        weights.mul_(c[rows, None])
        gx_t[rows].addmm_(moved, y[columns], alpha=scale).addmm_(weights, y_t[columns], alpha=scale)
        gy_t[columns].addmm_(moved.T, x[rows], alpha=scale).addmm_(weights.T, x_t[rows], alpha=scale)
    return lse_t, gx_t, gy_t


def zeros_like(x: Tensor) -> Tensor:
    """Zeros, contiguous whatever x is."""
    return x.new_zeros(x.shape)


def fake_fwd(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(x))


def fake_bwd(c: Tensor, x: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


def fake_jvp(x_t: Tensor, y_t: Tensor, x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(x))


def fake_bwd_jvp(
    c_t: Tensor | None, x_t: Tensor, y_t: Tensor, c: Tensor, x: Tensor, y: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(len(x)), x.new_empty(x.shape), y.new_empty(y.shape)


KERNELS: dict[str, Kernel] = {"fwd": fwd, "bwd": bwd, "jvp": jvp, "bwd_jvp": bwd_jvp}
FAKES: dict[str, Kernel] = {"fwd": fake_fwd, "bwd": fake_bwd, "jvp": fake_jvp, "bwd_jvp": fake_bwd_jvp}


def registered() -> Library:
    """Register the ops; the library must live as long as they are used."""
    library = Library("bissl_fast", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, kernel in KERNELS.items():
        library.define(f"log_sums_{name}{ARGUMENTS[name]}")  # type: ignore[no-untyped-call]
        for device in ("CPU", "CUDA"):
            library.impl(f"log_sums_{name}", kernel, device)  # type: ignore[no-untyped-call]
    native.register(library, "log_sums_", FAKES, "Call bissl_fast.ops.log_sums.log_sums.")
    return library


_LIBRARY = registered()
