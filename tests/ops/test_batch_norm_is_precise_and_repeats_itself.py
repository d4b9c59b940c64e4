"""In float32 the error is at most twice PyTorch's own, and the same inputs give the same bits."""

import pytest
import torch
from batch_norm_cases import Run, by_pytorch, case, forward, needs_native, relative_error, reverse
from torch import Tensor

from bissl_fast.ops import batch_norm_act

pytestmark = needs_native

ROUNDING = 2e-7  # what one rounding of the result costs in float32


def fused(groups: int = 1, relu: bool = True) -> Run:
    return lambda x, weight, bias, residual: batch_norm_act(x, weight, bias, residual, groups=groups, relu=relu)[0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("shape", [(6, 17, 5, 3), (16, 5, 24, 24), (128, 3, 3, 3), (512, 4, 1, 1)])
def test_error_is_at_most_twice_pytorchs(shape: tuple[int, ...], offset: float, layout: torch.memory_format) -> None:
    # Without the ReLU: one value that crosses zero by rounding would be all that is seen.
    errors = []
    for seed in range(4):  # PyTorch hits the nearest number now and then
        wide = case(shape, layout, seed)
        wide.inputs[0].add_(offset)
        given = wide.to(torch.float32)
        wide = given.to(torch.float64)
        theirs, ours = by_pytorch(with_residual=True), fused(relu=False)
        exact = {**reverse(theirs, wide), **forward(ours, wide)}
        runs = {**reverse(ours, given), **forward(ours, given)}, {**reverse(theirs, given), **forward(theirs, given)}
        names = [name for name, value in exact.items() if value.norm() > 1e-6 and "reverse_over_forward" not in name]
        errors.append([[relative_error(run[name], exact[name]) for name in names] for run in runs])
    ours_, theirs_ = torch.tensor(errors).square().mean(dim=0).sqrt()
    assert (ours_ <= (2 * theirs_).clamp_min(ROUNDING)).all(), dict(
        zip(names, zip(ours_, theirs_, strict=True), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(12, 65, 17, 13), (8, 512, 3, 3), (64, 256, 1, 1)])
def test_the_same_bits_for_any_number_of_threads(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    given = case(shape, layout).to(dtype)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3, 7, 1):
            torch.set_num_threads(threads)
            runs.append({**reverse(fused(groups=2), given), **forward(fused(groups=2), given)})
    finally:
        torch.set_num_threads(before)
    for again in runs[1:]:
        assert all(torch.equal(again[name], value) for name, value in runs[0].items())


@pytest.mark.parametrize("mode", ["reverse", "forward over reverse", "reverse over reverse"])
def test_compiled_derivatives_equal_eager_ones_in_one_graph(mode: str) -> None:
    x, weight, bias, residual = case((4, 3, 5, 5)).inputs
    v = torch.randn_like(x)

    def value(x: Tensor) -> Tensor:
        return batch_norm_act(2 * x, weight, bias, residual, relu=True, groups=2)[0].square().sum()

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(value)(x)

    def reverse_over_reverse(x: Tensor) -> Tensor:
        return torch.func.grad(lambda t: (gradient(t) * v).sum())(x)

    def forward_over_reverse(x: Tensor) -> Tensor:
        return torch.func.jvp(gradient, (x,), (v,))[1]

    function = {
        "reverse": gradient,
        "forward over reverse": forward_over_reverse,
        "reverse over reverse": reverse_over_reverse,
    }[mode]
    eager = gradient if mode == "reverse" else forward_over_reverse
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), eager(x), rtol=1e-12, atol=1e-12)


def test_autocast_does_not_lower_the_precision() -> None:
    x, weight, bias, residual = case((4, 3, 5, 5)).to(torch.float32).inputs
    expected = batch_norm_act(x, weight, bias, residual, relu=True)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(batch_norm_act(x, weight, bias, residual, relu=True)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_not_a_number_stays_visible_in_its_channel(dtype: torch.dtype) -> None:
    given = case((4, 3, 5, 5)).to(dtype)
    given.inputs[0][1, 2, 0, 0] = float("nan")
    found = {**reverse(fused(), given), **forward(fused(), given)}
    for name in ("out 0", "gradient 0", "reverse_over_reverse 0", "tangent 0", "forward_over_reverse 0"):
        assert found[name][:, 2].isnan().any()
        assert torch.isfinite(found[name][:, :2]).all()


def test_statistics_of_four_ranks_keep_their_digits_where_means_are_far_from_zero_or_apart() -> None:
    """In float32, where a difference of two mean squares would leave nothing."""
    ops, noise = torch.ops.bissl_fast, torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    apart = noise.clone()
    apart[16:] += 1e4
    for x in (noise + 1e4, apart):
        every = torch.cat([ops.batch_norm_statistics(part, 1) for part in x.chunk(4)])
        _, mean, rstd = ops.batch_norm_fwd(x[:16], torch.ones(3), torch.zeros(3), None, 1, False, 1e-5, every)
        wide = x.double().transpose(0, 1).flatten(1)
        assert relative_error(mean, wide.mean(1)[None]) < 1e-6
        assert relative_error(rstd, (wide.var(1, unbiased=False) + 1e-5).rsqrt()[None]) < 1e-4
