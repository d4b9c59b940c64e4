"""A silent zero is the worst bug: what batch norm cannot differentiate or normalise raises, in sentences."""

import warnings
from typing import Any

import pytest
import torch
from batch_norm_cases import case, needs_native
from torch import Tensor

from bissl_fast.errors import UserError
from bissl_fast.ops import backend, batch_norm_act, native
from bissl_fast.ops.backend import say_once
from bissl_fast.ops.batch_norm.derivatives import PREFIX
from bissl_fast.ops.batch_norm.schemas import ARGUMENTS

X, WEIGHT, BIAS, RESIDUAL = case((4, 3, 5, 2)).inputs


def raw_arguments(name: str, x: Tensor, groups: int = 2, relu: bool = True, with_residual: bool = True) -> list[Any]:
    """Arguments of a raw kernel that are fit for it."""
    ops = torch.ops.bissl_fast
    per_channel = torch.float32 if x.dtype == torch.bfloat16 else x.dtype  # as autocast leaves parameters
    weight, bias, residual = WEIGHT.to(per_channel), BIAS.to(per_channel), torch.ones_like(x) if with_residual else None
    settings = (groups, relu)
    out, mean, rstd = ops.batch_norm_fwd(x, weight, bias, residual, *settings, 1e-5)
    saved = (x, out, weight, mean, rstd)
    saved_sums = (x, out, mean, rstd)
    sums = ops.batch_norm_bwd(x, *saved, *settings, with_residual)[2]
    return {
        "statistics": [x, groups],
        "fwd": [x, weight, bias, residual, *settings, 1e-5],
        "apply": [x, weight, bias, residual, mean, rstd, *settings],
        "moments": [x, *saved_sums, *settings],
        "bwd": [x, *saved, *settings, with_residual],
        "bwd_apply": [x, *saved, sums, *settings, with_residual],
        "jvp": [x, *saved, weight, None, residual, *settings],
        "tangent_moments": [x, None, x, *saved_sums, *settings],
        "bwd_jvp": [x, None, weight, x, *saved, sums, *settings, with_residual],
    }[name]


@needs_native
@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("mode", ["forward_ad", "functorch", "requires_grad"])
@pytest.mark.parametrize("prefix", PREFIX.values())
def test_a_raw_kernel_met_by_a_derivative_raises(prefix: str, name: str, mode: str) -> None:
    op = getattr(torch.ops.bissl_fast, f"{prefix}{name}")
    first, *rest = raw_arguments(name, X)

    def differentiate() -> None:
        if mode == "functorch":
            torch.func.jvp(lambda t: op(t, *rest), (first,), (torch.ones_like(first),))
        elif mode == "forward_ad":
            with torch.autograd.forward_ad.dual_level():
                op(torch.autograd.forward_ad.make_dual(first, torch.ones_like(first)), *rest)
        else:
            op(first.clone().requires_grad_(), *rest)

    with pytest.raises(NotImplementedError, match=r"raw kernel .*batch_norm_act"):
        differentiate()


@needs_native
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_raw_kernel_passes_opcheck_and_is_declared_as_the_schemas_say(name: str) -> None:
    op = getattr(torch.ops.bissl_fast, f"batch_norm_{name}").default
    assert op._schema == torch._C.parse_schema(f"bissl_fast::batch_norm_{name}{ARGUMENTS[name]}")
    last = X.contiguous(memory_format=torch.channels_last)
    for x in (X.float(), last, X.transpose(2, 3), last.bfloat16(), X.half()):
        for with_residual in (True, False):
            torch.library.opcheck(op, raw_arguments(name, x, with_residual=with_residual))


@needs_native
@pytest.mark.parametrize("name", ["apply", "bwd_apply"])
def test_what_a_kernel_gave_once_it_gives_again_to_the_bit(name: str) -> None:
    ops = torch.ops.bissl_fast
    last = torch.randn(6, 3, 9, 5).contiguous(memory_format=torch.channels_last)
    for x in (torch.randn(6, 3, 31, 33), last, last.bfloat16()):
        again = getattr(ops, f"batch_norm_{name}")(*raw_arguments(name, x))
        first = getattr(ops, f"batch_norm_{name.replace('apply', 'fwd').replace('bwd_fwd', 'bwd')}")
        expected = first(*raw_arguments("fwd" if name == "apply" else "bwd", x))
        assert torch.equal(again if name == "apply" else again[0], expected[0])


def norm(x: Tensor) -> Tensor:
    return batch_norm_act(x, WEIGHT, BIAS, RESIDUAL, relu=True)[0]


@needs_native
def test_a_third_order_raises_in_every_mode() -> None:
    v = torch.randn_like(X)

    def product(x: Tensor) -> Tensor:
        return torch.func.jvp(torch.func.grad(lambda t: norm(t).square().sum()), (x,), (v,))[1].sum()

    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.func.grad(product)(X)
    with pytest.raises(NotImplementedError, match="forward mode over forward mode"):
        torch.func.jvp(product, (X,), (v,))
    with pytest.raises(NotImplementedError, match="forward mode over forward mode"):
        torch.func.jvp(lambda x: torch.func.jvp(norm, (x,), (v,))[1], (X,), (v,))
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad(second.sum(), x)
    with backend("reference"):
        assert torch.isfinite(torch.func.grad(product)(X)).all()


@needs_native
def test_vmap_raises() -> None:
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(norm)(torch.stack([X, X]))


BAD_INPUTS = {
    "a list": (([[1.0]], WEIGHT, BIAS), {}, TypeError, "list as x"),
    "integers": ((X.long(), WEIGHT, BIAS), {}, TypeError, "int64"),
    "one axis": ((X[0, 0, 0], WEIGHT, BIAS), {}, ValueError, r"\(N, C"),
    "no channels": ((X[:, :0], WEIGHT[:0], BIAS[:0]), {}, ValueError, "C > 0"),
    "a short weight": ((X, WEIGHT[:2], BIAS), {}, ValueError, "3 channels needs a weight"),
    "a double weight": ((X.float(), WEIGHT, BIAS), {}, TypeError, "float64"),
    "another shape": ((X, WEIGHT, BIAS, X[:2]), {}, ValueError, "shaped like x"),
    "two devices": ((X, WEIGHT.to("meta"), BIAS), {}, ValueError, "one device"),
    "groups that do not fit": ((X, WEIGHT, BIAS), {"groups": 3}, ValueError, "batch of 4 cannot be cut into 3"),
    "no groups": ((X, WEIGHT, BIAS), {"groups": 0}, ValueError, "0 equal groups"),
    "one value": ((X[:1, :, 0, 0], WEIGHT, BIAS), {}, ValueError, "two values per channel"),
    "one value per group": ((X[:, :, 0, 0], WEIGHT, BIAS), {"groups": 4}, ValueError, "two values per channel"),
    "eps 0": ((X, WEIGHT, BIAS), {"eps": 0.0}, ValueError, "eps must be positive"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_refused_with_a_sentence(name: str) -> None:
    inputs, settings, error, sentence = BAD_INPUTS[name]
    with pytest.raises(error, match=sentence):
        batch_norm_act(*inputs, **settings)


@needs_native
@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_choice_that_cannot_serve_raises(name: str) -> None:
    with backend(name), pytest.raises(UserError, match="serves cuda tensors, not cpu"):
        batch_norm_act(X, WEIGHT, BIAS)


def test_without_compiled_kernels_the_reference_serves_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "IMPORT_ERROR", ImportError("No module named 'bissl_fast._C'"))
    say_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="Batch norm runs on plain PyTorch .*bissl_fast._C"):
        batch_norm_act(X, WEIGHT, BIAS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch_norm_act(X, WEIGHT, BIAS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_float32_statistics_and_an_output_of_its_own_dtype(dtype: torch.dtype) -> None:
    for weight in (WEIGHT.float(), WEIGHT.to(dtype)):
        out, mean, var = batch_norm_act(X.to(dtype), weight, weight, RESIDUAL.to(dtype))
        assert (out.dtype, mean.dtype, var.dtype) == (dtype, torch.float32, torch.float32)


def test_meta_tensors_are_served_in_silence_whatever_was_chosen() -> None:
    x, weight = X.to("meta").requires_grad_(), WEIGHT.to("meta")
    with warnings.catch_warnings(), backend("cpp"):
        warnings.simplefilter("error")
        out, mean, _ = batch_norm_act(x, weight, weight, groups=2, relu=True)
    assert (out.shape, mean.shape) == (X.shape, (2, 3))
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert gradient.requires_grad
