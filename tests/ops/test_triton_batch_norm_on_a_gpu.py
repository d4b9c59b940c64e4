"""On a CUDA device batch norm's Triton kernels are exact to second order, repeat their bits, and need little memory."""

import itertools
from typing import Any

import pytest
import torch
from batch_norm_cases import Case, Run, case, forward, relative_error, reverse
from torch import Tensor

from bissl_fast.ops import backend, batch_norm_act
from bissl_fast.ops.batch_norm.schemas import ARGUMENTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]
DEVICE = "cuda"
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SETTINGS = list(itertools.product((1, 2, 4), (False, True), (False, True)))


def fused(groups: int = 1, relu: bool = False, with_residual: bool = False) -> Run:
    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return batch_norm_act(x, weight, bias, residual if with_residual else None, groups=groups, relu=relu)[0]

    return run


def placed(given: Case, dtype: torch.dtype = torch.float64) -> Case:
    """A case on the device, its layout kept."""
    groups = ([t.to(DEVICE, dtype) for t in tensors] for tensors in (given.inputs, given.directions))
    inputs, directions = (tuple(tensors) for tensors in groups)
    along = given.along_cotangent.to(DEVICE, dtype)
    return Case(inputs, given.cotangent.to(DEVICE, dtype), directions, along)


def all_modes(run: Run, given: Case, name: str) -> dict[str, Tensor]:
    with backend(name):
        return {**reverse(run, given), **forward(run, given)}


def raw_arguments(name: str, x: Tensor, groups: int = 2, relu: bool = True, with_residual: bool = True) -> list[Any]:
    """Arguments of a raw kernel that are fit for it."""
    ops = torch.ops.bissl_fast
    weight, bias = torch.rand(2, x.shape[1], device=x.device, dtype=x.dtype).unbind()
    residual, settings = torch.ones_like(x) if with_residual else None, (groups, relu)
    out, mean, rstd = ops.triton_batch_norm_fwd(x, weight, bias, residual, *settings, 1e-5)
    saved = (x, out, weight, mean, rstd)
    sums = ops.triton_batch_norm_bwd(x, *saved, *settings, with_residual)[2]
    return {
        "statistics": [x, groups],
        "fwd": [x, weight, bias, residual, *settings, 1e-5],
        "apply": [x, weight, bias, residual, mean, rstd, *settings],
        "moments": [x, x, out, mean, rstd, *settings],
        "bwd": [x, *saved, *settings, with_residual],
        "bwd_apply": [x, *saved, sums, *settings, with_residual],
        "jvp": [x, *saved, weight, None, residual, *settings],
        "tangent_moments": [x, None, x, x, out, mean, rstd, *settings],
        "bwd_jvp": [x, None, weight, x, *saved, sums, *settings, with_residual],
    }[name]


@pytest.mark.parametrize(
    "shape", [(4, 3, 5, 5), (8, 65, 3, 3), (4, 64, 24, 24), (16, 130), (8, 512, 1, 1), (4, 5, 1031)]
)
@pytest.mark.parametrize(("groups", "relu", "with_residual"), SETTINGS)
def test_every_mode_equals_the_definition_in_float64(
    shape: tuple[int, ...], groups: int, relu: bool, with_residual: bool
) -> None:
    run = fused(groups, relu, with_residual)
    for layout in LAYOUTS[: 2 if len(shape) == 4 else 1]:
        given = placed(case(shape, layout))
        expected = all_modes(run, given, "reference")
        for name, found in all_modes(run, given, "triton").items():
            scale = max(float(expected[name].abs().max()), 1.0)
            torch.testing.assert_close(found, expected[name], rtol=1e-10, atol=1e-11 * scale)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 17, 5, 3), (16, 64, 24, 24), (256, 512, 3, 3), (64, 2048, 1, 1)])
def test_errs_no_more_than_twice_plain_pytorch(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    # Without the ReLU: one value that crosses zero by rounding would be all that is seen.
    given = case(shape, layout)
    given.inputs[0].mul_(8)  # second derivatives are 64 times smaller, and float16 holds them
    given = placed(given, dtype)
    exact = all_modes(fused(2), given.to(torch.float64), "reference")
    plain, found = (all_modes(fused(2), given, name) for name in ("reference", "triton"))
    for name, value in exact.items():
        if value.norm() > 1e-6:
            bound = 2 * relative_error(plain[name], value) + torch.finfo(dtype).eps
            assert relative_error(found[name], value) <= bound, name


def test_a_mean_far_from_zero_costs_no_digits_of_the_variance() -> None:
    x = torch.randn(512, 64, 24, 24, device=DEVICE).contiguous(memory_format=torch.channels_last) + 1e3
    x[128:] += 1e3
    ones = torch.ones(64, device=DEVICE)
    with backend("triton"):
        _, mean, var = batch_norm_act(x, ones, ones)
    wide = x.double()
    assert relative_error(mean[0], wide.mean((0, 2, 3))) < 1e-6
    assert relative_error(var[0], wide.var((0, 2, 3), correction=0)) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_run_after_run_and_from_the_cheap_twins(layout: torch.memory_format) -> None:
    given = placed(case((64, 64, 48, 48), layout), torch.float32)
    first = all_modes(fused(2, True, True), given, "triton")
    for _ in range(3):
        again = all_modes(fused(2, True, True), given, "triton")
        assert all(torch.equal(again[name], value) for name, value in first.items())
    ops, x = torch.ops.bissl_fast, given.inputs[0]
    for name, twin in (("fwd", "apply"), ("bwd", "bwd_apply")):
        torch.manual_seed(0)
        whole = getattr(ops, f"triton_batch_norm_{name}")(*raw_arguments(name, x))
        torch.manual_seed(0)
        made_again = getattr(ops, f"triton_batch_norm_{twin}")(*raw_arguments(twin, x))
        assert torch.equal(whole[0], made_again if name == "fwd" else made_again[0])


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_raw_kernel_passes_opcheck(name: str) -> None:
    x = case((4, 3, 5, 2)).inputs[0].to(DEVICE)
    op = getattr(torch.ops.bissl_fast, f"triton_batch_norm_{name}").default
    for like in (x.float(), x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3), x.bfloat16()):
        for with_residual in (True, False):
            torch.library.opcheck(op, raw_arguments(name, like, with_residual=with_residual))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_auto_takes_triton_for_every_dtype_and_says_nothing(dtype: torch.dtype, recwarn: Any) -> None:
    given = placed(case((4, 3, 5, 5)), dtype)
    automatic, chosen = (all_modes(fused(relu=True), given, name) for name in ("auto", "triton"))
    assert all(torch.equal(automatic[name], value) for name, value in chosen.items())
    assert not [warning for warning in recwarn if "plain PyTorch" in str(warning.message)]


def test_all_four_kernels_need_hardly_more_memory_than_their_results() -> None:
    x = torch.randn(256, 64, 48, 48, device=DEVICE).contiguous(memory_format=torch.channels_last)
    arguments = {name: raw_arguments(name, x) for name in ("fwd", "bwd", "jvp", "bwd_jvp")}
    size = x.numel() * x.element_size()
    for name, given in arguments.items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = getattr(torch.ops.bissl_fast, f"triton_batch_norm_{name}")(*given)
        taken = torch.cuda.max_memory_allocated() - before
        assert taken < (2.05 if "bwd" in name else 1.05) * size, name
        del result


def test_a_compiled_product_equals_the_eager_one_in_one_graph() -> None:
    x, weight, bias, residual = placed(case((4, 3, 5, 5))).inputs
    v = torch.randn_like(x)

    def product(x: Tensor) -> Tensor:
        def value(x: Tensor) -> Tensor:
            return batch_norm_act(2 * x, weight, bias, residual, relu=True, groups=2)[0].square().sum()

        return torch.func.jvp(torch.func.grad(value), (x,), (v,))[1]

    torch.testing.assert_close(torch.compile(product, fullgraph=True)(x), product(x), rtol=1e-12, atol=1e-12)
