"""LARS against VICReg's formula on numbers."""

import pytest
import torch

from bissl_fast.training.lars import LARS

RATE, DECAY, MOMENTUM, TRUST = 0.3, 0.01, 0.9, 0.02


def by_formula(p: torch.Tensor, gradients: list[torch.Tensor], adapted: bool) -> torch.Tensor:
    m = torch.zeros_like(p)
    for g in gradients:
        if adapted:
            g = g + DECAY * p
            norms = p.norm().item(), g.norm().item()
            g = g * (TRUST * norms[0] / norms[1] if min(norms) > 0 else 1.0)
        m = MOMENTUM * m + g
        p = p - RATE * m
    return p


@pytest.mark.parametrize("shape", [(4, 3), (5,), (2, 3, 2, 2)])
@pytest.mark.parametrize("exclude_1d", [True, False])
def test_three_steps_equal_the_formula(shape: tuple[int, ...], exclude_1d: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    p = torch.nn.Parameter(start.clone())
    optimizer = LARS([p], RATE, DECAY, MOMENTUM, TRUST, exclude_1d)
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(p.grad, gradient), "the gradient belongs to the caller"
    adapted = len(shape) > 1 or not exclude_1d
    torch.testing.assert_close(p.data, by_formula(start, gradients, adapted), rtol=1e-12, atol=1e-12)


def test_a_zero_weight_or_gradient_is_not_adapted() -> None:
    p = torch.nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    LARS([p], lr=1.0, weight_decay=0.0).step()
    assert p.tolist() == [[-1.0, -1.0], [-1.0, -1.0]]
    p.grad = torch.zeros(2, 2)
    LARS([p], lr=1.0, weight_decay=0.0).step()
    assert torch.isfinite(p).all()


def test_negative_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="momentum must not be negative"):
        LARS([torch.nn.Parameter(torch.ones(1))], lr=1.0, momentum=-0.5)
