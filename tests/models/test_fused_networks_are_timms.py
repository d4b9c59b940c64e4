"""A fused network has its original's numbers, names and second derivatives."""

import copy
import io
import itertools
import pickle

import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bissl_fast.models import build_backbone, build_projector, fuse_batch_norm
from bissl_fast.ops import BatchNormAct, backend, statistics_groups
from bissl_fast.ops.batch_norm import module as layers_module

# Batch norms, and how many of them take their ReLU and shortcut along. Squeeze-and-excitation, anti-aliasing, drop
# path and blocks of other classes leave only the stem and plain sequences; timm's own norms have activations inside.
EXPECTED = {
    "resnet18": (20, 17),
    "resnet50": (53, 49),
    "resnet26t": (31, 27),
    "resnet50d": (55, 51),
    "seresnet18": (20, 1),
    "resnetblur18": (20, 11),
    "res2net50_14w_8s": (149, 1),
    "vgg11_bn": (8, 8),
    "regnetx_002": (44, 27),
    "test_efficientnet": (13, 0),
}


def pair(name: str, **options: float) -> tuple[nn.Module, nn.Module]:
    """A float64 network with random batch-norm weights, and its fused copy."""
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0, **options).double()
    for layer in plain.modules():
        if isinstance(layer, _BatchNorm):
            nn.init.normal_(layer.weight, 1.0, 0.2)
            nn.init.normal_(layer.bias, 0.0, 0.2)
            nn.init.normal_(layer.running_mean, 0.0, 0.2)
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


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each pass through a fused batch norm in train mode: whether a ReLU was part of it."""
    calls: list[bool] = []
    real = layers_module.normalised

    def counted(*tensors: Tensor, relu: bool, **settings: float) -> tuple[Tensor, ...]:
        calls.append(relu)
        return real(*tensors, relu=relu, **settings)

    monkeypatch.setattr(layers_module, "normalised", counted)
    return calls


@pytest.mark.parametrize("name", EXPECTED)
def test_numbers_and_names_are_those_of_timm(name: str, joined: list[bool]) -> None:
    plain, fused = pair(name)
    assert_same_numbers(plain, fused)
    assert (len(joined), sum(joined)) == EXPECTED[name]


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
        "a layer between that comes before, too": nn.Sequential(layer := nn.Linear(4, 4), norm, layer, relu),
        "another activation": nn.Sequential(nn.BatchNorm1d(4), nn.LeakyReLU()),
        "no weights": nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.ReLU()),
        "a subclass": nn.Sequential(Scaled(4), nn.ReLU()),
        "a hook": seen,
        "a synchronised batch norm": nn.Sequential(nn.SyncBatchNorm(4), nn.ReLU()).eval(),
        "nothing": nn.Sequential(),
    }


@pytest.mark.parametrize("name", sequences())
def test_what_is_not_understood_keeps_its_numbers_and_its_relu(name: str, joined: list[bool]) -> None:
    plain = sequences()[name].double()
    fused = fuse_batch_norm(copy.deepcopy(plain))
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)
    assert not any(joined)


def test_a_batch_norm_used_twice_takes_its_relu_along_where_one_follows(joined: list[bool]) -> None:
    norm = nn.BatchNorm1d(4)
    plain = nn.Sequential(norm, nn.ReLU(), nn.Linear(4, 4), norm).double()
    fused = fuse_batch_norm(copy.deepcopy(plain))
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)
    assert joined == [True, False]


def fold(network: nn.Module) -> None:
    """What deployment does: batch norms into the convolutions before them."""
    for owner in network.modules():
        names = list(owner._modules)
        for before, name in itertools.pairwise(names):
            conv, norm = getattr(owner, before), getattr(owner, name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm):
                setattr(owner, before, fuse_conv_bn_eval(conv, norm))
                setattr(owner, name, nn.Identity())


def observe(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda layer, inputs, output: output + 1)


def soften(network: nn.Module) -> None:
    for owner in network.modules():
        for name, layer in owner.named_children():
            if isinstance(layer, nn.ReLU):
                setattr(owner, name, nn.Softplus())


CHANGES = {
    "synchronised batch norms": nn.SyncBatchNorm.convert_sync_batchnorm,
    "folded batch norms": fold,
    "hooks on the ReLUs": observe,
    "another activation": soften,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("network", ["resnet18", "resnet26t"])
def test_what_is_changed_after_fusing_loses_no_relu(network: str, name: str) -> None:
    images = torch.randn(2, 3, 64, 64)
    networks = [half.float().eval() for half in pair(network)]
    before = networks[0](images)
    networks = [CHANGES[name](half) or half for half in networks]
    plain, fused = (half(images) for half in networks)
    assert relative_error(fused, plain) <= 1e-4
    if name in ("hooks on the ReLUs", "another activation"):
        assert relative_error(plain, before) > 0.01


def test_timms_own_norms_keep_their_activations_when_timm_synchronises_them() -> None:
    plain, fused = (convert_sync_batchnorm(half.float().eval()) for half in pair("test_efficientnet"))
    assert not any(isinstance(layer, BatchNormAct) for layer in fused.modules())
    images = torch.randn(2, 3, 64, 64)
    assert relative_error(fused(images), plain(images)) <= 1e-6


def test_a_part_of_a_fused_sequence_is_that_part() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    fused = fuse_batch_norm(copy.deepcopy(plain))
    x = torch.randn(5, 4, dtype=torch.float64)
    for part in (slice(0, 2), slice(0, 3), slice(1, 2)):
        torch.testing.assert_close(fused[part](x), plain[part](x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fused[2:](x), plain[2:](x), rtol=1e-12, atol=1e-12)


def test_a_block_that_gets_a_drop_path_after_fusing_uses_it() -> None:
    plain, fused = pair("test_resnet")
    for half in (plain, fused):
        for block in half.layer1:
            block.drop_path = nn.Dropout(0.5)
    assert_same_numbers(plain, fused)


def test_gradient_checkpointing_goes_timms_way() -> None:
    plain, fused = pair("test_resnet")
    for half in (plain, fused):
        half.set_grad_checkpointing()
    assert_same_numbers(plain, fused)


def test_a_fused_sequence_compiles_in_one_graph(joined: list[bool]) -> None:
    fused = fuse_batch_norm(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())).eval()
    x = torch.randn(5, 4)
    torch.testing.assert_close(torch.compile(fused, backend="eager", fullgraph=True)(x), fused(x))


def test_backbones_and_projectors_are_built_fused(joined: list[bool]) -> None:
    for network, x, count in (
        (build_backbone("resnet18", 0), torch.randn(2, 3, 32, 32), 17),
        (build_projector(8, (4, 4, 4), 0), torch.randn(3, 8), 2),
    ):
        joined.clear()
        network(x)
        assert sum(joined) == count
