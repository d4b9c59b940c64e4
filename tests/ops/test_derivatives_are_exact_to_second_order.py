"""Every mode of autograd gives the derivatives of the definition, in float64 to rounding error."""

import pytest
import torch
from contrastive_cases import LOSSES, Loss, derivatives, each_loss, needs_native, relative_error, views
from torch import Tensor

from bissl_fast.ops import backend

pytestmark = needs_native

TEMPERATURE = 0.3
# Rows that do not fill a block, just fill it, and spill over; columns from one to more than a register.
SHAPES = [(b, d) for b in (1, 2, 3, 31, 33, 63, 65, 127, 129, 500) for d in (1, 3, 17, 64)] + [
    (65, 257),
    (300, 100),
]


def product_along(function, z1: Tensor, z2: Tensor, v1: Tensor, v2: Tensor) -> tuple[Tensor, ...]:
    """Gradient and Hessian-vector product, forward over reverse."""
    gradient = torch.func.grad(function, argnums=(0, 1))
    return torch.func.jvp(gradient, (z1, z2), (v1, v2))


@each_loss
@pytest.mark.parametrize(("pairs", "dim"), SHAPES)
def test_loss_gradient_and_product_equal_the_reference(loss: Loss, pairs: int, dim: int) -> None:
    z1, z2 = views(pairs, dim)
    v1, v2 = views(pairs, dim, noise=2.0, seed=1)
    found = derivatives(lambda a, b: loss.fused(a, b, TEMPERATURE), z1, z2, v1, v2)
    expected = derivatives(lambda a, b: loss.reference(a, b, TEMPERATURE), z1, z2, v1, v2)
    for f, e in zip(found, expected, strict=True):
        # Of a single column the gradient vanishes exactly, and what is left is rounding error divided by |z|.
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-9 if dim == 1 else 1e-12)


@each_loss
def test_forward_over_reverse_equals_reverse_over_reverse_and_the_dense_hessian(loss: Loss) -> None:
    z1, z2 = views(4, 3)
    v1, v2 = torch.randn_like(z1), torch.randn_like(z2)

    def fused(a: Tensor, b: Tensor) -> Tensor:
        return loss.fused(a, b, TEMPERATURE)

    def flat(z: Tensor) -> Tensor:
        return loss.reference(z[:12].view(4, 3), z[12:].view(4, 3), TEMPERATURE)

    _, _, reverse = derivatives(fused, z1, z2, v1, v2)
    _, forward = product_along(fused, z1, z2, v1, v2)
    hessian = torch.autograd.functional.hessian(flat, torch.cat([z1, z2]).flatten())
    dense = hessian @ torch.cat([v1, v2]).flatten()
    torch.testing.assert_close(torch.cat(forward), reverse, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(dense, reverse.flatten(), rtol=1e-9, atol=1e-12)


@each_loss
def test_gradcheck_and_gradgradcheck_pass_in_reverse_and_forward_mode(loss: Loss) -> None:
    inputs = tuple(z.requires_grad_() for z in views(5, 4))
    assert torch.autograd.gradcheck(loss.fused, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss.fused, inputs, check_fwd_over_rev=True)


@each_loss
def test_a_cotangent_scales_gradient_and_product_and_receives_its_own_derivative(loss: Loss) -> None:
    z1, z2 = views(6, 5)
    weight = torch.tensor(-2.5, dtype=torch.float64, requires_grad=True)

    def total(function):
        a, b = z1.clone().requires_grad_(), z2.clone().requires_grad_()
        first = torch.autograd.grad((weight * function(a, b, TEMPERATURE)).square(), (a, b), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (a, b, weight))

    for found, expected in zip(total(loss.fused), total(loss.reference), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@each_loss
def test_one_view_may_be_constant_or_the_other_or_both_the_same_tensor(loss: Loss) -> None:
    z1, z2 = views(6, 5)
    for choose in (lambda z: (z, z2), lambda z: (z1, z), lambda z: (z, z), lambda z: (z, z.flip(0))):
        found = torch.func.hessian(lambda z, c=choose: loss.reference(*c(z), TEMPERATURE))(z1)
        z = z1.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss.fused(*choose(z), TEMPERATURE), z, create_graph=True)
        v = torch.randn_like(z)
        (product,) = torch.autograd.grad(gradient, z, v)
        torch.testing.assert_close(product, torch.einsum("abcd,cd->ab", found, v), rtol=1e-9, atol=1e-12)


@each_loss
@pytest.mark.parametrize("temperature", [5.0, 0.1, 0.03, 0.005, 0.0005])
def test_any_temperature_is_right(loss: Loss, temperature: float) -> None:
    # Opposite rows make similarities of -1: exp((s - 1) / τ) underflows below τ = 0.02 in float32.
    z1, z2 = views(40, 6, noise=3.0)
    z2[:20] = -z1[:20]
    v1, v2 = torch.randn_like(z1), torch.randn_like(z2)
    expected = derivatives(lambda a, b: loss.reference(a, b, temperature), z1, z2, v1, v2)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        found = derivatives(
            lambda a, b: loss.fused(a, b, temperature), z1.to(dtype), z2.to(dtype), v1.to(dtype), v2.to(dtype)
        )
        # float32 embeddings of temperature τ are float64 ones of a similarity rounded by 1e-7 / τ.
        allowed = tolerance if dtype == torch.float64 else max(tolerance, 1e-6 / temperature)
        assert all(relative_error(f, e) <= allowed for f, e in zip(found, expected, strict=True))


@each_loss
def test_strides_and_offsets_do_not_matter(loss: Loss) -> None:
    z1, z2 = views(10, 6)
    padded = torch.zeros(30, 20, dtype=torch.float64)
    padded[3:23:2, 1:19:3] = z1
    expanded = z2[:1].expand(10, 6)
    for a, b in ((padded[3:23:2, 1:19:3], z2.t().contiguous().t()), (z1, expanded)):
        v1, v2 = torch.randn_like(z1), torch.randn_like(z2)
        found = derivatives(loss.fused, a, b, v1.t().contiguous().t(), v2)
        expected = derivatives(loss.fused, a.contiguous(), b.contiguous(), v1, v2)
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_row_gives_the_finite_result_of_normalize(loss: Loss, dtype: torch.dtype) -> None:
    z1, z2 = views(6, 5, dtype)
    z1[2] = 0
    v1, v2 = torch.randn_like(z1), torch.randn_like(z2)
    v1[2] = 0  # along the row itself the product is of size 1 / ε²
    found = derivatives(loss.fused, z1, z2, v1, v2)
    assert all(torch.isfinite(f).all() for f in found)
    if dtype == torch.float64:
        expected = derivatives(loss.reference, z1, z2, v1, v2)
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12)
        v1[2] = 1
        found, expected = (derivatives(f, z1, z2, v1, v2)[2] for f in (loss.fused, loss.reference))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@each_loss
def test_not_a_number_stays_visible(loss: Loss) -> None:
    z1, z2 = views(40, 5, torch.float32)
    z1[7, 3] = float("nan")
    for value in derivatives(loss.fused, z1, z2, torch.ones_like(z1), torch.ones_like(z2)):
        assert value.isnan().any()


def test_the_reference_normalises_as_pytorch_does() -> None:
    z1, z2 = (z.requires_grad_() for z in views(6, 5))
    u = torch.nn.functional.normalize(torch.cat([z1, z2]), dim=1)
    logits = (u @ u.T / TEMPERATURE).masked_fill(torch.eye(12, dtype=torch.bool), float("-inf"))
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(12).roll(6))
    with backend("reference"):
        torch.testing.assert_close(LOSSES["nt_xent"].fused(z1, z2, TEMPERATURE), expected, rtol=1e-14, atol=0)


@pytest.mark.peer
def test_equals_lightly() -> None:
    lightly_loss = pytest.importorskip("lightly.loss", reason="the extra `peer` is not installed")
    z1, z2 = views(33, 17)
    peer = lightly_loss.NTXentLoss(temperature=TEMPERATURE)
    v1, v2 = torch.randn_like(z1), torch.randn_like(z2)
    found = derivatives(lambda a, b: LOSSES["nt_xent"].fused(a, b, TEMPERATURE), z1, z2, v1, v2)
    expected = derivatives(peer, z1, z2, v1, v2)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-12)
