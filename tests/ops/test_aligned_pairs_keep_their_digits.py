"""Where partners are close and τ is small, 1 − P is tiny, and no kernel loses more digits than plain PyTorch."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from aligned_cases import DISTANCES, TEMPERATURES, aligned_views, crowded_views, exact_loss
from contrastive_cases import Loss, derivatives, each_loss, needs_native, relative_error
from torch import Tensor

from bissl_fast.ops import backend
from bissl_fast.ops.backend import why_absent

ROUNDING = 2e-7  # under two units in float32's last place of the result, where plain PyTorch's error is luckily less
Views = Callable[[float, int], tuple[Tensor, Tensor]]
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


def drawn(views: Views, distance: float, seed: int) -> tuple[Tensor, ...]:
    """Two views and two tangents."""
    first, second = views(distance, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    return first, second, *torch.randn(2, *first.shape, generator=generator)


def hold(fused: Tensor, plain: Tensor) -> None:
    """Root mean squares of errors over draws: at most twice plain PyTorch's, beside what rounding leaves of either."""
    fused, plain = (errors.square().mean(dim=0).sqrt() for errors in (fused, plain))
    assert (fused <= (2 * plain).clamp_min(ROUNDING)).all(), (fused, plain)


INPUTS: dict[str, Views] = {
    "far_negatives": partial(aligned_views, 64, 128),
    "some_close_negatives": partial(aligned_views, 90, 4),
    "all_close_negatives": partial(crowded_views, 48, 32),
}
each_input = pytest.mark.parametrize("views", INPUTS.values(), ids=INPUTS)


@each_kernel
@each_loss
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("distance", DISTANCES)
@each_input
def test_float32_errs_at_most_twice_as_much_as_plain_pytorch(
    kernel: str, loss: Loss, temperature: float, distance: float, views: Views
) -> None:
    runs = [outcome(loss, kernel, drawn(views, distance, seed), temperature) for seed in range(3)]
    fused, plain = torch.tensor(runs)[..., 1:].unbind(1)
    hold(fused, plain)


@each_kernel
@each_loss
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("distance", DISTANCES)
@each_input
def test_float32_loss_errs_at_most_twice_as_much_as_plain_pytorch(
    kernel: str, loss: Loss, temperature: float, distance: float, views: Views
) -> None:
    runs = []
    for seed in range(16):  # a loss is one number, whose error may be luckily small in a few draws
        rows = views(distance, seed)
        exact = exact_loss(*(view.double() for view in rows), temperature, loss.cross_view)
        placed = tuple(view.to("cpu" if kernel == "cpp" else "cuda") for view in rows)
        plain = loss.reference(*placed, temperature)
        with backend(kernel):
            fused = loss.fused(*placed, temperature)
        runs.append((errors((fused,), (exact,)), errors((plain,), (exact,))))
    hold(*torch.tensor(runs).unbind(1))


@each_kernel
@each_loss
@pytest.mark.parametrize("temperature", [0.05, 0.03, 0.02])
@pytest.mark.parametrize("distance", DISTANCES)
def test_float32_is_right_where_one_less_p_is_below_its_rounding(
    kernel: str, loss: Loss, temperature: float, distance: float
) -> None:
    fused, _ = outcome(loss, kernel, drawn(INPUTS["far_negatives"], distance, seed=0), temperature)
    assert max(fused) <= 3e-7 / temperature  # a cosine's rounding over τ


@needs_native
@each_loss
@pytest.mark.parametrize("temperature", [0.02, 0.005, 0.003])  # 1 − P from 1e-16 to 1e-95
@pytest.mark.parametrize("distance", DISTANCES)
def test_float64_is_right_where_one_less_p_is_below_its_rounding(
    loss: Loss, temperature: float, distance: float
) -> None:
    inputs = tuple(rows.double() for rows in drawn(INPUTS["far_negatives"], distance, seed=0))
    exact = derivatives(lambda a, b: exact_loss(a, b, temperature, loss.cross_view), *inputs)
    fused = derivatives(lambda a, b: loss.fused(a, b, temperature), *inputs)
    assert all(relative_error(f, e) <= 3e-15 / temperature for f, e in zip(fused, exact, strict=True))
