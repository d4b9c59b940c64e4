"""Modes of differentiation in which a custom function would answer zero or nonsense."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bissl_fast.ops import backend, info_nce_loss, nt_xent_loss

LOSSES = (nt_xent_loss, info_nce_loss)
Loss = Callable[..., Tensor]


def cases(loss: Loss) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, other, v = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator)
    return lambda x: loss(x, other, 0.5), z, v


def forward_over_forward(f: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    result: Tensor = torch.func.jvp(lambda x: torch.func.jvp(f, (x,), (v,))[1], (z,), (v,))[1]
    return result


@pytest.mark.parametrize("loss", LOSSES)
def test_forward_over_forward_raises_and_the_reference_gives_it(loss: Loss) -> None:
    f, z, v = cases(loss)
    for function in (f, lambda x: f(x).square(), torch.func.grad(f)):
        with pytest.raises(NotImplementedError, match="forward mode over forward mode"):
            forward_over_forward(function, z, v)
    with backend("reference"):
        curvature = forward_over_forward(f, z, v)
    product = torch.func.jvp(torch.func.grad(f), (z,), (v,))[1]
    torch.testing.assert_close((product * v).sum(), curvature)
    assert curvature.abs() > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_vmap_raises_a_sentence_that_names_what_works(loss: Loss) -> None:
    f, z, _ = cases(loss)
    with pytest.raises(NotImplementedError, match="no batching rule for vmap"):
        torch.func.hessian(f)(z)
    dense = torch.autograd.functional.hessian(f, z)
    with backend("reference"):
        torch.testing.assert_close(dense, torch.func.hessian(f)(z))


@pytest.mark.parametrize("loss", LOSSES)
def test_vhp_works_and_hvp_by_the_double_backward_trick_says_what_to_use(loss: Loss) -> None:
    f, z, v = cases(loss)
    product = torch.func.jvp(torch.func.grad(f), (z,), (v,))[1]
    torch.testing.assert_close(torch.autograd.functional.vhp(f, z, v)[1], product)
    with pytest.raises(NotImplementedError, match=r"`torch.autograd.functional.vhp` works"):
        torch.autograd.functional.hvp(f, z, v)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_is_no_negative_of_itself_at_any_temperature(loss: Loss) -> None:
    z1, z2 = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for temperature in (1e3, 1e6, 1e12):
        with backend("reference"):
            expected = loss(z1, z2, temperature)
        torch.testing.assert_close(loss(z1, z2, temperature), expected, rtol=1e-12, atol=0)


def test_an_overflow_in_float16_is_infinite_for_gradient_scalers_but_a_zero_row_stays_finite() -> None:
    small = (0.001 * torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2))).half()
    z1, z2 = small[0].requires_grad_(), small[1]
    (65536 * nt_xent_loss(z1, z2, 0.1)).backward()
    assert z1.grad is not None
    assert torch.isinf(z1.grad).any()
    zero = torch.zeros(6, 4, dtype=torch.float16, requires_grad=True)
    nt_xent_loss(zero, z2, 0.1).backward()
    assert zero.grad is not None
    assert torch.isfinite(zero.grad).all()


def test_sparse_embeddings_are_answered_with_what_to_do() -> None:
    with pytest.raises(TypeError, match="dense tensors"):
        nt_xent_loss(torch.eye(3).to_sparse(), torch.eye(3).to_sparse())
