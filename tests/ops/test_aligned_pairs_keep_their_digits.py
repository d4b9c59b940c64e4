"""Where partners are close and τ is small, 1 − P is tiny, and no kernel loses more digits than plain PyTorch."""

import pytest
import torch
from aligned_cases import DISTANCES, TEMPERATURES, aligned_views, exact_loss
from contrastive_cases import Loss, derivatives, each_loss, needs_native, relative_error
from torch import Tensor

from bissl_fast.ops import backend
from bissl_fast.ops.backend import why_absent

ROUNDING = 2e-7
SPLIT = 1e-7  # of a cosine from two float16 terms, which τ divides; hard negatives make it seen
TINY = 1e-30  # what is smaller is near the end of float32's range, for products of two factors

on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")]
each_kernel = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param("cpp", marks=needs_native),
        pytest.param("triton", marks=on_a_gpu),
        pytest.param("cuda", marks=[*on_a_gpu, pytest.mark.skipif(bool(why_absent("cuda")), reason="it is absent")]),
    ],
)


def errors(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """Relative errors, of what float32 can hold."""
    return [
        relative_error(f.cpu(), e) if e.norm() > TINY else float(f.double().norm() > 10 * TINY)
        for f, e in zip(found, exact, strict=True)
    ]


def outcome(loss: Loss, kernel: str, inputs: tuple[Tensor, ...], temperature: float) -> tuple[list[float], list[float]]:
    """Errors of a backend and of plain PyTorch, on the backend's device, in loss, gradient and product."""
    exact = derivatives(
        lambda a, b: exact_loss(a, b, temperature, loss.cross_view), *(rows.double() for rows in inputs)
    )
    placed = tuple(rows.to("cpu" if kernel == "cpp" else "cuda") for rows in inputs)
    plain = derivatives(lambda a, b: loss.reference(a, b, temperature), *placed)
    with backend(kernel):
        fused = derivatives(lambda a, b: loss.fused(a, b, temperature), *placed)
    return errors(fused, exact), errors(plain, exact)


def drawn(pairs: int, dim: int, distance: float, seed: int) -> tuple[Tensor, ...]:
    """Two aligned views and two tangents."""
    generator = torch.Generator().manual_seed(seed + 100)
    return *aligned_views(pairs, dim, distance, seed), *torch.randn(2, pairs, dim, generator=generator)


def hold(kernel: str, temperature: float, fused: Tensor, plain: Tensor) -> None:
    """Root mean squares of errors over draws: at most twice plain PyTorch's, beside what rounding leaves of either."""
    split = SPLIT / temperature if kernel == "triton" else 0.0
    fused, plain = (errors.square().mean(dim=0).sqrt() for errors in (fused, plain))
    assert (fused <= (2 * plain).clamp_min(ROUNDING) + split).all(), (fused, plain)


each_input = pytest.mark.parametrize(("pairs", "dim"), [(64, 128), (90, 4)], ids=["kept", "recomputed"])


@each_kernel
@each_loss
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("distance", DISTANCES)
@each_input
def test_float32_errs_at_most_twice_as_much_as_plain_pytorch(
    kernel: str, loss: Loss, temperature: float, distance: float, pairs: int, dim: int
) -> None:
    runs = [outcome(loss, kernel, drawn(pairs, dim, distance, seed), temperature) for seed in range(3)]
    fused, plain = torch.tensor(runs)[..., 1:].unbind(1)
    hold(kernel, temperature, fused, plain)


@each_kernel
@each_loss
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("distance", DISTANCES)
@each_input
def test_float32_loss_errs_at_most_twice_as_much_as_plain_pytorch(
    kernel: str, loss: Loss, temperature: float, distance: float, pairs: int, dim: int
) -> None:
    runs = []
    for seed in range(16):  # a loss is one number, whose error may be luckily small in a few draws
        views = aligned_views(pairs, dim, distance, seed)
        exact = exact_loss(*(rows.double() for rows in views), temperature, loss.cross_view)
        placed = tuple(rows.to("cpu" if kernel == "cpp" else "cuda") for rows in views)
        plain = loss.reference(*placed, temperature)
        with backend(kernel):
            fused = loss.fused(*placed, temperature)
        runs.append((errors((fused,), (exact,)), errors((plain,), (exact,))))
    hold(kernel, temperature, *torch.tensor(runs).unbind(1))


@each_kernel
@each_loss
@pytest.mark.parametrize("temperature", [0.05, 0.03, 0.02])
@pytest.mark.parametrize("distance", DISTANCES)
def test_float32_is_right_where_one_less_p_is_below_its_rounding(
    kernel: str, loss: Loss, temperature: float, distance: float
) -> None:
    fused, _ = outcome(loss, kernel, drawn(64, 128, distance, seed=0), temperature)
    assert max(fused) <= 3e-7 / temperature  # a cosine's rounding over τ


@needs_native
@each_loss
@pytest.mark.parametrize("temperature", [0.02, 0.005, 0.003])  # 1 − P from 1e-16 to 1e-95
@pytest.mark.parametrize("distance", DISTANCES)
def test_float64_is_right_where_one_less_p_is_below_its_rounding(
    loss: Loss, temperature: float, distance: float
) -> None:
    inputs = tuple(rows.double() for rows in drawn(64, 128, distance, seed=0))
    exact = derivatives(lambda a, b: exact_loss(a, b, temperature, loss.cross_view), *inputs)
    fused = derivatives(lambda a, b: loss.fused(a, b, temperature), *inputs)
    assert all(relative_error(f, e) <= 3e-15 / temperature for f, e in zip(fused, exact, strict=True))
