"""Every mode of autograd gives batch norm's derivatives, in float64 to rounding error."""

import itertools
import math

import pytest
import torch
from batch_norm_cases import Run, by_pytorch, case, forward, needs_native, reverse
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bissl_fast.ops import backend, batch_norm_act
from bissl_fast.ops.batch_norm import derivatives

pytestmark = needs_native

SHAPES = [
    (2, 1, 1, 5),
    (3, 3, 1, 1),
    (4, 17, 3, 3),
    (5, 64, 2, 3),
    (6, 3, 7),
    (7, 17),
    (4, 64),
    (6, 1),
    (2, 3, 3, 2, 2),
    (2, 3, 37, 41),  # rows of a plane longer than a tile is wide
    (140, 3, 2, 2),  # more rows than a tile has
]
SETTINGS = [
    {"groups": groups, "relu": relu, "with_residual": residual}
    for groups, relu, residual in itertools.product((1, 2), (False, True), (False, True))
]
CASES = [
    (shape, settings)
    for shape, settings in itertools.product(SHAPES, SETTINGS)
    if shape[0] % settings["groups"] == 0 and math.prod(shape) > 2 * shape[1] * settings["groups"]
]  # of two values, one is always at -1 and the other at 1
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def fused(groups: int = 1, relu: bool = False, with_residual: bool = False) -> Run:
    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return batch_norm_act(x, weight, bias, residual if with_residual else None, groups=groups, relu=relu)[0]

    return run


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        # Some are exactly zero, and what is left is rounding error of the others.
        scale = max(float(value.abs().max()), 1.0)
        torch.testing.assert_close(
            found[name], value, rtol=1e-10, atol=1e-11 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("shape", "settings"), CASES, ids=str)
def test_every_mode_equals_the_definition_in_both_layouts(shape: tuple[int, ...], settings: dict[str, int]) -> None:
    run = fused(**settings)
    for layout in (torch.contiguous_format, LAYOUTS.get(len(shape), torch.contiguous_format)):
        given = case(shape, layout)
        with backend("reference"):
            expected = {**reverse(run, given), **forward(run, given)}
        with backend("cpp"):
            assert_same({**reverse(run, given), **forward(run, given)}, expected)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_equals_pytorchs_layers_a_pass_for_each_group(settings: dict[str, int], name: str) -> None:
    given = case((6, 5, 4, 3))
    theirs = by_pytorch(**settings)
    with backend(name):
        found, found_forward = reverse(fused(**settings), given), forward(fused(**settings), given)
    assert_same(found, reverse(theirs, given))
    # PyTorch takes its statistics for constants in reverse over forward mode.
    expected = {k: t for k, t in forward(theirs, given).items() if "reverse_over_forward" not in k}
    assert_same(found_forward, expected)


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_reverse_over_forward_equals_reverse_over_reverse(name: str) -> None:
    given = case((4, 3, 3, 2))
    with backend(name):
        twice, mixed = reverse(fused(relu=True), given), forward(fused(relu=True), given)
    for k in range(4):
        torch.testing.assert_close(
            mixed[f"reverse_over_forward {k}"], twice[f"reverse_over_reverse {k}"], rtol=1e-10, atol=1e-11
        )


@pytest.mark.parametrize("moving", [m for n in range(1, 5) for m in itertools.combinations(range(4), n)], ids=str)
def test_any_of_the_inputs_may_be_constants_in_every_nesting(moving: tuple[int, ...]) -> None:
    given = case((4, 3, 3, 2))
    primals, tangents = ([group[k] for k in moving] for group in (given.inputs, given.directions))

    def slope(*values: Tensor) -> Tensor:
        inputs = dict(enumerate(given.inputs)) | dict(zip(moving, values, strict=True))
        out = batch_norm_act(inputs[0], inputs[1], inputs[2], inputs[3], relu=True, groups=2)[0]
        return (out * given.cotangent).square().sum()

    axes = tuple(range(len(moving)))
    found = []
    for name in ("cpp", "reference"):
        with backend(name):
            gradient = torch.func.grad(slope, axes)
            found.append(torch.func.jvp(gradient, tuple(primals), tuple(tangents))[1])
            found.append(torch.func.grad(lambda *p: torch.func.jvp(slope, p, tuple(tangents))[1], axes)(*primals))
            found.append(torch.autograd.functional.vhp(slope, tuple(primals), tuple(tangents))[1])
    for other in found[:-1]:
        torch.testing.assert_close(other, found[-1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_gradcheck_and_gradgradcheck_pass_in_reverse_and_forward_mode(settings: dict[str, int]) -> None:
    inputs = tuple(
        t[:, :2].clone().requires_grad_() if t.dim() > 1 else t[:2].clone().requires_grad_()
        for t in case((4, 2, 3)).inputs
    )
    assert torch.autograd.gradcheck(fused(**settings), inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fused(**settings), inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_a_constant_channel_has_finite_derivatives(name: str) -> None:
    given = case((4, 3, 3, 2))
    given.inputs[0][:, 1] = 7.0
    with backend(name):
        found = {**reverse(fused(relu=True), given), **forward(fused(relu=True), given)}
    with backend("reference"):
        expected = {**reverse(fused(relu=True), given), **forward(fused(relu=True), given)}
    assert all(torch.isfinite(value).all() for value in found.values())
    assert_same(found, expected)
    mean, var = batch_norm_act(*given.inputs[:3])[1:]
    assert mean[0, 1] == 7.0
    assert var[0, 1] <= 1e-17  # what is left of 1/rstd² − eps


def test_strides_do_not_matter_and_results_have_the_layout_of_x() -> None:
    x, weight, bias, residual = case((4, 6, 5, 3)).inputs
    expected = batch_norm_act(x, weight, bias, residual, relu=True)[0]
    for other in (
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([x, x], dim=-1)[..., 0],
        x.contiguous(memory_format=torch.channels_last),
    ):
        strided = torch.stack([residual, residual], dim=1)[:, 1]
        out = batch_norm_act(other, weight.expand(2, 6)[0], bias, strided, relu=True)[0]
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)
        last = other.is_contiguous(memory_format=torch.channels_last)
        assert out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_a_cotangent_without_strides_and_inputs_without_gradients() -> None:
    x, weight, bias, residual = case((4, 3, 5)).inputs
    for wanted in range(4):

        def total(name: str, wanted: int = wanted) -> tuple[Tensor, Tensor]:
            inputs = [t.clone().requires_grad_(k == wanted) for k, t in enumerate((x, weight, bias, residual))]
            with backend(name):
                out = batch_norm_act(*inputs, relu=True)[0]
            (first,) = torch.autograd.grad(out.sum() + out.square().sum(), inputs[wanted], create_graph=True)
            return first, torch.autograd.grad(first.square().sum(), inputs[wanted])[0]

        for found, expected in zip(total("cpp"), total("reference"), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_traced_product_holds_each_raw_kernel_once() -> None:
    x, weight, bias, residual = case((4, 3, 5, 5)).inputs
    v = torch.randn_like(x)

    def product(x: Tensor) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            return batch_norm_act(x, weight, bias, residual, relu=True, groups=2)[0].square().sum()

        return torch.func.jvp(torch.func.grad(loss), (x,), (v,))[1]

    graph = make_fx(product)(x)
    kernels = [str(node.target) for node in graph.graph.nodes if "batch_norm" in str(node.target)]
    assert kernels == [f"bissl_fast.batch_norm_{name}.default" for name in ("fwd", "jvp", "bwd", "bwd_jvp")]
    assert torch.equal(graph(x), product(x))


IN_PLACE = {
    "relu": torch.relu_,
    "leaky_relu": lambda z: torch.nn.functional.leaky_relu_(z, 0.1),
    "silu": lambda z: torch.nn.functional.silu(z, inplace=True),
    "add": lambda z: z.add_(1.0).square(),
}


@pytest.mark.parametrize("activation", IN_PLACE)
@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_an_activation_may_overwrite_the_output(name: str, activation: str) -> None:
    """PyTorch's batch norm keeps its input alone, and networks are written for that."""
    act = IN_PLACE[activation]
    pytorch = by_pytorch()
    with backend(name):
        ours = lambda *inputs: act(fused()(*inputs))  # noqa: E731
        found = {**reverse(ours, case((4, 3, 5))), **forward(ours, case((4, 3, 5)))}
    with backend("reference"):
        theirs = lambda *inputs: act(pytorch(*inputs).clone())  # noqa: E731
        expected = reverse(theirs, case((4, 3, 5)))
        expected |= forward(lambda *inputs: act(fused()(*inputs).clone()), case((4, 3, 5)))
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("function", "mode"),
    [
        ("BatchNorm", "backward"),
        ("BatchNorm", "jvp"),
        ("BatchNormGradient", "backward"),
        ("BatchNormGradient", "jvp"),
        ("BatchNormTangent", "backward"),
    ],
)
def test_a_derivative_that_is_slightly_wrong_is_noticed(
    monkeypatch: pytest.MonkeyPatch, function: str, mode: str
) -> None:
    given = case((4, 3, 5))
    with backend("reference"):
        expected = {**reverse(fused(relu=True), given), **forward(fused(relu=True), given)}
    right = getattr(getattr(derivatives, function), mode)

    def wrong(ctx, *values):
        returned = right(ctx, *values)
        return tuple(None if t is None else 1.001 * t for t in returned)

    monkeypatch.setattr(getattr(derivatives, function), mode, staticmethod(wrong))
    with pytest.raises(AssertionError):
        assert_same({**reverse(fused(relu=True), given), **forward(fused(relu=True), given)}, expected)
