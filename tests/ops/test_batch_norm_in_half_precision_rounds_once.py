"""In bfloat16 and float16 the C++ kernels compute in float32: the error is that of rounding the result."""

import pytest
import torch
from batch_norm_cases import Case, case, forward, needs_native, relative_error, reverse
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from bissl_fast.ops import backend, batch_norm_act

pytestmark = needs_native

HALVES = [torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}  # of many values, about
CONTIGUOUS, LAST, LAST_3D = torch.contiguous_format, torch.channels_last, torch.channels_last_3d
PLACES = [  # runs and channels that fill no register, spill over one, and are cut into tiles
    ((6, 17, 5, 3), CONTIGUOUS),
    ((6, 17, 5, 3), LAST),
    ((4, 3, 37, 41), CONTIGUOUS),
    ((140, 3, 2, 2), CONTIGUOUS),
    ((140, 3, 2, 2), LAST),
    ((4, 131, 3, 3), LAST),
    ((4, 33, 4, 4), CONTIGUOUS),
    ((16, 65), CONTIGUOUS),
    ((12, 7, 9), CONTIGUOUS),
    ((4, 3, 3, 5, 2), CONTIGUOUS),
    ((4, 3, 3, 5, 2), LAST_3D),
]
SETTINGS = [(relu, residual) for relu in (False, True) for residual in (False, True)]


def narrow(given: Case, dtype: torch.dtype, parameters: torch.dtype) -> Case:
    """As autocast has it: tensors like x in 16 bits, weights and biases in a dtype of their own."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(parameters if tensor.dim() == 1 else dtype)

    return Case(
        tuple(map(cast, given.inputs)),
        cast(given.cotangent),
        tuple(map(cast, given.directions)),
        cast(given.along_cotangent),
    )


def every_derivative(given: Case, name: str, groups: int, relu: bool, with_residual: bool) -> dict[str, Tensor]:
    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return batch_norm_act(x, weight, bias, residual if with_residual else None, groups=groups, relu=relu)[0]

    with backend(name):
        return {**reverse(run, given), **forward(run, given)}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("shape", "layout"), PLACES, ids=str)
def test_every_derivative_is_as_exact_as_the_definition_rounded(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, groups: int
) -> None:
    turn = PLACES.index((shape, layout)) + 2 * groups + HALVES.index(dtype)
    settings, parameters = (groups, *SETTINGS[turn % 4]), (torch.float32, dtype)[turn // 4 % 2]
    given = narrow(case(shape, layout), dtype, parameters)
    exact = every_derivative(given.to(torch.float64), "reference", *settings)
    ours, theirs = (every_derivative(given, name, *settings) for name in ("cpp", "reference"))
    for name, value in exact.items():
        assert ours[name].dtype == theirs[name].dtype, name
        if value.norm() <= 1e-6:  # zero, up to rounding
            continue
        error, bound = (relative_error(run[name], value) for run in (ours, theirs))
        assert error <= max(1.1 * bound, ROUNDING[ours[name].dtype]), (name, error, bound, settings, parameters)


def test_the_layout_of_x_is_kept_and_strides_do_not_matter() -> None:
    x, weight, bias, residual = narrow(case((4, 6, 5, 3)), torch.bfloat16, torch.float32).inputs
    expected = batch_norm_act(x, weight, bias, residual, relu=True)[0]
    last = batch_norm_act(x.contiguous(memory_format=LAST), weight, bias, residual, relu=True)[0]
    strided = batch_norm_act(torch.stack([x, x], dim=-1)[..., 0], weight, bias, residual, relu=True)[0]
    assert last.is_contiguous(memory_format=LAST)
    assert torch.equal(strided, expected)
    torch.testing.assert_close(last, expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("kind", ["x", "residual", "cotangent"])
def test_dtypes_that_autocast_lets_meet_give_each_input_a_gradient_of_its_own_dtype(kind: str) -> None:
    given = narrow(case((4, 3, 5, 5)), torch.bfloat16, torch.float32)
    inputs, directions, cotangent = list(given.inputs), list(given.directions), given.cotangent
    if kind == "x":  # a float32 tangent, as nn.BatchNorm2d in bfloat16 hands on
        directions[0] = directions[0].float()
    elif kind == "residual":
        inputs[3], directions[3] = inputs[3].float(), directions[3].float()
    else:
        cotangent = cotangent.float()

    def run(*inputs: Tensor) -> Tensor:
        return batch_norm_act(*inputs, relu=True)[0]

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(run, *inputs)[1](cotangent)

    def slope(*inputs: Tensor) -> Tensor:
        return (torch.func.jvp(run, inputs, tuple(directions))[1] * cotangent).sum()

    results = []
    for name in ("cpp", "reference"):
        with backend(name):
            gradients, tangents = torch.func.jvp(gradient, tuple(inputs), tuple(directions))
            results.append((*gradients, *tangents, *torch.func.grad(slope, (0, 1, 2, 3))(*inputs)))
    for ours, theirs, like in zip(*results, inputs * 3, strict=True):
        assert ours.dtype == like.dtype
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-6 * float(theirs.abs().max()) + 1e-6)


def test_a_traced_product_casts_nothing() -> None:
    x, weight, bias, residual = narrow(case((4, 3, 5, 5)), torch.bfloat16, torch.float32).inputs
    v = torch.randn_like(x)

    def product(x: Tensor) -> Tensor:
        def gradient(x: Tensor) -> Tensor:
            return torch.func.vjp(lambda x: batch_norm_act(x, weight, bias, residual, relu=True)[0], x)[1](v)[0]

        return torch.func.jvp(gradient, (x,), (v,))[1]

    graph = make_fx(product)(x)
    graph.graph.eliminate_dead_code()
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert "bissl_fast.batch_norm_bwd_jvp.default" in names
    assert not [name for name in names if "_to_copy" in name], names
