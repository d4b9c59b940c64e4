"""A silent zero is the worst bug: what has no derivative raises, and a lost one is noticed."""

import pytest
import torch
from contrastive_cases import Loss, each_loss, needs_native, views

from bissl_fast.ops import backend, contrastive, info_nce_loss, nt_xent_loss

pytestmark = needs_native


def raw_arguments(name: str) -> tuple:
    """Arguments of a raw kernel that are fit for it."""
    ops = torch.ops.bissl_fast
    z1, z2 = views(4, 3)
    _, units, inv_norms, lse, kept = ops.contrastive_fwd(z1, z2, 0.5, False)
    grad, radial = ops.contrastive_bwd(units, inv_norms, lse, kept, 0.5, False)
    tensors = {
        "contrastive_fwd": (z1, z2),
        "contrastive_bwd": (units, inv_norms, lse, kept),
        "contrastive_bwd_bwd": (units, inv_norms, lse, kept, grad, radial, torch.ones_like(grad)),
    }
    return tensors[name]


RAW = ["contrastive_fwd", "contrastive_bwd", "contrastive_bwd_bwd"]


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("mode", ["forward_ad", "functorch", "requires_grad"])
def test_a_raw_kernel_met_by_a_derivative_raises(name: str, mode: str) -> None:
    op = getattr(torch.ops.bissl_fast, name)
    first, *rest = raw_arguments(name)

    def differentiate() -> None:
        if mode == "functorch":
            torch.func.jvp(lambda z: op(z, *rest, 0.5, False), (first,), (torch.ones_like(first),))
        elif mode == "forward_ad":
            with torch.autograd.forward_ad.dual_level():
                op(torch.autograd.forward_ad.make_dual(first, torch.ones_like(first)), *rest, 0.5, False)
        else:
            op(first.clone().requires_grad_(), *rest, 0.5, False)

    with pytest.raises(NotImplementedError, match="raw kernel"):
        differentiate()


@pytest.mark.parametrize("name", RAW)
def test_a_raw_kernel_passes_opcheck(name: str) -> None:
    for cross_view in (False, True):
        for pairs, dim in ((4, 3), (9, 64), (70, 200)):  # with and without kept tiles
            z1, z2 = views(pairs, dim, torch.float32)
            ops = torch.ops.bissl_fast
            _, *saved = ops.contrastive_fwd(z1, z2, 0.5, cross_view)
            grads = ops.contrastive_bwd(*saved, 0.5, cross_view)
            arguments = {
                "contrastive_fwd": (z1.bfloat16(), z2.bfloat16()),
                "contrastive_bwd": tuple(saved),
                "contrastive_bwd_bwd": (*saved, *grads, torch.ones_like(grads[0])),
            }
            torch.library.opcheck(getattr(ops, name).default, (*arguments[name], 0.5, cross_view))


@each_loss
def test_a_third_order_raises_in_every_mode(loss: Loss) -> None:
    z1, z2 = views(5, 4)
    v = torch.randn_like(z1)

    def product(z: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(torch.func.grad(lambda x: loss.fused(x, z2)), (z,), (v,))[1].sum()

    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.func.grad(product)(z1)
    with pytest.raises(NotImplementedError, match="forward mode over forward mode"):
        torch.func.jvp(product, (z1,), (v,))
    z = z1.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss.fused(z, z2), z, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), z, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad(second.sum(), z)
    with backend("reference"):
        assert torch.isfinite(torch.func.grad(product)(z1)).all()


@each_loss
def test_vmap_raises(loss: Loss) -> None:
    z1, z2 = views(5, 4)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda z: loss.fused(z, z2))(torch.stack([z1, z1]))


def is_noticed(loss_function) -> bool:
    """Whether the checks of second order fail for a loss."""
    inputs = tuple(z.requires_grad_() for z in views(5, 4))
    try:
        torch.autograd.gradgradcheck(loss_function, inputs, check_fwd_over_rev=True)
    except (RuntimeError, AssertionError):
        return True
    return False


@pytest.mark.parametrize("mode", ["backward", "jvp"])
def test_a_derivative_that_is_removed_or_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    assert not is_noticed(nt_xent_loss)
    right = getattr(contrastive.ContrastiveGradient, mode)

    def absent(ctx, *tangents):
        return tuple(None if t is None else torch.zeros_like(t) for t in right(ctx, *tangents))

    def wrong(ctx, *tangents):
        return tuple(None if t is None else 1.01 * t for t in right(ctx, *tangents))

    for broken in (absent, wrong):
        monkeypatch.setattr(contrastive.ContrastiveGradient, mode, staticmethod(broken))
        assert is_noticed(nt_xent_loss)


Z = torch.randn(4, 3)
BAD_INPUTS = {
    "different batch": ((Z, Z[:3]), 0.5, ValueError, "same shape"),
    "different width": ((Z, Z[:, :2]), 0.5, ValueError, "same shape"),
    "three axes": ((Z[None], Z[None]), 0.5, ValueError, "same shape"),
    "no columns": ((Z[:, :0], Z[:, :0]), 0.5, ValueError, "at least one row and one column"),
    "no rows": ((Z[:0], Z[:0]), 0.5, ValueError, "at least one row and one column"),
    "integers": ((Z.long(), Z.long()), 0.5, TypeError, "int64"),
    "complex": ((Z.to(torch.complex64),) * 2, 0.5, TypeError, "complex64"),
    "two dtypes": ((Z, Z.double()), 0.5, TypeError, "one dtype"),
    "lists": (([[1.0]], [[1.0]]), 0.5, TypeError, "list"),
    "two devices": ((Z, Z.to("meta")), 0.5, ValueError, "one device"),
    "temperature 0": ((Z, Z), 0.0, ValueError, "positive and finite"),
    "temperature below 0": ((Z, Z), -0.1, ValueError, "positive and finite"),
    "temperature NaN": ((Z, Z), float("nan"), ValueError, "positive and finite"),
    "temperature infinite": ((Z, Z), float("inf"), ValueError, "positive and finite"),
    "temperature tensor": ((Z, Z), torch.tensor(0.5), TypeError, "number"),
}


@pytest.mark.parametrize("function", [nt_xent_loss, info_nce_loss])
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_refused_with_a_sentence(function, case: str) -> None:
    inputs, temperature, error, sentence = BAD_INPUTS[case]
    with pytest.raises(error, match=sentence):
        function(*inputs, temperature)
