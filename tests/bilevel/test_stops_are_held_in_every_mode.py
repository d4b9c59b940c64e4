"""Whatever stops a derivative stops it in traced products as in reverse ones, at other points too, or is refused."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector
from tests.bilevel.test_products_belong_to_one_point import ones, with_norm
from tests.bilevel.test_traces_hold_whatever_a_loss_does import batch, mlp

Made = Callable[[nn.Module, torch.Tensor], Any]


def under(context: Callable[[], Any], then: Callable[[torch.Tensor], torch.Tensor] = lambda y: y) -> Made:
    def made(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with context():
            y = module(x)
        return then(y)

    return made


def written_without_gradients(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = module(x)
    out, row = torch.zeros_like(y), torch.zeros(3, dtype=y.dtype)
    with torch.no_grad():
        out.copy_(y)
        row[1] = y[0, 1]
    return out + row


def by_constant_lists(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    pieces = module(x).detach().split(torch.tensor([2, 1]).tolist(), dim=1)
    return torch.cat([*pieces][::-1], dim=1) * torch.tensor([1.0, 2.0, 3.0])


HELD: dict[str, Made] = {
    "detach": lambda m, x: m(x).detach(),
    ".data": lambda m, x: m(x).data,
    ".data of a parameter": lambda m, x: (x @ m[0].weight.data.T)[:, :3],
    "no_grad": under(torch.no_grad),
    "set_grad_enabled": under(lambda: torch.set_grad_enabled(False)),
    "no_grad, then detach": under(torch.no_grad, torch.Tensor.detach),
    "copy_ and assignment under no_grad": written_without_gradients,
    "as_tensor of a tensor": lambda m, x: torch.as_tensor(m(x).detach()),
    "lists of constants": by_constant_lists,
}


def times(made: Made) -> CompositeLoss:
    """A loss with a factor that ``made`` is to stop."""
    return CompositeLoss(lambda m, b: m(b[0]) * made(m, b[0]), lambda out: out.sum().sin())


@pytest.mark.parametrize("made", HELD.values(), ids=HELD)
def test_what_is_made_without_gradients_is_a_constant_of_its_point(made: Made) -> None:
    theta = ParameterVector(mlp())
    operator = HessianOperator(times(made), theta, [batch()], "linearized")
    estimate = HessianOperator(times(made), theta, [batch()], "gauss_newton")
    moving = HessianOperator(times(lambda m, x: m(x)), theta, [batch()]).matvec(ones(theta))
    for point in range(2):
        theta.assign(theta.values() * (1 + point))
        expected = HessianOperator(times(made), theta, [batch(3 + point)]).matvec(ones(theta))
        for traced in (operator, estimate):
            traced.update([batch(3 + point)])
        torch.testing.assert_close(operator.matvec(ones(theta)), expected, rtol=1e-9, atol=1e-10)
        fresh = HessianOperator(times(made), theta, [batch(3 + point)], "gauss_newton").matvec(ones(theta))
        torch.testing.assert_close(estimate.matvec(ones(theta)), fresh, rtol=1e-9, atol=1e-10)
        assert not torch.allclose(expected, moving)


def test_a_gradient_inside_the_loss_moves_where_it_has_a_graph_and_is_held_where_it_has_none() -> None:
    def scaled(create_graph: bool) -> Any:
        def loss(module: nn.Module, data: Any) -> torch.Tensor:
            value = module(data[0]).sin().sum()
            slopes = torch.autograd.grad(value, [*module.parameters()], retain_graph=True, create_graph=create_graph)
            return value * torch.stack([slope.square().sum() for slope in slopes]).sum()

        return loss

    theta = ParameterVector(mlp())
    products = {
        (mode, graph): HessianOperator(scaled(graph), theta, [batch()], mode).matvec(ones(theta))
        for mode in ("reverse", "linearized")
        for graph in (True, False)
    }
    for graph in (True, False):
        torch.testing.assert_close(products["linearized", graph], products["reverse", graph], rtol=1e-9, atol=1e-10)
    assert not torch.allclose(products["reverse", True], products["reverse", False])


def test_a_tensor_computed_from_the_parameters_before_is_refused_in_a_trace_unless_it_is_detached() -> None:
    theta, (x, _) = ParameterVector(mlp()), batch()
    key = theta.module(x)

    def loss(key: torch.Tensor) -> Any:
        return lambda module, data: (module(data[0]) * key).sum().sin()

    HessianOperator(loss(key.detach()), theta, [batch()], "linearized")
    with pytest.raises(ValueError, match=r"computed from the parameters before.*detach\(\) it"):
        HessianOperator(loss(key), theta, [batch()], "linearized")


def test_a_siamese_loss_that_stops_by_data_has_the_product_of_one_that_detaches() -> None:
    def siamese(stop: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        def loss(module: nn.Module, data: Any) -> torch.Tensor:
            first, second = module(data[0]), module(data[0].flip(0))
            return -nn.functional.cosine_similarity(first.sin(), stop(second)).mean()

        return loss

    theta = ParameterVector(mlp())
    expected = HessianOperator(siamese(torch.Tensor.detach), theta, [batch()]).matvec(ones(theta))
    found = HessianOperator(siamese(lambda y: y.data), theta, [batch()], "linearized").matvec(ones(theta))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


LEAVING: dict[str, tuple[Made, str]] = {
    "item": (lambda m, x: m(x)[0, 0].item(), "takes values out of a tensor"),
    "item of the batch": (lambda m, x: x[0, 0].item(), "takes values out of a tensor"),
    "float": (lambda m, x: float(m(x).detach().sum()), "takes a value out of a tensor"),
    "tolist": (lambda m, x: torch.tensor(m(x).tolist()), r"takes values out of a tensor \(tolist\)"),
    "tolist of the batch": (lambda m, x: torch.tensor(x[:, :3].tolist()), r"\(tolist\)"),
    "torch.tensor of a list": (lambda m, x: torch.tensor([*m(x)[0]]), r"\(tensor\).*torch\.stack"),
    "numpy": (lambda m, x: torch.from_numpy(x.numpy())[:, :3], r"\(numpy\)"),
    "asarray": (lambda m, x: torch.from_numpy(np.asarray(x))[:, :3], r"\(__array__\)"),
    "dlpack": (lambda m, x: torch.from_dlpack(x)[:, :3], r"\(__dlpack__\)"),
    "deepcopy": (lambda m, x: copy.deepcopy(x)[:, :3], r"\(__deepcopy__\)"),
    "a parameter": (lambda m, x: nn.Parameter(m(x)), "makes a parameter"),
    "detach_": (lambda m, x: m(x).mul(1).detach_(), r"detach_\(\): write y = y\.detach\(\)"),
    "inference mode": (under(torch.inference_mode, torch.clone), r"use torch\.no_grad instead"),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")  # PyTorch's, rightly
@pytest.mark.parametrize(("made", "sentence"), LEAVING.values(), ids=LEAVING)
def test_what_a_trace_would_hold_for_a_constant_is_refused(made: Made, sentence: str) -> None:
    theta = ParameterVector(mlp())
    HessianOperator(times(made), theta, [batch()])  # as a loss it is fine
    for mode in ("linearized", "gauss_newton"):
        with pytest.raises(ValueError, match=f"cannot be traced .*{sentence}.*mode='reverse' takes any other"):
            HessianOperator(times(made), theta, [batch()], mode)  # type: ignore[arg-type]


def test_values_may_leave_for_a_log() -> None:
    logged = []

    def logging(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        logged.append(module(x).detach().sum().item())
        return module(x).detach()

    theta = ParameterVector(mlp())
    found = HessianOperator(times(logging), theta, [batch()], "linearized").matvec(ones(theta))
    assert logged
    torch.testing.assert_close(found, HessianOperator(times(HELD["detach"]), theta, [batch()]).matvec(ones(theta)))


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process only."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def reduced(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = module(x).detach().clone()
    dist.all_reduce(y)
    return y


def gathered(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = [torch.zeros(6, 3, dtype=x.dtype)]
    dist.all_gather(out, module(x).detach())
    return out[0]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("made", [reduced, gathered])
def test_a_traced_loss_that_communicates_is_refused(made: Made) -> None:
    for mode in ("linearized", "gauss_newton"):
        with pytest.raises(
            ValueError, match=r"communicates by torch\.distributed .* average the products over the pro"
        ):
            HessianOperator(times(made), ParameterVector(mlp()), [batch()], mode)  # type: ignore[arg-type]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("mode", ["reverse", "linearized", "gauss_newton", "finite_difference"])
@pytest.mark.parametrize("place", ["outputs", "criterion"])
def test_a_spread_module_that_the_loss_alone_knows_is_refused_where_it_is_called(place: str, mode: Any) -> None:
    module = with_norm()
    parallel = nn.parallel.DistributedDataParallel(module)
    loss = CompositeLoss(lambda m, b: parallel(b[0]), lambda out: out.square().mean())
    if place == "criterion":
        loss = CompositeLoss(lambda m, b: (m(b[0]), b[0]), lambda out: (out[0] * parallel(out[1])).mean())
    with pytest.raises(ValueError, match=r"what the loss calls, is or holds a DistributedDataParallel.*plain module"):
        HessianOperator(loss, ParameterVector(module), [batch()], mode).matvec(torch.ones(47, dtype=torch.float64))


@pytest.mark.usefixtures("alone")
def test_a_spread_module_that_a_loss_holds_without_calling_it_is_no_obstacle() -> None:
    module = mlp()
    parallel = nn.parallel.DistributedDataParallel(module)
    loss = CompositeLoss(lambda m, b: parallel.module(b[0]), lambda out: out.square().mean())
    expected = HessianOperator(lambda m, b: m(b[0]).square().mean(), ParameterVector(module), [batch()])
    v = torch.ones(39, dtype=torch.float64)
    found = HessianOperator(loss, ParameterVector(module), [batch()], "linearized").matvec(v)
    torch.testing.assert_close(found, expected.matvec(v))
    parallel(batch()[0])  # training goes on


@pytest.mark.usefixtures("alone")
def test_a_module_that_is_spread_over_processes_is_refused() -> None:
    wrapped = nn.parallel.DistributedDataParallel(mlp())
    for module, kind in (
        (wrapped, "Distributed"),
        (nn.Sequential(wrapped), "Distributed"),
        (nn.DataParallel(mlp()), ""),
    ):
        with pytest.raises(ValueError, match=rf"holds a {kind}DataParallel.*Take the plain module \(network\.module"):
            ParameterVector(module)
    assert len(ParameterVector(wrapped.module)) == 39
