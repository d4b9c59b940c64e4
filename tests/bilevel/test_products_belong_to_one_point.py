"""Between two products nothing may change that they depend on: it is refused, held still, or put back."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.bilevel.checks import unseen
from bissl_fast.bilevel.checks.unseen import sample
from tests.bilevel.test_traces_hold_whatever_a_loss_does import batch, mlp, network, squares

MODES = ("reverse", "linearized", "finite_difference")
each_mode = pytest.mark.parametrize("mode", MODES)


def with_norm() -> nn.Module:
    module = network(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    module(batch()[0])
    return module


def ones(theta: ParameterVector) -> torch.Tensor:
    return torch.ones(len(theta), dtype=torch.float64)


CHANGES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "data of a parameter": lambda m, b: setattr(m[0].weight, "data", 3 * m[0].weight.data),
    "a frozen parameter": lambda m, b: m[3].bias.detach().mul_(2),
    "data in place": lambda m, b: m[0].weight.data.mul_(3),
    "data of a transposed frozen parameter": lambda m, b: m[3].weight.data.mul_(3),
    "NumPy": lambda m, b: np.multiply(m[0].bias.detach().numpy(), 2, out=m[0].bias.detach().numpy()),
    "NumPy in a batch": lambda m, b: np.multiply(b[0].numpy(), 2, out=b[0].numpy()),
    "a batch": lambda m, b: b[0].mul_(2),
    "a mode": lambda m, b: m.eval(),
}


@each_mode
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_products_is_refused_until_an_update(mode: Any, change: str) -> None:
    module, data = with_norm(), batch()
    module[3].bias.requires_grad_(False)
    module[3].weight = nn.Parameter(module[3].weight.detach().T.clone().T, requires_grad=False)
    theta = ParameterVector(module)
    operator = HessianOperator(squares, theta, [data, batch(4)], mode, retain=1)
    operator.matvec(ones(theta))
    CHANGES[change](module, data)
    with pytest.raises(RuntimeError, match=r"parameters have changed since .* or a batch, a train or eval mode"):
        operator.matvec(ones(theta))
    operator.update([data, batch(4)])
    expected = HessianOperator(squares, theta, [data, batch(4)]).matvec(ones(theta))
    torch.testing.assert_close(operator.matvec(ones(theta)), expected, rtol=1e-5, atol=1e-6)


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]
UNSEEN: dict[str, Callable[[nn.Module, Any], Any]] = {
    "a parameter": lambda m, b: m[0].weight.data.mul_(3),
    "a batch": lambda m, b: b[0].data.mul_(3),
}


def watched_by_its_device(device: str, monkeypatch: pytest.MonkeyPatch) -> tuple[HessianOperator, nn.Module, Any]:
    """An operator whose tensors the host does not look at, on the CPU neither."""
    monkeypatch.setattr(unseen, "AT_ONCE", ())
    module = mlp().to(device)
    data = tuple(part.to(device) for part in batch())
    return HessianOperator(squares, ParameterVector(module), [data]), module, data


def product(operator: HessianOperator, device: str) -> torch.Tensor:
    found = operator.matvec(torch.ones(sum(operator.segments), dtype=torch.float64, device=device))
    if device == "cuda":
        torch.cuda.synchronize()
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("change", UNSEEN)
def test_a_write_that_only_the_device_sees_is_told_by_the_product_after(
    change: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, module, data = watched_by_its_device(device, monkeypatch)
    for _ in range(3):
        product(operator, device)
    UNSEEN[change](module, data)
    product(operator, device)  # compares
    with pytest.raises(RuntimeError, match="written to behind PyTorch's back"):
        product(operator, device)
    operator.update([data])
    product(operator, device)
    product(operator, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("end", ["update", "release"])
def test_the_last_product_before_an_end_tells_of_such_a_write_too(
    end: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, module, data = watched_by_its_device(device, monkeypatch)
    module[0].weight.data.mul_(3)
    product(operator, device)
    with pytest.raises(RuntimeError, match="written to behind PyTorch's back"):
        operator.update([data]) if end == "update" else operator.release()
    module[0].weight.data.mul_(3)
    operator.update([data])  # after a write, before a product: nothing is wrong
    product(operator, device)
    operator.release()


ODD: dict[str, torch.Tensor] = {
    "conjugate": torch.randn(3, 5, dtype=torch.complex128).conj(),
    "negative": torch.randn(3, 5, dtype=torch.complex128).conj().imag,
    "sparse": torch.eye(5, dtype=torch.float64).to_sparse(),
    "empty": torch.ones(0, 5, dtype=torch.float64),
}


@pytest.mark.parametrize("tensor", ODD.values(), ids=ODD)
def test_tensors_of_any_kind_can_be_in_a_batch(tensor: torch.Tensor) -> None:
    def loss(module: nn.Module, data: torch.Tensor) -> torch.Tensor:
        dense = data.to_dense() if data.layout != torch.strided else data
        return module(dense.real).square().sum()  # type: ignore[no-any-return]

    theta = ParameterVector(nn.Linear(5, 2).double())
    plain = (tensor.to_dense() if tensor.layout != torch.strided else tensor.resolve_conj().resolve_neg()).real.clone()
    expected = HessianOperator(loss, theta, [plain]).matvec(ones(theta))
    assert torch.equal(HessianOperator(loss, theta, [tensor]).matvec(ones(theta)), expected)


@each_mode
def test_buffers_are_those_of_the_last_update(mode: Any) -> None:
    module = with_norm().eval()
    theta = ParameterVector(module)
    operator = HessianOperator(squares, theta, [batch(), batch(4)], mode, retain=1)
    before = operator.matvec(ones(theta))
    module[1].running_var.mul_(3)
    assert torch.equal(operator.matvec(ones(theta)), before)
    operator.update([batch(), batch(4)])
    assert not torch.allclose(operator.matvec(ones(theta)), before)


@each_mode
def test_parameters_that_are_no_longer_in_the_module_are_refused(mode: Any) -> None:
    module = mlp()
    theta = ParameterVector(module)
    operator = HessianOperator(squares, theta, [batch()], mode)
    module.load_state_dict({name: 2 * value for name, value in module.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match=r"have changed|other parameters"):
        operator.matvec(ones(theta))
    for act in (lambda: operator.update([batch()]), lambda: HessianOperator(squares, theta, [batch()], mode)):
        with pytest.raises(RuntimeError, match="other parameters than when its ParameterVector was made"):
            act()


class Shared(nn.Module):
    """A layer under two names, the second of which has the prefix, and a parameter in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 5)
        self.other = nn.Linear(5, 5)
        self.other.bias = self.stem.bias
        self.backbone = nn.Sequential(self.stem, nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.backbone(self.other(torch.tanh(self.stem(x))).tanh())
        return out


@each_mode
def test_shared_layers_and_parameters_count_once_and_are_put_back(mode: Any) -> None:
    torch.manual_seed(0)
    module = Shared().double()
    before = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    theta = ParameterVector(module, "backbone.")
    assert theta.names == ["backbone.0.weight", "backbone.0.bias", "backbone.2.weight", "backbone.2.bias"]
    found = HessianOperator(squares, theta, [batch()], mode).matvec(ones(theta))
    assert {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)} == before

    def gradient(step: float) -> torch.Tensor:
        theta.assign(values + step * ones(theta))
        return theta.flatten(torch.autograd.grad(squares(module, batch()), theta.tensors))

    values = theta.values()
    expected = (gradient(1e-6) - gradient(-1e-6)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_trace_that_fails_leaves_the_module_as_it_was() -> None:
    module = Shared().double()
    before = list(map(id, module.parameters()))

    def branching(module: nn.Module, data: Any) -> torch.Tensor:
        value = squares(module, data)
        return value if value > 0 else -value

    with pytest.raises(ValueError, match="cannot be traced"):
        HessianOperator(branching, ParameterVector(module), [batch()], "linearized")
    assert list(map(id, module.parameters())) == before


@each_mode
def test_threads_with_one_module_take_turns(mode: Any) -> None:
    module = with_norm()
    theta, buffers = ParameterVector(module), list(map(id, module.buffers()))
    operators = [HessianOperator(squares, theta, [batch(seed)], mode, retain=0) for seed in (3, 4)]
    expected = [operator.matvec(ones(theta)) for operator in operators]
    found: list[list[torch.Tensor]] = [[], []]

    def work(k: int) -> None:
        found[k] += [operators[k].matvec(ones(theta)) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(products) for products in found] == [20, 20]
    assert all(torch.equal(p, e) for products, e in zip(found, expected, strict=True) for p in products)
    assert list(map(id, module.buffers())) == buffers


def test_an_update_that_fails_leaves_no_half_of_an_operator() -> None:
    theta = ParameterVector(mlp())
    operator = HessianOperator(squares, theta, [batch()])
    with pytest.raises(RuntimeError):
        operator.update([batch(), (batch()[0][:, :2], batch()[1])])
    with pytest.raises(RuntimeError, match="released"):
        operator.matvec(ones(theta))


@pytest.mark.parametrize("write", [lambda y: y.mul_(2), lambda y: nn.functional.relu(y, inplace=True)])
def test_a_loss_that_overwrites_what_its_gradient_needs_is_refused(write: Callable[[torch.Tensor], Any]) -> None:
    def loss(module: nn.Module, data: Any) -> torch.Tensor:
        y = module(data[0]).exp()
        value = y.square().mean()
        write(y)
        return value

    module = mlp()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss(module, batch()), list(module.parameters()))
    with pytest.raises(RuntimeError, match=r"torch\.float64 \(6, 3\), was written in place after it had been read"):
        HessianOperator(loss, ParameterVector(module), [batch()])


def test_a_tensor_from_elsewhere_that_a_kept_graph_has_read_must_not_change() -> None:
    factor, theta = torch.ones(3, dtype=torch.float64), ParameterVector(mlp())

    def loss(module: nn.Module, data: Any) -> torch.Tensor:
        return (factor * module(data[0])).pow(4).mean()

    operator = HessianOperator(loss, theta, [batch()])
    before = operator.matvec(ones(theta))
    factor.mul_(2)
    with pytest.raises(RuntimeError, match=r"\(3,\), was written in place .* call update\(\)"):
        operator.matvec(ones(theta))
    operator.update([batch()])
    torch.testing.assert_close(operator.matvec(ones(theta)), 16 * before)


def test_any_change_of_a_small_tensor_past_pytorchs_count_is_seen_and_a_large_one_is_sampled() -> None:
    large, square = torch.zeros(100, 1000), (16, 16)
    strided = torch.zeros(square).T, torch.zeros(square)[1:, ::3], torch.zeros(3, 1).expand(3, 5)
    for tensor in (*strided, torch.zeros(()), *(torch.zeros(square, dtype=t) for t in (torch.bfloat16, torch.bool))):
        before = sample(tensor)
        tensor.data[(-1,) * tensor.dim()] = 1
        assert sample(tensor) != before
        assert sample(tensor) == sample(tensor)
    before = sample(large)
    large.data.add_(1)
    assert sample(large) != before
    assert sample(torch.zeros(0, 3)) == sample(torch.zeros(3).to("meta")) == sample(torch.eye(3).to_sparse()) == 0
