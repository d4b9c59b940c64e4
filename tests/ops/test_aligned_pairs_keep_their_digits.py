"""Where partners are close and τ is small, 1 − P is tiny, and float32 loses no more digits than plain PyTorch."""

import pytest
import torch
from aligned_cases import DISTANCES, TEMPERATURES, aligned_views, exact_loss
from contrastive_cases import Loss, derivatives, each_loss, needs_native, relative_error
from torch import Tensor

pytestmark = needs_native

ROUNDING = 2e-7
TINY = 1e-30  # what is smaller is near the end of float32's range, for products of two factors


def errors(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """Relative errors, of what float32 can hold."""
    return [
        relative_error(f, e) if e.norm() > TINY else float(f.double().norm() > 10 * TINY)
        for f, e in zip(found, exact, strict=True)
    ]


@each_loss
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("pairs", "dim"), [(64, 128), (90, 4)], ids=["kept", "recomputed"])
def test_error_is_at_most_twice_plain_pytorchs(
    loss: Loss, temperature: float, distance: float, pairs: int, dim: int
) -> None:
    runs = []
    for seed in range(3):
        z = aligned_views(pairs, dim, distance, seed)
        v = torch.randn(2, pairs, dim, generator=torch.Generator().manual_seed(seed + 100)).unbind()
        exact = derivatives(
            lambda a, b: exact_loss(a, b, temperature, loss.cross_view), *(t.double() for t in (*z, *v))
        )
        plain = derivatives(lambda a, b: loss.reference(a, b, temperature), *z, *v)
        fused = derivatives(lambda a, b: loss.fused(a, b, temperature), *z, *v)
        runs.append([errors(fused, exact), errors(plain, exact)])
    fused_errors, plain_errors = torch.tensor(runs).square().mean(dim=0).sqrt()
    assert (fused_errors <= (2 * plain_errors).clamp_min(ROUNDING)).all(), (fused_errors, plain_errors)


@each_loss
@pytest.mark.parametrize("distance", DISTANCES)
def test_small_derivatives_are_right_where_one_less_p_is_below_rounding(loss: Loss, distance: float) -> None:
    temperature = 0.03  # 1 − P is 1e-11
    z = aligned_views(64, 128, distance, seed=0)
    v = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(1)).unbind()
    exact = derivatives(lambda a, b: exact_loss(a, b, temperature, loss.cross_view), *(t.double() for t in (*z, *v)))
    fused = derivatives(lambda a, b: loss.fused(a, b, temperature), *z, *v)
    assert max(errors(fused, exact)) <= 3e-7 / temperature  # a cosine's rounding over τ
