"""Linearized products against reverse ones on whole networks, and the modes that are other matrices against theirs."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector, implicit_gradient
from bissl_fast.ops.nt_xent import nt_xent_loss
from tests.bilevel.networks import batches, contrastive, project, resnet18, tiny_network


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_on_resnet18_with_nt_xent(dtype: torch.dtype, bound: float) -> None:
    network = resnet18(dtype)
    with torch.no_grad():  # timm starts every block's last weight at 0, which hides what is behind it
        for parameter in network.backbone.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    stored, theta = batches(1, (16, 3, 32, 32), dtype), ParameterVector(network, "backbone.")
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = HessianOperator(contrastive, theta, stored, "reverse").matvec(v)
    assert relative(HessianOperator(contrastive, theta, stored, "linearized").matvec(v), expected) < bound


@pytest.mark.parametrize(
    "criterion",
    [nn.MSELoss(), nn.SmoothL1Loss(), nn.KLDivLoss(reduction="batchmean"), nn.BCEWithLogitsLoss()],
    ids=lambda criterion: type(criterion).__name__,
)
def test_with_other_losses(criterion: nn.Module) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    theta = ParameterVector(network)
    batch = torch.randn(10, 4, dtype=torch.float64), torch.rand(10, 2, dtype=torch.float64)
    v = torch.randn(len(theta), dtype=torch.float64)

    def loss(module: nn.Module, batch: Any) -> torch.Tensor:
        return criterion(module(batch[0]), batch[1])

    expected = HessianOperator(loss, theta, [batch]).matvec(v)
    torch.testing.assert_close(HessianOperator(loss, theta, [batch], "linearized").matvec(v), expected)


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten()),
        (nn.Conv2d(3, 4, 3, groups=1, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        (nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False), nn.GELU(), nn.Flatten()),
        (nn.Flatten(), nn.Linear(192, 8), nn.LayerNorm(8), nn.Softmax(dim=1)),
        (nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.LeakyReLU(), nn.Linear(8, 3)),
        (nn.ConvTranspose2d(3, 2, 3), nn.Hardtanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
    ],
    ids=lambda layers: "-".join(type(layer).__name__ for layer in layers),
)
def test_on_every_kind_of_layer(layers: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*layers).double()
    theta, stored = ParameterVector(network), batches(1, (6, 3, 8, 8))
    v = torch.randn(len(theta), dtype=torch.float64)
    expected = HessianOperator(contrastive, theta, stored).matvec(v)
    assert float(expected.norm()) > 0
    found = HessianOperator(contrastive, theta, stored, "linearized").matvec(v)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_without_recomputation_the_same_bits() -> None:
    from bissl_fast.bilevel.products.traced import TracedProducts

    network = tiny_network()
    theta = ParameterVector(network, "backbone.")
    v = theta.unflatten(torch.linspace(-1, 1, len(theta), dtype=torch.float64))
    found = []
    for recompute in (True, False):
        products = TracedProducts(contrastive, theta, recompute=recompute)
        found.append(theta.flatten(products.product(products.linearise(batches(1)[0]), v)))
    assert torch.equal(*found)


def test_a_trace_serves_other_parameters_and_other_batches_of_the_same_shape() -> None:
    network = tiny_network()
    theta = ParameterVector(network, "backbone.")
    operator = HessianOperator(contrastive, theta, batches(1), "linearized")
    theta.assign(1.5 * theta.values())
    with torch.no_grad():
        network.head[0].weight.mul_(2)
    stored = batches(3)[1:]
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    operator.update(stored)
    torch.testing.assert_close(operator.matvec(v), HessianOperator(contrastive, theta, stored).matvec(v))
    operator.update(batches(2, (4, 1, 6, 6)))
    expected = HessianOperator(contrastive, theta, batches(2, (4, 1, 6, 6))).matvec(v)
    torch.testing.assert_close(operator.matvec(v), expected)


def test_several_right_hand_sides_at_once_are_the_products_one_by_one() -> None:
    network = tiny_network()
    theta = ParameterVector(network, "backbone.")
    vectors = torch.randn(3, len(theta), dtype=torch.float64)
    for mode in ("reverse", "linearized"):
        operator = HessianOperator(contrastive, theta, batches(2), mode, retain=1)  # type: ignore[arg-type]
        expected = torch.stack([operator.matvec(v) for v in vectors])
        assert torch.equal(operator.matmat(vectors), expected)


def test_train_and_eval_are_traced_apart() -> None:
    network = tiny_network()
    network(batches(1)[0][0])
    theta = ParameterVector(network, "backbone.")
    v = torch.ones(len(theta), dtype=torch.float64)
    operator = HessianOperator(contrastive, theta, batches(1), "linearized")
    train = operator.matvec(v)
    network.eval()
    operator.update(batches(1))
    torch.testing.assert_close(operator.matvec(v), HessianOperator(contrastive, theta, batches(1)).matvec(v))
    assert not torch.allclose(operator.matvec(v), train)


@pytest.mark.filterwarnings("error")
def test_dynamo_takes_both_halves_whole_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands around a product, as hooks on all modules, is none of the compiler's business."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    network = tiny_network()
    theta = ParameterVector(network, "backbone.")
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    expected = HessianOperator(contrastive, theta, batches(2)).matvec(v)
    operator = HessianOperator(contrastive, theta, batches(2), "linearized", compiled=True)
    counted = torch._dynamo.utils.counters["stats"]
    first = operator.matvec(v)
    made = counted["unique_graphs"]
    operator.update(batches(2))
    assert relative(first, expected) < 1e-10
    assert torch.equal(operator.matvec(v), first)
    assert counted["unique_graphs"] == made


@pytest.mark.slow
def test_compiled_halves_give_the_same_product() -> None:
    network = tiny_network()
    theta = ParameterVector(network, "backbone.")
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    operator = HessianOperator(contrastive, theta, batches(2), "linearized", compiled=True)
    assert relative(operator.matvec(v), HessianOperator(contrastive, theta, batches(2)).matvec(v)) < 1e-10


def test_implicit_gradient_is_the_same_by_either_mode() -> None:
    network = tiny_network()
    theta = ParameterVector(network, "backbone.")
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    found = [
        implicit_gradient(HessianOperator(contrastive, theta, batches(3), mode), v, 1.0, 9.0, layerwise=True).x  # type: ignore[arg-type]
        for mode in ("reverse", "linearized")
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


def test_gauss_newton_equals_the_jacobians_written_out_and_is_positive_for_a_convex_criterion() -> None:
    network = tiny_network()
    theta = ParameterVector(network, "backbone.")
    target = torch.tensor([0, 1, 2, 3, 0, 1])

    def outputs(module: nn.Module, views: Any) -> torch.Tensor:
        return module(views[0])

    def criterion(logits: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, target)

    operator = HessianOperator(CompositeLoss(outputs, criterion), theta, batches(1), "gauss_newton")
    twin = copy.deepcopy(network)

    def flat_outputs(flat: torch.Tensor) -> torch.Tensor:
        state = dict(zip(theta.names, theta.unflatten(flat), strict=True))
        state |= {name: buffer.clone() for name, buffer in twin.named_buffers()}
        return torch.func.functional_call(twin, state, (batches(1)[0][0],)).flatten()

    jacobian = torch.autograd.functional.jacobian(flat_outputs, theta.values())
    logits = flat_outputs(theta.values()).detach()
    curvature = torch.autograd.functional.hessian(lambda y: criterion(y.view(6, 4)), logits)
    dense = jacobian.T @ curvature @ jacobian
    found = torch.stack([operator.matvec(unit) for unit in torch.eye(len(theta), dtype=torch.float64)])
    torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-10)
    assert torch.linalg.eigvalsh(found).min() > -1e-10 * found.abs().max()
    with pytest.raises(ValueError, match="CompositeLoss"):
        HessianOperator(lambda m, b: criterion(outputs(m, b)), theta, batches(1), "gauss_newton")


def test_gauss_newton_refuses_complex_outputs_and_takes_them_as_real_ones() -> None:
    def spectrum(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        return [module(x), torch.fft.rfft(module(x))]

    def criterion(outputs: list[torch.Tensor]) -> torch.Tensor:
        return outputs[0].exp().sum() + outputs[1].abs().square().sum()

    def as_real(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        return [module(x), torch.view_as_real(torch.fft.rfft(module(x)))]

    layer, x = nn.Linear(2, 2, bias=False).double(), torch.eye(2, dtype=torch.float64)
    theta = ParameterVector(layer)
    with pytest.raises(ValueError, match=r"takes real outputs, found complex ones.*view_as_real"):
        HessianOperator(CompositeLoss(spectrum, criterion), theta, [x], "gauss_newton")
    composite = CompositeLoss(as_real, lambda out: criterion([out[0], torch.view_as_complex(out[1])]))
    v = torch.ones(len(theta), dtype=torch.float64)
    expected = HessianOperator(composite, theta, [x]).matvec(v)  # the layer is linear: both matrices are one
    torch.testing.assert_close(HessianOperator(composite, theta, [x], "gauss_newton").matvec(v), expected)


def test_finite_differences_agree_on_a_smooth_loss_and_along_zero() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    theta, x = ParameterVector(network), torch.randn(8, 5, dtype=torch.float64)

    def loss(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return module(batch).square().mean()

    v = torch.randn(len(theta), dtype=torch.float64)
    estimate = HessianOperator(loss, theta, [x], "finite_difference")
    assert relative(estimate.matvec(v), HessianOperator(loss, theta, [x]).matvec(v)) < 1e-6
    assert torch.equal(estimate.matvec(0 * v), 0 * v)


def test_bfloat16_products_that_pytorch_cannot_take_end_in_a_sentence() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    theta = ParameterVector(network)
    views = [batches(1, dtype=torch.float32)[0][0]]
    operator = HessianOperator(lambda m, x: m(x).exp().mean(), theta, views, "linearized", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"no forward derivative in torch.bfloat16 of a layer .* use dtype='float32'"):
        operator.matvec(theta.values())


def test_a_loss_that_cannot_be_traced_or_draws_random_numbers_is_refused_with_a_sentence() -> None:
    theta = ParameterVector(tiny_network(), "backbone.")

    def branching(module: nn.Module, views: Any) -> torch.Tensor:
        value = contrastive(module, views)
        return value if value > 0 else -value

    def dropping(module: nn.Module, views: Any) -> torch.Tensor:
        first, second = project(module, views)
        return nt_xent_loss(nn.functional.dropout(first), second)

    with pytest.raises(ValueError, match="branches on values; mode='reverse'"):
        HessianOperator(branching, theta, batches(1), "linearized")
    with pytest.raises(ValueError, match="draws random numbers"):
        HessianOperator(dropping, theta, batches(1), "linearized")


def test_what_does_not_exist_is_refused() -> None:
    theta = ParameterVector(tiny_network(), "backbone.")
    with pytest.raises(ValueError, match="dtype 'int8' does not exist"):
        HessianOperator(contrastive, theta, batches(1), dtype="int8")  # type: ignore[arg-type]
    operator = HessianOperator(contrastive, theta, batches(1))
    operator.release()
    with pytest.raises(RuntimeError, match="call update"):
        operator.matvec(theta.values())
