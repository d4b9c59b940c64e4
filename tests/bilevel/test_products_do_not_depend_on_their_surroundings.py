"""Contexts, random generators, dtypes and lengths around a product: no part in it, or refused with a sentence."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector
from bissl_fast.bilevel.products.precision import tf32
from bissl_fast.ops.triton.launch import is_split
from bissl_fast.training.precision import apply_precision
from tests.bilevel.test_products_belong_to_one_point import MODES, each_mode, ones
from tests.bilevel.test_traces_hold_whatever_a_loss_does import batch, mlp, network, squares

Context = Callable[[], AbstractContextManager[Any]]


@each_mode
@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_contexts_around_a_product_have_no_part_in_it(mode: Any, context: Context) -> None:
    module = mlp().float()
    data = tuple(t.float() for t in batch())
    theta = ParameterVector(module)
    v = ones(theta).float()
    operators = [HessianOperator(squares, theta, [data], mode, retain=retain) for retain in (1, 0)]
    expected = operators[0].matvec(v)
    with context():
        within = [*operators, HessianOperator(squares, theta, [tuple(t.clone() for t in data)], mode)]
        assert all(torch.equal(operator.matvec(v), expected) for operator in within)


class Attention(nn.Module):
    """Two heads over the rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[None, :, :4]
        found: torch.Tensor = self.out(self.inner(x, x, x, need_weights=False)[0])[0]
        return found


def test_attention_has_exact_products_in_both_modes() -> None:
    torch.manual_seed(0)
    theta = ParameterVector(Attention().double())
    found = [HessianOperator(squares, theta, [batch()], mode).matvec(ones(theta)) for mode in ("reverse", "linearized")]  # type: ignore[arg-type]
    estimate = HessianOperator(squares, theta, [batch()], "finite_difference").matvec(ones(theta))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found[0], estimate, rtol=1e-5, atol=1e-6)


def test_dropout_has_the_same_masks_in_every_product_of_an_update() -> None:
    theta = ParameterVector(network(nn.Linear(5, 40), nn.Tanh(), nn.Dropout(0.5), nn.Linear(40, 3)))
    found = []
    for mode, retain in (("reverse", 2), ("reverse", 0), ("reverse", 1), ("finite_difference", 0)):
        torch.manual_seed(7)
        operator = HessianOperator(squares, theta, [batch(), batch(4)], mode, retain)  # type: ignore[arg-type]
        found += [operator.matvec(ones(theta)) for _ in range(2)]
    for product in found[1:6]:
        assert torch.equal(product, found[0])
    for product in found[6:]:
        torch.testing.assert_close(product, found[0], rtol=1e-5, atol=1e-6)
    operator.update([batch(), batch(4)])
    assert not torch.allclose(operator.matvec(ones(theta)), found[0])


def test_products_draw_nothing_from_the_random_generator() -> None:
    theta = ParameterVector(network(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)))
    operator = HessianOperator(squares, theta, [batch()], retain=0)
    before = torch.get_rng_state()
    operator.matvec(ones(theta))
    assert torch.equal(torch.get_rng_state(), before)


class Skipping(nn.Module):
    """A network whose second layer is left out now and then, and scaled by another library's draw."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.first(x).tanh()
        if random.random() < 0.5:
            y = y + self.second(y)
        return y * float(np.random.rand())


def test_draws_of_python_and_numpy_are_the_same_in_every_product_of_an_update_or_refused() -> None:
    theta = ParameterVector(Skipping().double())
    batches = [batch(seed) for seed in range(6)]
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1:3]
    exact = HessianOperator(squares, theta, batches, retain=3)
    torch.manual_seed(1)
    estimate = HessianOperator(squares, theta, batches, "finite_difference").matvec(ones(theta))
    found = exact.matvec(ones(theta))
    assert torch.equal(exact.matvec(ones(theta)), found)
    torch.testing.assert_close(found, estimate, rtol=1e-4, atol=1e-6)
    exact.update(batches)
    assert not torch.allclose(exact.matvec(ones(theta)), found)
    np.testing.assert_equal((random.getstate(), np.random.get_state()[1:3]), before)
    with pytest.raises(ValueError, match=r"it draws random numbers: by the generator of Python's random"):
        HessianOperator(squares, theta, batches, "linearized")


@pytest.mark.parametrize(("mode", "retain"), [("linearized", 1), ("finite_difference", 1), ("reverse", 0)])
def test_a_loss_that_is_another_each_time_it_is_called_is_refused(mode: Any, retain: int) -> None:
    theta, remembered = ParameterVector(mlp()), [1.0]

    def loss(module: nn.Module, data: Any) -> torch.Tensor:
        remembered.append(1.1 * remembered[-1])
        return remembered[-1] * squares(module, data)

    HessianOperator(loss, theta, [batch()]).matvec(ones(theta))  # a graph that is kept is that of one call

    def multiply_twice() -> None:
        operator = HessianOperator(loss, theta, [batch()], mode, retain)
        operator.matmat(operator.matvec(ones(theta))[None])

    with pytest.raises(ValueError, match=r"another value when it is called again at the same parameters"):
        multiply_twice()


@pytest.mark.parametrize("retain", [1, 0])
def test_an_update_elsewhere_that_draws_the_same_seed_is_no_other_call_of_one_function(retain: int) -> None:
    theta = ParameterVector(mlp())
    torch.manual_seed(0)
    operator = HessianOperator(squares, theta, [batch()], retain=retain)
    operator.matvec(ones(theta))
    theta.assign(1.5 * theta.values())
    torch.manual_seed(0)
    operator.update([batch()])
    torch.testing.assert_close(
        operator.matvec(ones(theta)), HessianOperator(squares, theta, [batch()]).matvec(ones(theta))
    )


MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn
NEWER = (MATMUL, CUDNN.conv, CUDNN.rnn, torch.backends.mkldnn.matmul)
OLDER: tuple[Callable[[], Any], ...] = (
    torch.get_float32_matmul_precision,
    lambda: MATMUL.allow_tf32,
    lambda: CUDNN.allow_tf32,
)


def formats() -> list[Any]:
    """What every name of the number formats says; an older one may refuse where the newer ones differ."""
    found: list[Any] = [owner.fp32_precision for owner in NEWER]
    for read in OLDER:
        try:
            found.append(read())
        except RuntimeError:
            found.append("refused")
    return found


@pytest.fixture
def precision() -> Iterator[None]:
    """Puts TF32 back to what it was, by whichever names a test sets it."""
    with tf32(False):
        yield


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("convolutions", [None, True, False, "tf32", "ieee"])
@pytest.mark.parametrize("newer", [None, "tf32", "ieee"])
@pytest.mark.parametrize("allowed", [None, True, False])
@pytest.mark.parametrize("products", ["highest", "high", "medium"])
def test_tf32_is_set_by_all_names_and_left_as_it_was_found(
    products: str, allowed: bool | None, newer: str | None, convolutions: bool | str | None
) -> None:
    torch.set_float32_matmul_precision(products)
    if allowed is not None:
        MATMUL.allow_tf32 = allowed
    if newer is not None:
        MATMUL.fp32_precision = newer
    if convolutions is not None:
        owner, name = (CUDNN, "allow_tf32") if isinstance(convolutions, bool) else (CUDNN.conv, "fp32_precision")
        setattr(owner, name, convolutions)
    before = formats()
    for wanted, word in ((True, "tf32"), (False, "ieee")):
        with tf32(wanted):
            assert formats() == [word] * 4 + ["high" if wanted else "highest", wanted, wanted]
            assert is_split(torch.float32) != wanted
        assert formats() == before


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("precision_of_training", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(("dtype", "expected"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_only_products_in_tf32_use_it_whatever_training_does(
    precision_of_training: Any, dtype: Any, expected: bool
) -> None:
    def loss(module: nn.Module, data: Any) -> torch.Tensor:
        found.append(formats())
        return squares(module, data)

    found: list[list[Any]] = []
    theta = ParameterVector(network(nn.Linear(5, 3)))
    apply_precision(precision_of_training, torch.device("cuda"))
    before = formats()
    HessianOperator(loss, theta, [batch()], retain=0, dtype=dtype).matvec(ones(theta))
    assert found == [["tf32" if expected else "ieee"] * 4 + ["high" if expected else "highest", expected, expected]]
    assert formats() == before


class Once(torch.autograd.Function):
    """A sine whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * ctx.saved_tensors[0].cos()


def once(module: nn.Module, data: Any) -> torch.Tensor:
    value: torch.Tensor = Once.apply(module(data[0])).square().mean()
    return value


def margin(module: nn.Module, data: Any) -> torch.Tensor:
    return nn.functional.multi_margin_loss(module(data[0]), torch.tensor([0, 1, 2, 0, 1, 2]), p=2)


@pytest.mark.parametrize(("loss", "name"), [(once, "@once_differentiable"), (margin, "differentiable once")])
def test_what_pytorch_cannot_differentiate_twice_is_refused_and_estimated(loss: Any, name: str) -> None:
    theta = ParameterVector(mlp())
    with pytest.raises(ValueError, match=rf"{name}.*finite_difference' estimates"):
        HessianOperator(loss, theta, [batch()]).matvec(ones(theta))
    with pytest.raises(ValueError, match="cannot be traced"):
        HessianOperator(loss, theta, [batch()], "linearized")
    assert torch.isfinite(HessianOperator(loss, theta, [batch()], "finite_difference").matvec(ones(theta))).all()


def test_weight_norm_whose_second_derivative_is_wrong_in_pytorch_is_refused() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 3).double())
    v, g = torch.randn(3, 5, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    try:
        torch.autograd.gradgradcheck(lambda v, g: torch._weight_norm(v, g, 0), (v.requires_grad_(), g.requires_grad_()))
    except RuntimeError:
        with pytest.raises(ValueError, match="weight norm, whose second derivative is wrong"):
            HessianOperator(squares, ParameterVector(layer), [batch()])
    else:
        pytest.skip("PyTorch's weight norm is right to second order now: graphs.ONCE can lose it")


VECTORS = {
    "too short": (lambda v: v[1:], r"found \(1, 38\)"),
    "too many axes": (lambda v: v[None], r"found \(1, 1, 39\)"),
    "of another dtype": (lambda v: v.float(), r"must be torch\.float64 on cpu as the parameters"),
}


@each_mode
@pytest.mark.parametrize("case", VECTORS)
def test_vectors_that_do_not_fit_are_refused(mode: Any, case: str) -> None:
    theta = ParameterVector(mlp())
    operator = HessianOperator(squares, theta, [batch()], mode)
    change, sentence = VECTORS[case]
    with pytest.raises(ValueError, match=sentence):
        operator.matvec(change(ones(theta)))
    with pytest.raises(ValueError, match=r"\(R, 39\), found \(39,\)"):
        operator.matmat(ones(theta))
    assert operator.matmat(ones(theta)[None][:0]).shape == (0, 39)


@each_mode
def test_a_product_under_a_transform_would_have_no_derivative_and_raises(mode: Any) -> None:
    theta = ParameterVector(mlp())
    operator = HessianOperator(squares, theta, [batch()], mode)
    with pytest.raises(RuntimeError, match="a product has no derivative"):
        torch.func.grad(lambda v: operator.matvec(v).sum())(ones(theta))
    assert not operator.matvec(ones(theta).requires_grad_()).requires_grad


@each_mode
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_tiny_and_huge_vectors_keep_their_digits(mode: Any, size: float) -> None:
    theta = ParameterVector(mlp().float())
    operator = HessianOperator(squares, theta, [tuple(t.float() for t in batch())], mode)
    v = ones(theta).float()
    torch.testing.assert_close(operator.matvec(size * v) / size, operator.matvec(v), rtol=1e-3, atol=1e-3)


def test_losses_that_are_no_scalar_or_no_function_of_the_parameters_are_refused() -> None:
    theta = ParameterVector(mlp())
    for mode in MODES:

        def act(loss: Any, mode: Any = mode) -> None:
            HessianOperator(loss, theta, [batch()], mode).matvec(ones(theta))

        with pytest.raises(ValueError, match=r"scalar tensor, of shape \(\), found \(6, 3\)"):
            act(lambda m, b: m(b[0]))
        with pytest.raises(ValueError, match="found float"):
            act(lambda m, b: 3.0)
        with pytest.raises(ValueError, match="does not depend on the parameters"):
            act(lambda m, b: m(b[0]).detach().mean())
    detached = CompositeLoss(lambda m, b: m(b[0]).detach(), lambda outputs: outputs.square().mean())
    with pytest.raises(ValueError, match="does not depend on the parameters"):
        HessianOperator(detached, theta, [batch()], "gauss_newton")


@each_mode
def test_batches_that_require_a_gradient_are_constants(mode: Any) -> None:
    theta, (x, y) = ParameterVector(mlp()), batch()
    expected = HessianOperator(squares, theta, [(x, y)], mode).matvec(ones(theta))
    found = HessianOperator(squares, theta, [(x.clone().requires_grad_() * 1, y)], mode).matvec(ones(theta))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    of_the_network = theta.module(x).exp()
    expected = HessianOperator(squares, theta, [(x, of_the_network.detach())], mode).matvec(ones(theta))
    found = HessianOperator(squares, theta, [(x, of_the_network)], mode).matvec(ones(theta))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_settings_that_make_no_sense_are_refused() -> None:
    theta = ParameterVector(mlp())
    with pytest.raises(
        ValueError, match="must be a ParameterVector, as ParameterVector\\(network\\), found Sequential"
    ):
        HessianOperator(squares, mlp(), [batch()])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="list of batches, found one tensor"):
        HessianOperator(squares, theta, batch()[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one stored batch"):
        HessianOperator(squares, theta, iter([]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(39,\), found \(38,\)"):
        theta.assign(ones(theta)[1:])
    with pytest.raises(ValueError, match=r"0.weight must have its shape, \(4, 5\), found \(5, 4\)"):
        theta.flatten([t.flip(0).mT if t.dim() > 1 else t for t in theta.tensors])
    for step in (0.0, -1e-3, float("nan")):
        with pytest.raises(ValueError, match="step of finite differences must be positive"):
            HessianOperator(squares, theta, [batch()], "finite_difference", step=step)
    with pytest.raises(ValueError, match="a small step is lost in bfloat16"):
        HessianOperator(squares, theta, [batch()], "finite_difference", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"a small step is lost in torch\.float16"):
        HessianOperator(squares, ParameterVector(mlp().half()), [batch()], "finite_difference")
    with pytest.raises(ValueError, match="retain must be 0 or more, found -1"):
        HessianOperator(squares, theta, [batch()], retain=-1)
    with pytest.raises(ValueError, match=r"torch\.float32 on cpu, torch\.float64 on cpu"):
        ParameterVector(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).double()]))
    with pytest.raises(ValueError, match=r"complex64"):
        ParameterVector(nn.Linear(2, 2, dtype=torch.complex64))


def test_the_buffers_of_a_loss_that_is_a_module_are_held_still_too() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3).double()

        def forward(self, module: nn.Module, data: Any) -> torch.Tensor:
            out: torch.Tensor = self.norm(module(data[0])).pow(4).mean()
            return out

    loss, theta = Loss(), ParameterVector(mlp())
    for mode in ("reverse", "finite_difference"):
        HessianOperator(loss, theta, [batch()], mode, retain=0).matvec(ones(theta))  # type: ignore[arg-type]
    assert loss.norm.num_batches_tracked == 0


@pytest.mark.parametrize("around", [True, False])
def test_convolutions_add_in_one_order_whatever_holds_around_a_product(
    around: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(module: nn.Module, data: Any) -> torch.Tensor:
        found.append(torch.backends.cudnn.deterministic)
        return squares(module, data)

    found: list[bool] = []
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", around)
    theta = ParameterVector(network(nn.Linear(5, 3)))
    HessianOperator(loss, theta, [batch()], retain=0).matvec(ones(theta))
    assert found == [True]
    assert torch.backends.cudnn.deterministic == around
