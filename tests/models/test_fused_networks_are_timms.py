"""A fused network has its original's numbers, names and second derivatives."""

import copy
import io
import pickle

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bissl_fast.models import build_backbone, build_projector, fuse_batch_norm
from bissl_fast.ops import BatchNormAct, backend, statistics_groups

# Batch norms, and how many of them take their ReLU and shortcut along. Squeeze-and-excitation, anti-aliasing, drop
# path and blocks of other classes leave only the stem and plain sequences; other families have their own batch norms.
EXPECTED = {
    "resnet18": (20, 17),
    "resnet50": (53, 49),
    "resnet26t": (31, 27),
    "resnet50d": (55, 51),
    "seresnet18": (20, 1),
    "resnetblur18": (20, 11),
    "res2net50_14w_8s": (149, 1),
    "vgg11_bn": (8, 8),
    "regnetx_002": (0, 0),
}


def pair(name: str, **options: float) -> tuple[nn.Module, nn.Module]:
    """A float64 network with random batch-norm weights, and its fused copy."""
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0, **options).double()
    for layer in plain.modules():
        if isinstance(layer, _BatchNorm):
            nn.init.normal_(layer.weight, 1.0, 0.2)
            nn.init.normal_(layer.bias, 0.0, 0.2)
    return plain, fuse_batch_norm(copy.deepcopy(plain))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def assert_same_numbers(plain: nn.Module, fused: nn.Module, size: int = 64) -> None:
    images = torch.randn(2, 3, size, size, dtype=next(plain.parameters()).dtype)
    for mode in (True, False):
        outputs = []
        for network in (plain.train(mode), fused.train(mode)):
            torch.manual_seed(1)  # of drop path
            outputs.append(network(images))
        assert relative_error(outputs[1], outputs[0]) <= (1e-12 if images.dtype == torch.float64 else 1e-5)
    assert list(plain.state_dict()) == list(fused.state_dict())
    for found, expected in zip(fused.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", EXPECTED)
def test_numbers_and_names_are_those_of_timm(name: str) -> None:
    plain, fused = pair(name)
    assert_same_numbers(plain, fused)
    layers = [layer for layer in fused.modules() if isinstance(layer, BatchNormAct)]
    assert (len(layers), sum(layer.relu for layer in layers)) == EXPECTED[name]


def test_blocks_with_drop_path_keep_it() -> None:
    plain, fused = pair("resnet18", drop_path_rate=0.5)
    assert_same_numbers(plain, fused)


def test_float32_agrees_to_rounding() -> None:
    plain, fused = pair("resnet18")
    images = torch.randn(4, 3, 64, 64)
    assert relative_error(fused.float()(images), plain.float()(images)) <= 1e-5


def derivatives(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of a loss, and the Hessian times a fixed vector, as flat vectors."""
    parameters = list(network.parameters())
    generator = torch.Generator().manual_seed(2)
    vector = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]
    target = torch.randn(len(images), 512, dtype=images.dtype, generator=generator)
    first = torch.autograd.grad((network(images) * target).square().sum(), parameters, create_graph=True)
    second = torch.autograd.grad(first, parameters, vector)
    return torch.cat([g.flatten() for g in first]), torch.cat([p.flatten() for p in second])


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_gradient_and_hessian_product_of_a_resnet_18_equal_timms(name: str) -> None:
    plain, fused = pair("resnet18")
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    expected = derivatives(plain, images)
    with backend(name):
        found = derivatives(fused, images)
    assert relative_error(found[0], expected[0]) <= 1e-10
    assert relative_error(found[1], expected[1]) <= 1e-10


def test_groups_give_the_passes_of_the_views_one_by_one() -> None:
    plain, fused = pair("resnet18")
    views = torch.randn(2, 3, 3, 64, 64, dtype=torch.float64)
    with statistics_groups(fused, 2):
        found = fused(views.flatten(0, 1))
    assert relative_error(found, torch.cat([plain(view) for view in views])) <= 1e-12
    for name, value in plain.named_buffers():
        torch.testing.assert_close(fused.get_buffer(name), value, rtol=1e-10, atol=1e-10)


def test_weights_load_both_ways() -> None:
    plain, fused = pair("resnet18")
    stream = io.BytesIO()
    torch.save(fused.state_dict(), stream)
    stream.seek(0)
    fresh, _ = pair("resnet18")
    fresh.load_state_dict(torch.load(stream))
    fused.load_state_dict(plain.state_dict())
    assert_same_numbers(plain, fresh)


def test_it_can_be_copied_and_pickled_and_is_fused_once() -> None:
    _, fused = pair("test_resnet")
    fuse_batch_norm(fused)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_same_numbers(copy.deepcopy(fused), twin)


def test_parameters_stay_the_same_objects() -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    before = list(network.parameters())
    assert all(a is b for a, b in zip(before, fuse_batch_norm(network).parameters(), strict=True))


class Scaled(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def sequences() -> dict[str, nn.Sequential]:
    norm, relu = nn.BatchNorm1d(4), nn.ReLU()
    seen = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())
    seen[0].register_forward_hook(lambda layer, inputs, output: output + 1)
    return {
        "a batch norm used twice": nn.Sequential(norm, relu, nn.Linear(4, 4), norm),
        "a layer between that comes before, too": nn.Sequential(layer := nn.Linear(4, 4), norm, layer, nn.ReLU()),
        "another activation": nn.Sequential(nn.BatchNorm1d(4), nn.LeakyReLU()),
        "no weights": nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.ReLU()),
        "a subclass": nn.Sequential(Scaled(4), nn.ReLU()),
        "a hook": seen,
        "a synchronised batch norm": nn.Sequential(nn.SyncBatchNorm(4), nn.ReLU()).eval(),
    }


@pytest.mark.parametrize("name", sequences())
def test_what_is_not_understood_keeps_its_numbers_and_its_relu(name: str) -> None:
    plain = sequences()[name].double()
    fused = fuse_batch_norm(copy.deepcopy(plain))
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)
    assert not any(isinstance(layer, BatchNormAct) and layer.relu for layer in fused)


def test_backbones_and_projectors_are_built_fused() -> None:
    for network, fused in ((build_backbone("resnet18", 0), 17), (build_projector(8, (4, 4, 4), 0), 2)):
        assert sum(isinstance(layer, BatchNormAct) and layer.relu for layer in network.modules()) == fused
