"""Traced products of losses that write in place, stop gradients or reach outside: the reverse product or a sentence."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector

Batch = tuple[torch.Tensor, torch.Tensor]


class Layer(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Recurrent(nn.Module):
    """The outputs of a recurrent layer."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.inner = kind(12, 3, batch_first=True)  # of six steps: each is traced

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x.flatten(1).unflatten(1, (-1, 12)))[0]
        return out


def network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for layer in layers:
        for module in layer.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return nn.Sequential(*layers).double()


def mlp() -> nn.Module:
    return network(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def batch(seed: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (5, 3))  # type: ignore[return-value]


def squares(module: nn.Module, data: Batch) -> torch.Tensor:
    return (module(data[0]) - data[1]).square().mean()


def products(loss: Any, module: nn.Module, data: Any, mode: Any) -> torch.Tensor:
    """Two products from one kept linearisation and two rebuilt ones, of two vectors."""
    theta = ParameterVector(module)
    vectors = torch.randn(2, len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept, rebuilt = (HessianOperator(loss, theta, [data], mode, retain=retain) for retain in (1, 0))
    return torch.stack([operator.matvec(v) for operator in (kept, rebuilt) for v in vectors])


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(2, 3, 3), nn.SiLU(inplace=True), nn.Conv2d(3, 2, 3)),
        (nn.Conv2d(2, 3, 3), Layer(lambda x: x.mul_(1.5).sin().add_(0.3)), nn.Conv2d(3, 2, 3)),
        (nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular")),
        (nn.Conv2d(2, 2, 3), Layer(lambda x: x.tanh() * x.new_zeros(2, 1, 1).add_(0.5).mul_(3))),
        (nn.Conv2d(2, 3, 3), Layer(lambda x: torch.fft.irfft2(torch.fft.rfft2(x).pow(2)))),
        (nn.Conv2d(2, 3, 3), Layer(torch.linalg.svdvals)),
        pytest.param((Recurrent(nn.GRU),), marks=pytest.mark.slow),  # as the LSTM
        (Recurrent(nn.LSTM),),
    ],
    ids=["silu_", "mul_ and add_", "circular padding", "a constant", "fft", "svd", "GRU", "LSTM"],
)
def test_writes_in_place_by_the_loss_or_by_pytorch_itself(layers: tuple[nn.Module, ...]) -> None:
    module = network(*layers)
    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = module(x)
        return out.pow(2).mean() + out.sin().mean()

    expected = products(loss, module, x, "reverse")
    assert float(expected.norm()) > 0.01
    torch.testing.assert_close(products(loss, module, x, "linearized"), expected, rtol=1e-8, atol=1e-9)


def test_a_parameter_that_the_loss_holds_on_to_is_seen_or_refused() -> None:
    module = mlp()
    held = list(module.parameters())

    def loss(module: nn.Module, data: Batch) -> torch.Tensor:
        return squares(module, data) + 0.5 * torch.stack([p.pow(4).sum() for p in held]).sum()

    expected = products(loss, module, batch(), "reverse")
    without = products(squares, module, batch(), "reverse")
    assert not torch.allclose(expected, without)
    estimated = products(loss, module, batch(), "finite_difference")
    torch.testing.assert_close(estimated, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="holds on to a parameter"):
        products(loss, module, batch(), "linearized")


@pytest.mark.parametrize("retain", [None, 0])
def test_a_tensor_from_elsewhere_may_change_between_updates_and_not_between_products(retain: int | None) -> None:
    module, factor = mlp(), torch.ones(3, dtype=torch.float64)

    def loss(module: nn.Module, data: Batch) -> torch.Tensor:
        return (factor * module(data[0])).pow(4).mean()

    theta = ParameterVector(module)
    v = torch.ones(len(theta), dtype=torch.float64)
    operator = HessianOperator(loss, theta, [batch()], "linearized", retain)
    before = operator.matvec(v)
    factor.mul_(2)
    with pytest.raises(RuntimeError, match="a tensor that the loss takes from elsewhere"):
        operator.matvec(v)
    operator.update([batch()])
    torch.testing.assert_close(operator.matvec(v), 16 * before)


def test_masks_of_values_are_refused_and_constant_ones_are_not() -> None:
    constant = torch.tensor([True, False, True])

    def by_constant(module: nn.Module, data: Batch) -> torch.Tensor:
        return module(data[0])[:, constant].pow(4).mean()

    def by_values(module: nn.Module, data: Batch) -> torch.Tensor:
        return module(data[0])[data[1] > 0].square().mean()

    expected = products(by_constant, mlp(), batch(), "reverse")
    torch.testing.assert_close(products(by_constant, mlp(), batch(), "linearized"), expected)
    with pytest.raises(ValueError, match="shape of a result depends on values"):
        products(by_values, mlp(), batch(), "linearized")


@pytest.mark.parametrize("mode", ["linearized", "reverse", "finite_difference"])
def test_what_the_loss_itself_raises_is_not_laid_to_tracing(mode: Any) -> None:
    def loss(module: nn.Module, data: Batch) -> torch.Tensor:
        if data[0].shape[1] != 7:
            raise KeyError("seven features are wanted")
        return squares(module, data)

    with pytest.raises(KeyError, match="seven features are wanted"):
        products(loss, mlp(), batch(), mode)


def test_a_loss_that_writes_into_its_batch_is_refused_in_every_mode() -> None:
    def loss(module: nn.Module, data: Batch) -> torch.Tensor:
        data[0].mul_(1.1)
        return squares(module, data)

    for mode in ("linearized", "reverse"):
        with pytest.raises(
            (ValueError, RuntimeError), match=r"cannot be traced|writes into a parameter or into its batch"
        ):
            products(loss, mlp(), batch(), mode)


def test_batches_that_a_trace_cannot_look_into_are_refused() -> None:
    x, y = batch()
    for data in (SimpleNamespace(x=x, y=y), np.ones(3)):
        loss = (lambda m, b: squares(m, (b.x, b.y))) if isinstance(data, SimpleNamespace) else (lambda m, b: m(x).sum())
        with pytest.raises(ValueError, match=f"tuples, lists and dicts, found {type(data).__name__}"):
            products(loss, mlp(), data, "linearized")


def test_gauss_newton_takes_the_labels_of_each_batch_through_the_outputs() -> None:
    module = mlp()
    theta = ParameterVector(module)
    stored = [(batch(s)[0], torch.tensor([0, 1, 2, 2, 1, 0]).roll(s)) for s in (1, 2)]
    loss = CompositeLoss(lambda m, b: {"input": m(b[0]), "target": b[1]}, lambda o: nn.functional.cross_entropy(**o))
    found = HessianOperator(loss, theta, stored, "gauss_newton")
    total = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    for x, labels in stored:

        def flat_logits(flat: torch.Tensor, x: torch.Tensor = x) -> torch.Tensor:
            state = dict(zip(theta.names, theta.unflatten(flat), strict=True))
            return torch.func.functional_call(module, state, (x,)).flatten()

        def criterion(z: torch.Tensor, labels: torch.Tensor = labels) -> torch.Tensor:
            return nn.functional.cross_entropy(z.view(6, 3), labels)

        jacobian = torch.autograd.functional.jacobian(flat_logits, theta.values())
        curvature = torch.autograd.functional.hessian(criterion, flat_logits(theta.values()).detach())
        total += jacobian.T @ curvature @ jacobian / 2
    products = torch.stack([found.matvec(unit) for unit in torch.eye(len(theta), dtype=torch.float64)])
    torch.testing.assert_close(products, total, rtol=1e-9, atol=1e-10)


def with_covariance(module: nn.Module, data: Batch) -> torch.Tensor:
    return torch.cov(module(data[0]).T).square().sum()


def with_one_hot(module: nn.Module, data: Batch) -> torch.Tensor:
    labels = nn.functional.one_hot(data[0][:, 0].long().abs() % 3)
    return (module(data[0]).sum() * labels).square().sum()


def with_branch(module: nn.Module, data: Batch) -> torch.Tensor:
    value: torch.Tensor = module(data[0]).square().sum()
    return value if value > 1 else 2 * value


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (with_covariance, r"`return torch\.cov\(.*in place of cov, write centred\.T @ centred"),
        (with_one_hot, r"one_hot\(data.*in place of one_hot, write \(labels\[:, None\] == torch\.arange"),
        (with_branch, r"`return value if value > 1 else 2 \* value`\)"),
    ],
)
def test_a_loss_that_looks_at_values_is_refused_by_its_line_and_told_what_to_write(loss: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        HessianOperator(loss, ParameterVector(mlp()), [batch()], "linearized")
