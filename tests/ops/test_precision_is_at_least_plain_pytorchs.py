"""In every dtype the error against float64 is at most twice that of plain PyTorch in the same dtype."""

import pytest
import torch
from contrastive_cases import Loss, derivatives, each_loss, needs_native, relative_error, views

pytestmark = needs_native

# What one rounding of the result costs.
ROUNDING = {torch.float32: 2e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@each_loss
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("temperature", [0.5, 0.1])
@pytest.mark.parametrize(("pairs", "dim"), [(4, 64), (100, 17), (130, 257)])
def test_error_is_at_most_twice_plain_pytorchs(
    loss: Loss, dtype: torch.dtype, temperature: float, pairs: int, dim: int
) -> None:
    errors = []
    for seed in range(6):  # plain PyTorch hits the nearest number now and then
        z1, z2 = views(pairs, dim, dtype, seed=seed)
        v1, v2 = views(pairs, dim, dtype, noise=2.0, seed=seed + 100)
        wide = tuple(t.double() for t in (z1, z2, v1, v2))
        exact = derivatives(lambda a, b: loss.reference(a, b, temperature), *wide)
        plain = derivatives(lambda a, b: loss.reference(a, b, temperature), z1, z2, v1, v2)
        fused = derivatives(lambda a, b: loss.fused(a, b, temperature), z1, z2, v1, v2)
        errors.append([[relative_error(x, e) for x, e in zip(run, exact, strict=True)] for run in (fused, plain)])
    fused_errors, plain_errors = torch.tensor(errors).square().mean(dim=0).sqrt()
    assert (fused_errors <= (2 * plain_errors).clamp_min(ROUNDING[dtype])).all(), (fused_errors, plain_errors)


@each_loss
def test_float32_reaches_the_promised_accuracy(loss: Loss) -> None:
    z1, z2 = views(512, 128, torch.float32)
    v1, v2 = torch.randn_like(z1), torch.randn_like(z2)
    value, gradient, product = derivatives(lambda a, b: loss.fused(a, b, 0.5), z1, z2, v1, v2)
    exact = derivatives(lambda a, b: loss.reference(a, b, 0.5), *(t.double() for t in (z1, z2, v1, v2)))
    assert relative_error(value, exact[0]) <= 2e-6
    assert relative_error(gradient, exact[1]) <= 1e-5
    assert relative_error(product, exact[2]) <= 1e-5


@each_loss
def test_the_loss_of_half_precision_is_float32_and_its_gradient_half(loss: Loss) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        z1, z2 = (z.requires_grad_() for z in views(8, 16, dtype))
        value = loss.fused(z1, z2)
        value.backward()
        assert value.dtype == torch.float32
        assert z1.grad is not None
        assert z1.grad.dtype == dtype


@each_loss
def test_autocast_does_not_lower_the_precision(loss: Loss) -> None:
    z1, z2 = (z.requires_grad_() for z in views(32, 16, torch.float32))
    expected = torch.autograd.grad(loss.fused(z1, z2), (z1, z2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(loss.fused(z1, z2), (z1, z2))
        half = torch.nn.functional.linear(z1, torch.eye(16))
        loss.fused(half, half).backward()
    assert half.dtype == torch.bfloat16
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
