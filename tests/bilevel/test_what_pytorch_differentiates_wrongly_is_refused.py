"""Ops whose second derivative is wrong in PyTorch without an error are refused, and no others are."""

import itertools
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector

Tensors = tuple[torch.Tensor, ...]
Function = Callable[[Tensors], torch.Tensor]

W = torch.tensor([[1.0, 0.2], [0.2, 0.7]], dtype=torch.float64)
V = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
INDEX = torch.tensor([[0, 1], [0, 0]])


class Matrix(nn.Module):
    """A matrix of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(W.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w * x


ALONG_TANGENTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "cholesky_inverse": (
        lambda w: torch.cholesky_inverse(w.tril()),
        lambda w: torch.cholesky_solve(torch.eye(2, dtype=w.dtype), w.tril()),
    ),
    "triangular_solve": (
        lambda w: torch.triangular_solve(W.cos(), w.tril(), upper=False)[0],
        lambda w: torch.linalg.solve_triangular(w.tril(), W.cos(), upper=False),
    ),
    "scatter_reduce": (
        lambda w: torch.zeros_like(W).scatter_reduce(0, INDEX, w, "prod", include_self=False),
        lambda w: torch.zeros_like(W).scatter_add(0, INDEX, w.log()).exp() * torch.tensor([[1, 1], [0, 1]]),
    ),
    "scatter_reduce_": (
        lambda w: torch.ones_like(W).scatter_reduce_(0, INDEX, w, "prod"),
        lambda w: torch.zeros_like(W).scatter_add(0, INDEX, w.log()).exp(),
    ),
}


@pytest.mark.parametrize(("wrong", "right"), ALONG_TANGENTS.values(), ids=ALONG_TANGENTS)
@pytest.mark.filterwarnings("ignore:.*triangular_solve is deprecated")
def test_ops_whose_forward_derivative_is_wrong_are_refused_and_what_is_named_instead_is_right(
    wrong: Callable[[torch.Tensor], torch.Tensor], right: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    def loss(function: Callable[[torch.Tensor], torch.Tensor]) -> CompositeLoss:
        return CompositeLoss(lambda m, x: function(m(x)), lambda out: out.square().sum())

    theta, batch = ParameterVector(Matrix()), torch.ones(2, 2, dtype=torch.float64)
    expected = HessianOperator(loss(wrong), theta, [batch]).matvec(V)
    found = HessianOperator(loss(right), theta, [batch], "linearized").matvec(V)
    torch.testing.assert_close(found, expected)
    along = torch.func.jvp(torch.func.grad(lambda w: wrong(w).square().sum()), (W,), (V.view(2, 2),))[1].flatten()
    assert not torch.allclose(along, expected, rtol=1e-2), "PyTorch has mended it: graphs.WRONG_ALONG_TANGENTS can go"
    for mode in ("linearized", "gauss_newton"):
        with pytest.raises(ValueError, match=r"PyTorch has a wrong forward derivative of .*; take .* mode='reverse'"):
            HessianOperator(loss(wrong), theta, [batch], mode)  # type: ignore[arg-type]


def test_the_product_of_an_inverse_from_its_cholesky_factor_is_the_known_one() -> None:
    theta = ParameterVector(Matrix())
    inverse = HessianOperator(lambda m, x: torch.cholesky_inverse(m(x).tril()).square().sum(), theta, [torch.ones(())])
    expected = torch.tensor([36.01, 0, -73.71, 551.20], dtype=torch.float64)
    torch.testing.assert_close(inverse.matvec(V), expected, rtol=0, atol=0.005)


def test_a_scatter_whose_derivatives_are_wrong_is_refused_by_reverse() -> None:
    def loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        w = module(x)
        return torch.as_strided_scatter(w, w[0].sin(), (2,), (1,), 1).pow(3).sum()

    with pytest.raises(ValueError, match=r"as_strided_scatter, of which PyTorch has even the first derivative wrong"):
        HessianOperator(loss, ParameterVector(Matrix()), [torch.ones(2, 2, dtype=torch.float64)])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_cross_entropy_in_pieces_is_refused_by_reverse(reduction: str) -> None:
    options = getattr(nn, "LinearCrossEntropyOptions", None)
    if options is None:
        pytest.skip("this PyTorch has none")

    def loss(module: nn.Module, x: torch.Tensor, **settings: Any) -> torch.Tensor:
        target = torch.tensor([0, 1])
        return nn.functional.linear_cross_entropy(x, module(x), target, reduction=reduction, **settings).mean()

    theta, x = ParameterVector(Matrix()), torch.ones(2, 2, dtype=torch.float64)
    HessianOperator(loss, theta, [x])
    with pytest.raises(ValueError, match=r"linear_cross_entropy in pieces, whose second derivative is wrong"):
        HessianOperator(lambda m, x: loss(m, x, options=options()), theta, [x])


def layer_norm(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(x, x.shape[1:])


def batch_norm(x: torch.Tensor, training: bool = True) -> torch.Tensor:
    given = (None, None) if training else (torch.zeros(4).double(), torch.ones(4).double())
    return nn.functional.batch_norm(x, *given, training=training)


def instance_norm(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.instance_norm(x[None])[0]


def written_out(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) * (x.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()


def features(module: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x @ module.w, x + 1], dim=1)


def penalised(norm: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A gradient penalty, by the features in front of a norm."""

    def loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        z = features(module, x)
        (slope,) = torch.autograd.grad(norm(z).tanh().square().sum(), z, create_graph=True)
        return slope.square().sum() + slope.sin().sum()

    return loss


def moved(norm: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """How much outputs move along a change of the features."""

    def loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        along = torch.cat([x.cos(), x.sin()], dim=1)
        tangent: torch.Tensor = torch.func.jvp(lambda z: norm(z).tanh(), (features(module, x),), (along,))[1]
        return tangent.square().sum() + tangent.sin().sum()

    return loss


ROWS = torch.linspace(-1, 2, 10, dtype=torch.float64).view(5, 2).exp().sin()


def differences(loss: Any) -> torch.Tensor:
    """The product by central differences of central differences of the loss."""

    def slopes(w: torch.Tensor) -> torch.Tensor:
        module, found = Matrix(), torch.empty(4, dtype=torch.float64)
        for k in range(4):
            values = []
            for sign in (1, -1):
                module.w.data = (w + sign * 1e-4 * torch.eye(4, dtype=w.dtype)[k]).view(2, 2)
                values.append(loss(module, ROWS).detach())
            found[k] = (values[0] - values[1]) / 2e-4
        return found

    return (slopes(W.flatten() + 1e-4 * V) - slopes(W.flatten() - 1e-4 * V)) / 2e-4


def solved(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(torch.eye(4, dtype=x.dtype) + x.T @ x, x.T)


def by_inverse(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.inv(torch.eye(4, dtype=x.dtype) + x.T @ x) @ x.T


def test_forward_derivatives_that_a_loss_takes_of_a_solve_are_refused_and_by_the_inverse_they_are_right() -> None:
    theta = ParameterVector(Matrix())
    leaf = W.clone().requires_grad_()
    slopes = [torch.autograd.grad(moved(f)(types.SimpleNamespace(w=leaf), ROWS), leaf)[0] for f in (solved, by_inverse)]
    assert not torch.allclose(*slopes, rtol=1e-2), "PyTorch has mended it: stops.SOLVES can go"
    for mode in ("reverse", "linearized", "finite_difference"):
        with pytest.raises(ValueError, match=r"jvp\) of linalg_solve of its own.*take torch\.linalg\.inv"):
            HessianOperator(moved(solved), theta, [ROWS], mode).matvec(V)  # type: ignore[arg-type]
        found = HessianOperator(moved(by_inverse), theta, [ROWS], mode).matvec(V)  # type: ignore[arg-type]
        torch.testing.assert_close(found, differences(moved(by_inverse)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("made", [penalised, moved])
@pytest.mark.parametrize("norm", [layer_norm, batch_norm, instance_norm])
def test_derivatives_that_a_loss_takes_of_a_norm_are_refused_and_written_out_they_are_right(
    made: Any, norm: Any
) -> None:
    theta = ParameterVector(Matrix())
    plain = torch.func.grad(lambda w: made(norm)(types.SimpleNamespace(w=w), ROWS))
    by_torch = torch.func.jvp(plain, (W,), (V.view(2, 2),))[1].flatten()
    assert not torch.allclose(by_torch, differences(made(norm)), rtol=1e-2), "mended: graphs.WRONG_WITHIN can go"
    for mode in ("reverse", "linearized"):
        with pytest.raises(ValueError, match=r"of its own, whose derivatives .* are wrong .*; write the norm out"):
            HessianOperator(made(norm), theta, [ROWS], mode)  # type: ignore[arg-type]
        for right in (written_out, lambda x: batch_norm(x, training=False)):
            found = HessianOperator(made(right), theta, [ROWS], mode).matvec(V)  # type: ignore[arg-type]
            torch.testing.assert_close(found, differences(made(right)), rtol=1e-4, atol=1e-4)


def test_an_op_on_constants_is_not_refused() -> None:
    def loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return (module(x) @ torch.cholesky_inverse(x)).pow(3).sum()

    theta, batch = ParameterVector(Matrix()), W.tril()
    expected = HessianOperator(loss, theta, [batch]).matvec(V)
    torch.testing.assert_close(HessianOperator(loss, theta, [batch], "linearized").matvec(V), expected)


UNDEFINED = {
    "half": "digits of float16",
    "chalf": "digits of float16",
    "bfloat16": "digits of bfloat16",
    "nn_functional_cosine_embedding_loss": "differs by whether a target is exactly 1",
    "nn_functional_hinge_embedding_loss": "differs by whether a target is exactly 1",
    "nn_functional_max_unpool1d": "with indices that are there twice, one value of several wins",
    "nn_functional_max_unpool2d": "with indices that are there twice, one value of several wins",
    "nn_functional_max_unpool3d": "with indices that are there twice, one value of several wins",
}
"""Entries of PyTorch's list whose samples have no second derivative to compare with, and why."""
FORWARD = {"cholesky_inverse", "triangular_solve", "scatter_reduce_prod"}
REVERSE = {"as_strided_scatter", "nn_functional_linear_cross_entropy_chunked"}


def operators() -> Iterator[Any]:
    """PyTorch's own list of its differentiable operators, with samples."""
    if "expecttest" not in sys.modules:  # PyTorch's test helpers import it for what is not used here
        stub: Any = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stub
    from torch.testing._internal.common_methods_invocations import op_db

    vars(torch.backends)["__allow_nonbracketed_mutation_flag"] = True  # which that import has taken from later tests

    for op in op_db:
        known = op.supports_autograd and torch.float64 in op.supported_dtypes("cpu")
        if known and op.formatted_name not in UNDEFINED:
            yield op


def sampled(op: Any) -> Iterator[tuple[Function, Tensors]]:
    """Scalar functions of the tensors in a few of an operator's samples, and these tensors."""
    for sample in itertools.islice(op.sample_inputs("cpu", torch.float64, requires_grad=True), 24):
        leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        places = [k for k, t in enumerate(leaves) if isinstance(t, torch.Tensor) and t.requires_grad]
        theta = tuple(leaves[k].detach().clone() for k in places)

        def function(theta: Tensors, leaves: Any = leaves, spec: Any = spec, places: Any = places) -> torch.Tensor:
            given = dict(enumerate(leaves)) | dict(zip(places, (1 * t for t in theta), strict=True))
            first, args, kwargs = tree_unflatten(list(given.values()), spec)
            torch.manual_seed(0)
            return to_scalar(op.gradcheck_wrapper(op.op, first, *args, **kwargs))

        if theta and all(t.dtype == torch.float64 for t in theta) and sum(t.numel() for t in theta) <= 400:
            yield function, theta


def to_scalar(values: Any) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for t in tree_leaves(values):
        if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex()):
            real = (torch.view_as_real(t) if t.is_complex() else t).double()
            weights = torch.linspace(0.5, 1.5, real.numel(), dtype=torch.float64).view(real.shape)
            total = total + (weights * real + real.square() / 2).sum()
    return total


def flat(tensors: Any, theta: Tensors) -> torch.Tensor:
    return torch.cat([(torch.zeros_like(p) if t is None else t).flatten() for t, p in zip(tensors, theta, strict=True)])


def gradient(function: Function, theta: Tensors, create_graph: bool = False) -> tuple[Any, Tensors]:
    theta = tuple(t.detach().clone().requires_grad_() for t in theta)
    found = torch.autograd.grad(function(theta), theta, create_graph=create_graph, allow_unused=True)
    return found, theta


def by_differences(function: Function, theta: Tensors, v: Tensors) -> torch.Tensor | None:
    """The product by central differences of the gradient; ``None`` where two steps disagree, as beside a kink."""
    found = []
    for step in (1e-5, 3e-6):
        ends = [tuple(t + sign * step * d for t, d in zip(theta, v, strict=True)) for sign in (1, -1)]
        above, below = (flat(gradient(function, end)[0], theta) for end in ends)
        found.append((above - below) / (2 * step))
    agree = (found[0] - found[1]).norm() <= 1e-3 * (1 + found[0].norm())
    return found[1] if agree else None


def forward_over_reverse(function: Function, theta: Tensors, v: Tensors) -> torch.Tensor:
    return flat(torch.func.jvp(torch.func.grad(function), (theta,), (v,))[1], theta)


def reverse_over_reverse(function: Function, theta: Tensors, v: Tensors) -> torch.Tensor:
    found, leaves = gradient(function, theta, create_graph=True)
    pairs = [(g, d) for g, d in zip(found, v, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        return flat([None] * len(theta), theta)
    heads, along = zip(*pairs, strict=True)
    return flat(torch.autograd.grad(heads, leaves, along, allow_unused=True), theta)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_no_other_operator_of_pytorch_has_a_second_derivative_that_is_wrong_without_an_error() -> None:
    wrong: dict[str, set[str]] = {"forward": set(), "reverse": set()}
    compared = 0
    for op in operators():
        for function, theta in sampled(op):
            generator = torch.Generator().manual_seed(1)
            v = tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in theta)
            try:
                expected = by_differences(function, theta, v)
            except RuntimeError:  # no sample of a function that depends on its tensors
                continue
            for name, product in (("forward", forward_over_reverse), ("reverse", reverse_over_reverse)):
                try:
                    found = product(function, theta, v)
                except (RuntimeError, NotImplementedError, TypeError):  # loud, as it should be
                    continue
                if expected is not None and bool(torch.isfinite(found).all() & torch.isfinite(expected).all()):
                    compared += 1
                    if (found - expected).norm() > 1e-3 * (1e-3 + expected.norm()):
                        wrong[name].add(op.formatted_name)
    assert compared > 5000
    assert wrong["forward"] <= FORWARD, "PyTorch is wrong on more of them: see graphs.WRONG_ALONG_TANGENTS"
    assert wrong["reverse"] <= REVERSE, "PyTorch is wrong on more of them: see graphs.ONCE"
    assert wrong["forward"] | wrong["reverse"]  # the comparison can tell
