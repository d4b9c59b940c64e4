"""Other people's autograd Functions, whose derivatives PyTorch cannot vouch for, are right in a product or refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.bilevel.checks.foreign import is_foreign

Tensor = torch.Tensor
Part = Callable[[Tensor], Tensor]


def made(forward: Any, backward: Any, name: str = "Made") -> Any:
    """A Function of its two passes."""
    return type(name, (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


def saving(function: Any) -> Any:
    """A forward pass that saves its inputs."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    return forward


def constant_forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.derivative = x.cos()
    return x.sin()


Constant = made(constant_forward, lambda ctx, g: g * ctx.derivative, "Constant")
OneInput = made(
    saving(torch.mul), lambda ctx, g: (g * ctx.saved_tensors[1].detach(), g * ctx.saved_tensors[0]), "OneInput"
)
HalfMissing = made(
    saving(lambda x: x.sin() + x.exp()),
    lambda ctx, g: g * (ctx.saved_tensors[0].cos() + ctx.saved_tensors[0].detach().exp()),
    "HalfMissing",
)
NoneTwice = made(saving(lambda x, g: g * x.cos()), lambda ctx, v: (None, v * ctx.saved_tensors[0].cos()), "NoneTwice")
ByNoneTwice = made(saving(torch.sin), lambda ctx, g: NoneTwice.apply(ctx.saved_tensors[0], g), "ByNoneTwice")
Tripled = made(lambda ctx, x: 3 * x, lambda ctx, g: (3 * g).detach(), "Tripled")
Doubled = made(lambda ctx, x: x.view_as(x), lambda ctx, g: 2 * g, "Doubled")
Reversed = made(lambda ctx, x: x.view_as(x), lambda ctx, g: -g, "Reversed")


def given_forward(ctx: Any, value: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
    ctx.gradient = gradient
    return value


Given = made(given_forward, lambda ctx, g: (None, None, g * ctx.gradient), "Given")


def fixed_point_forward(ctx: Any, x: Tensor, step: Any) -> Tensor:
    ctx.step, ctx.z = step, x.detach()
    return x.view_as(x)


def fixed_point_backward(ctx: Any, g: Tensor) -> Any:
    with torch.enable_grad():
        z = ctx.z.clone().requires_grad_()
        stepped = ctx.step(z)
    found = g
    for _ in range(40):
        found = g + torch.autograd.grad(stepped, z, found, retain_graph=True)[0]
    return found, None


FixedPoint = made(fixed_point_forward, fixed_point_backward, "FixedPoint")


def kernel_mean(y: Tensor) -> Tensor:
    return (-(Doubled.apply(y)[:, None] - y.detach()[None]).square().sum(-1)).exp().mean() * 3


def equilibrium(y: Tensor) -> Tensor:
    def step(z: Tensor) -> Tensor:
        return (z.tanh() + y) / 2

    with torch.no_grad():
        z = y
        for _ in range(40):
            z = step(z)
    return FixedPoint.apply(step(z), lambda z: (z.tanh() + y.detach()) / 2)


def custom_op() -> Part:
    """An operator with a backward that is a constant."""

    @torch.library.custom_op("others::sine", mutates_args=())
    def sine(x: Tensor) -> Tensor:
        return x.sin()

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.derivative = inputs[0].cos().detach()

    torch.library.register_autograd("others::sine", lambda ctx, g: g * ctx.derivative, setup_context=setup)
    return sine


SINE = custom_op()

BY_ITSELF = "differentiated again, is not the derivative of that backward"
AS_A_WHOLE = "is not the derivative of its forward"
WRONG: dict[str, tuple[Part, str]] = {
    "a constant": (Constant.apply, f"Constant of .*{BY_ITSELF}"),
    "one of two inputs held": (lambda y: OneInput.apply(y, y.sin()), BY_ITSELF),
    "half of it missing": (HalfMissing.apply, BY_ITSELF),
    "None for one input": (ByNoneTwice.apply, BY_ITSELF),
    "no graph at all": (Tripled.apply, BY_ITSELF),
    "of one side and doubled": (kernel_mean, f"Doubled of .*{AS_A_WHOLE}"),
    "reversed": (lambda y: Reversed.apply(y).square(), AS_A_WHOLE),
    "a gradient that was handed in": (
        lambda y: Given.apply(y.detach().sin(), y.detach().cos(), y),
        f"Given of .*{AS_A_WHOLE}",
    ),
    "a fixed point": (equilibrium, BY_ITSELF),
    "a constant of an operator": (SINE, f"GeneratedBackwardFor_others_sine.*{BY_ITSELF}"),
}

Sine = made(saving(torch.sin), lambda ctx, g: g * ctx.saved_tensors[0].cos(), "Sine")
SineTwice = made(
    saving(lambda x, g: g * x.cos()),
    lambda ctx, v: (-v * ctx.saved_tensors[1] * ctx.saved_tensors[0].sin(), v * ctx.saved_tensors[0].cos()),
    "SineTwice",
)
BySineTwice = made(saving(torch.sin), lambda ctx, g: SineTwice.apply(ctx.saved_tensors[0], g), "BySineTwice")
Rounded = made(lambda ctx, x: (4 * x).round() / 4, lambda ctx, g: g, "Rounded")
Error = made(
    saving(lambda x, target: (x - target).square().mean()),
    lambda ctx, g: (2 * g * (ctx.saved_tensors[0] - ctx.saved_tensors[1]) / ctx.saved_tensors[0].numel(), None),
    "Error",
)
Clamped = made(
    saving(lambda x, w: (x * w).relu()),
    lambda ctx, g: (
        g * (ctx.saved_tensors[0] * ctx.saved_tensors[1] > 0) * ctx.saved_tensors[1],
        (g * (ctx.saved_tensors[0] * ctx.saved_tensors[1] > 0) * ctx.saved_tensors[0]).sum(0),
    ),
    "Clamped",
)


def in_place_forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.mark_dirty(x)
    x.exp_()
    ctx.save_for_backward(x)
    return x


InPlace = made(in_place_forward, lambda ctx, g: g * ctx.saved_tensors[0], "InPlace")


def dropping_forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.mask = (torch.rand_like(x) > 0.5).to(x.dtype)
    ctx.save_for_backward(x)
    return x.square() * ctx.mask


Dropping = made(dropping_forward, lambda ctx, g: 2 * g * ctx.saved_tensors[0] * ctx.mask, "Dropping")


def recomputing_forward(ctx: Any, function: Any, x: Tensor, *parameters: Tensor) -> Tensor:
    ctx.function = function
    ctx.save_for_backward(x, *parameters)
    return function(x)


def recomputing_backward(ctx: Any, g: Tensor) -> Any:
    x, *parameters = ctx.saved_tensors
    with torch.enable_grad():
        out = ctx.function(x)
        return None, None, *torch.autograd.grad(out, parameters, g, create_graph=True)


Recomputing = made(recomputing_forward, recomputing_backward, "Recomputing")


def only_single(ctx: Any, x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise TypeError("float32 only")
    ctx.save_for_backward(x)
    return x.sin()


Single = made(only_single, lambda ctx, g: g * ctx.saved_tensors[0].cos(), "Single")
SingleConstant = made(
    lambda ctx, x: only_single(ctx, x), lambda ctx, g: g * ctx.saved_tensors[0].detach().cos(), "SingleConstant"
)


def solved_backward(ctx: Any, g: Tensor) -> Any:
    matrix, found = ctx.saved_tensors
    pulled = Solved.apply(matrix, g)
    return -(pulled @ found.T + found @ pulled.T) / 2, pulled


def solved_forward(ctx: Any, matrix: Tensor, b: Tensor) -> Tensor:
    found = torch.cholesky_solve(b, torch.linalg.cholesky(matrix))
    ctx.save_for_backward(matrix, found)
    return found


Solved = made(solved_forward, solved_backward, "Solved")


def gram(y: Tensor) -> Tensor:
    return y.T @ y + torch.eye(3).to(y)


RIGHT: dict[str, tuple[Part, Part]] = {
    "its formula": (Sine.apply, torch.sin),
    "a backward of its own": (BySineTwice.apply, torch.sin),
    "straight through": (Rounded.apply, lambda y: y + ((4 * y).round() / 4 - y).detach()),
    "a target that is held": (
        lambda y: Error.apply(y.sin(), y.flip(0).detach()),
        lambda y: (y.sin() - y.flip(0).detach()).square().mean(),
    ),
    "kinks": (lambda y: Clamped.apply(y.relu(), y.std(0)).square(), lambda y: (y.relu() * y.std(0)).relu().square()),
    "in place": (lambda y: InPlace.apply(y * 1), torch.exp),
    "an inner checkpoint": (lambda y: checkpoint(Sine.apply, y, use_reentrant=False), torch.sin),
    "of symmetric matrices alone": (
        lambda y: Solved.apply(gram(y), y[:3].T),
        lambda y: torch.linalg.solve(gram(y), y[:3].T),
    ),
    "tiny": (lambda y: 1e-9 * Sine.apply(y).square(), lambda y: 1e-9 * y.sin().square()),
    "linear": (lambda y: made(lambda ctx, x: 3 * x, lambda ctx, g: 3 * g).apply(y).exp(), lambda y: (3 * y).exp()),
}
"""Functions, and what they are in PyTorch's own operations."""


class Net(nn.Module):
    """Batch norm and a rectifier, before what a loss does."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x)


def loss_of(part: Part) -> Any:
    return lambda module, x: part(module(x)).square().sum(-1).mean() if part is not kernel_mean else part(module(x))


def setting(dtype: torch.dtype) -> tuple[ParameterVector, list[Tensor], Tensor]:
    theta = ParameterVector(Net(dtype))
    generator = torch.Generator().manual_seed(1)
    x, v = (torch.randn(n, generator=generator, dtype=torch.float64).to(dtype) for n in ((24, 4), (len(theta),)))
    return theta, [x], v


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("part", "sentence"), WRONG.values(), ids=WRONG)
def test_a_backward_that_has_no_true_derivative_is_refused(part: Part, sentence: str, dtype: torch.dtype) -> None:
    theta, stored, _ = setting(dtype)
    with pytest.raises(ValueError, match=f"{sentence}.*mode='finite_difference' estimates it; or write"):
        HessianOperator(loss_of(part), theta, stored)
    with pytest.raises(ValueError, match="cannot be traced"):
        HessianOperator(loss_of(part), theta, stored, "linearized")


def test_finite_differences_take_what_the_exact_modes_refuse() -> None:
    theta, stored, v = setting(torch.float64)
    expected = HessianOperator(loss_of(torch.sin), theta, stored).matvec(v)
    found = HessianOperator(loss_of(Constant.apply), theta, stored, "finite_difference", step=1e-7).matvec(v)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("part", "by_hand"), RIGHT.values(), ids=RIGHT)
def test_a_right_function_has_its_product(part: Part, by_hand: Part, dtype: torch.dtype) -> None:
    theta, stored, v = setting(dtype)
    expected = HessianOperator(loss_of(by_hand), theta, stored).matvec(v)
    found = HessianOperator(loss_of(part), theta, stored).matvec(v)
    torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_wrapper_that_computes_its_layers_again_is_confirmed_by_the_gradient(dtype: torch.dtype) -> None:
    theta, stored, v = setting(dtype)

    def wrapped(module: Net, x: Tensor) -> Tensor:
        inner = nn.Sequential(*module.body[:1], nn.Tanh())
        y = Recomputing.apply(inner, x, *inner.parameters())
        return module.body[3](y).square().mean()

    def plain(module: Net, x: Tensor) -> Tensor:
        return module.body[3](module.body[0](x).tanh()).square().mean()

    expected = HessianOperator(plain, theta, stored).matvec(v)
    torch.testing.assert_close(HessianOperator(wrapped, theta, stored).matvec(v), expected)


def test_comparisons_leave_no_gradient_where_a_backward_calls_backward() -> None:
    theta, stored, _ = setting(torch.float64)
    head = nn.Linear(3, 3).double()
    theta.module.head = head

    def backward(ctx: Any, g: Tensor) -> Tensor:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            head(x).backward(g)
        return x.grad

    def loss(module: Net, x: Tensor) -> Tensor:
        return reentrant.apply(module(x).sin()).pow(3).sum()

    reentrant = made(saving(head), backward)
    torch.autograd.grad(loss(theta.module, stored[0]), theta.tensors)
    by_one_gradient, head.bias.grad = head.bias.grad, None
    with pytest.raises(ValueError, match="so it has no exact product"):
        HessianOperator(loss, ParameterVector(theta.module, "body."), stored)
    torch.testing.assert_close(head.bias.grad, by_one_gradient)  # none of the comparison's own


def test_a_function_that_draws_is_compared_at_equal_draws() -> None:
    theta, stored, v = setting(torch.float64)
    assert HessianOperator(loss_of(Dropping.apply), theta, stored).matvec(v).norm() > 0


def test_a_function_of_single_precision_alone_is_looked_at_in_it() -> None:
    theta, stored, v = setting(torch.float32)
    expected = HessianOperator(loss_of(torch.sin), theta, stored).matvec(v)
    torch.testing.assert_close(HessianOperator(loss_of(Single.apply), theta, stored).matvec(v), expected)
    with pytest.raises(ValueError, match=f"SingleConstant of .*{BY_ITSELF}"):
        HessianOperator(loss_of(SingleConstant.apply), theta, stored)


def test_each_update_looks_again_and_no_product_does() -> None:
    seen = []

    def forward(ctx: Any, x: Tensor) -> Tensor:
        seen.append(x.dtype)
        ctx.derivative = (x > 3).to(x.dtype) * 2 * x.detach()
        ctx.save_for_backward(x)
        return torch.where(x > 3, x.square(), x.sin())

    here = made(forward, lambda ctx, g: g * torch.where(ctx.derivative > 0, ctx.derivative, ctx.saved_tensors[0].cos()))
    theta, stored, v = setting(torch.float64)
    operator = HessianOperator(loss_of(here.apply), theta, stored, retain=0)
    operator.matvec(v)
    looked = len(seen)
    operator.matvec(v)
    assert 20 > looked > len(seen) - looked == 1
    with torch.no_grad():
        theta.module.body[3].bias += 6
    operator.update(stored)
    with pytest.raises(ValueError, match=BY_ITSELF):
        operator.matvec(v)


def test_a_look_leaves_all_as_it_was() -> None:
    theta, stored, v = setting(torch.float64)
    buffers = {name: b.clone() for name, b in theta.module.named_buffers()}
    versions = [p._version for p in theta.tensors]
    forwards = {f: f.__dict__["forward"] for f in (Sine, Doubled)}
    for part in (Sine.apply, Doubled.apply):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        try:
            HessianOperator(loss_of(part), theta, stored).matvec(v)
        except ValueError:
            assert part == Doubled.apply
        assert theta.module.calls == 1  # of the linearisation itself
        theta.module.calls = 0
        drawn = torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(3))
        torch.set_rng_state(before)
        assert torch.equal(torch.randint(2**62, (1,)), drawn)
    assert all(torch.equal(b, buffers[name]) for name, b in theta.module.named_buffers())
    assert [p._version for p in theta.tensors] == versions
    assert all(p.dtype == torch.float64 and p.grad is None for p in theta.tensors)
    assert all(f.__dict__["forward"] is forwards[f] for f in forwards)


def test_only_others_are_looked_at() -> None:
    from bissl_fast.ops.nt_xent import function

    ours = [f for f in vars(function).values() if isinstance(f, type) and issubclass(f, Function)]
    assert not any(map(is_foreign, ours))
    assert not is_foreign(torch.utils.checkpoint.CheckpointFunction)
    assert is_foreign(Sine)
