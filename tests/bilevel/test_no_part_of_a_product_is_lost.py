"""What hides from autograd would count as a constant: it is refused in every mode that would lose it."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector
from tests.bilevel.test_products_belong_to_one_point import each_mode, ones
from tests.bilevel.test_traces_hold_whatever_a_loss_does import batch, mlp, network, squares


class OwnBackward(torch.autograd.Function):
    """A layer that calls backward on its own, as memory-saving ones do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: nn.Module) -> Any:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return layer(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            torch.autograd.backward(ctx.layer(x), grad)
        return x.grad, None


class Hidden(nn.Module):
    """Layers inside of a function that saves their activations or does not."""

    def __init__(self, run: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.run, self.inner = run, nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.run(self.inner, x.clone().requires_grad_())
        return out


HIDING: dict[str, Callable[..., Any]] = {
    "reentrant checkpoint": lambda layer, x: checkpoint(layer, x, use_reentrant=True),
    "own function": lambda layer, x: OwnBackward.apply(x, layer),
}


@pytest.mark.parametrize("run", HIDING.values(), ids=HIDING)
@pytest.mark.parametrize("mode", ["reverse", "finite_difference"])
def test_parameters_that_only_backward_reaches_are_refused_by_name(mode: Any, run: Callable[..., Any]) -> None:
    theta = ParameterVector(network(Hidden(run, nn.Linear(5, 4), nn.Tanh()), nn.Linear(4, 3)))
    gradients = [torch.ones_like(p) for p in theta.tensors]
    for parameter, gradient in zip(theta.tensors, gradients, strict=True):
        parameter.grad = gradient.clone()
    with pytest.raises(ValueError, match=r"layers of 0\.inner\.0\.weight, 0\.inner\.0\.bias are .*reentrant=False"):
        HessianOperator(squares, theta, [batch()], mode).matvec(ones(theta))
    for parameter, gradient in zip(theta.tensors, gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


@each_mode
def test_parameters_that_nothing_reaches_have_products_of_zero(mode: Any) -> None:
    module = mlp()
    module.register_module("unused", nn.Linear(2, 2).double())
    module.forward = lambda x: module[2](module[1](module[0](x)))  # type: ignore[method-assign,operator]
    theta = ParameterVector(module)
    expected = HessianOperator(squares, ParameterVector(mlp()), [batch()]).matvec(ones(theta)[:-6])
    found = HessianOperator(squares, theta, [batch()], mode).matvec(ones(theta))
    torch.testing.assert_close(found[:-6], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[-6:], torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["reverse", "finite_difference"])
def test_layers_in_checkpoints_that_autograd_sees_have_their_part(mode: Any) -> None:
    def module(run: Callable[..., Any]) -> nn.Module:
        return network(Hidden(run, nn.Linear(5, 4), nn.Tanh()), nn.Linear(4, 3))

    plain = ParameterVector(module(lambda layer, x: layer(x)))
    theta = ParameterVector(module(lambda layer, x: checkpoint(layer, x, use_reentrant=False)))
    expected = HessianOperator(squares, plain, [batch()]).matvec(ones(plain))
    found = HessianOperator(squares, theta, [batch()], mode).matvec(ones(theta))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Cube(torch.autograd.Function):
    """x³, differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return 3 * grad * ctx.saved_tensors[0] ** 2  # type: ignore[no-any-return]


def test_a_function_that_is_differentiable_once_is_refused_behind_a_constant_gradient_too() -> None:
    with pytest.raises(ValueError, match="a function that is marked @once_differentiable, so it has no exact product"):
        HessianOperator(lambda m, b: Cube.apply(m(b[0])).mean(), ParameterVector(mlp()), [batch()])


@pytest.mark.parametrize(
    ("mode", "part"), [("reverse", "once"), ("reverse", "hidden"), ("finite_difference", "hidden")]
)
def test_what_a_loss_does_after_an_update_is_looked_at_anew(mode: Any, part: str) -> None:
    def loss(module: Any, data: Any) -> torch.Tensor:
        kind, x = data
        if kind == "hidden":
            return module[2](checkpoint(module[:2], x.clone().requires_grad_(), use_reentrant=True)).square().mean()
        out = module(x)
        return (Cube.apply(out) if kind == "once" else out.square()).mean()

    theta, x = ParameterVector(mlp()), batch()[0]
    operator = HessianOperator(loss, theta, [("plain", x)], mode)
    operator.matvec(ones(theta))

    def anew() -> None:
        operator.update([(part, x)])
        operator.matvec(ones(theta))

    with pytest.raises(ValueError, match=r"differentiable, so it has no exact product|are inside a function"):
        anew()


def compiled(part: Any) -> Any:
    return torch.compile(part, backend="aot_eager")


def test_what_torch_compile_has_made_is_refused_in_exact_modes_and_estimated() -> None:
    theta = ParameterVector(mlp())
    whole = ParameterVector(compiled(mlp()))
    for loss, parameters in ((compiled(squares), theta), (squares, whole)):
        for mode in ("reverse", "linearized"):
            with pytest.raises(ValueError, match=r"torch\.compile has made, which PyTorch cannot differentiate twice"):
                HessianOperator(loss, parameters, [batch()], mode)  # type: ignore[arg-type]
    expected = HessianOperator(squares, theta, [batch()]).matvec(ones(theta))
    found = HessianOperator(compiled(squares), theta, [batch()], "finite_difference").matvec(ones(theta))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def sine(x: torch.Tensor) -> torch.Tensor:
    return (x.sin() * x).square()


def test_torchscript_is_refused_where_a_trace_would_miss_its_derivatives() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.* is deprecated")
        script = torch.jit.script(sine)
    plain = CompositeLoss(lambda m, b: sine(m(b[0])), lambda out: out.mean())
    scripted = CompositeLoss(lambda m, b: script(m(b[0])), lambda out: out.mean())
    criterion = CompositeLoss(lambda m, b: m(b[0]), lambda out: script(out).mean())
    theta = ParameterVector(mlp())
    expected = HessianOperator(plain, theta, [batch()]).matvec(ones(theta))
    for _ in range(3):  # TorchScript makes derivatives of its own after it has seen a few calls
        torch.testing.assert_close(HessianOperator(scripted, theta, [batch()]).matvec(ones(theta)), expected)
    for loss, mode in ((scripted, "linearized"), (scripted, "gauss_newton"), (criterion, "gauss_newton")):
        with pytest.raises(ValueError, match=re.escape("it calls TorchScript, whose derivatives a trace does not see")):
            HessianOperator(loss, theta, [batch()], mode)  # type: ignore[arg-type]


def test_a_loss_that_calls_torch_func_is_refused_in_reverse_and_traced() -> None:
    def loss(module: nn.Module, data: Any) -> torch.Tensor:
        slopes = torch.func.vmap(torch.func.grad(lambda row: module(row).square().sum()))(data[0])
        return slopes.square().mean()

    theta = ParameterVector(mlp())
    with pytest.raises(ValueError, match=r"calls torch\.func .* take mode='linearized', or torch\.autograd\.grad"):
        HessianOperator(loss, theta, [batch()])
    expected = HessianOperator(loss, theta, [batch()], "finite_difference").matvec(ones(theta))
    found = HessianOperator(loss, theta, [batch()], "linearized").matvec(ones(theta))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("altered", [{"padding_idx": 0}, {"scale_grad_by_freq": True}])
def test_an_embedding_whose_gradient_is_altered_is_refused_in_reverse_and_traced(altered: dict[str, Any]) -> None:
    def loss(module: nn.Module, words: torch.Tensor) -> torch.Tensor:
        return module(words).square().mean()  # type: ignore[no-any-return]

    words = torch.tensor([0, 1, 1, 2, 0, 2, 2])
    plain = ParameterVector(network(nn.Embedding(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    theta = ParameterVector(network(nn.Embedding(4, 5, **altered), nn.Tanh(), nn.Linear(5, 3)))
    HessianOperator(loss, plain, [words]).matvec(ones(plain))
    with pytest.raises(ValueError, match=r"an embedding with padding_idx or scale_grad_by_freq, .*mode='linearized'"):
        HessianOperator(loss, theta, [words])
    expected = HessianOperator(loss, theta, [words], "finite_difference").matvec(ones(theta))
    found = HessianOperator(loss, theta, [words], "linearized").matvec(ones(theta))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
