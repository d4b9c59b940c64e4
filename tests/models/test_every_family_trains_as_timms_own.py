"""A backbone as it is built has the first step and the products of timm's own network."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.backbones import smallest_members
from bissl_fast.models import differentiable_twice, fuse_batch_norm
from bissl_fast.models.backbone import options_for

# With activations written in place behind a batch norm, in families of their own; and one of each other kind.
MEMBERS = ("resnetblur18", "dla46x_c", "efficientvit_b0", "lcnet_035", "test_efficientnet", "test_vit")
SIZE = 64
LARGEST = 30_000_000  # parameters


@pytest.fixture(autouse=True)
def exact_hard_sigmoids(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own takes 1/6 in float32 for the gradient, whatever its input is (seen in 2.14), and has no second."""
    monkeypatch.setattr(F, "hardsigmoid", lambda x, inplace=False: (x / 6 + 0.5).clamp(0, 1))


def derivatives(network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Features, gradient, and the Hessian times a fixed vector, of a loss of the features."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(1)  # of drop path
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that PyTorch differentiates twice
        features = network(images)
    target = torch.randn(features.shape, dtype=images.dtype, generator=generator)
    first = torch.autograd.grad(
        (features * target).square().mean(), parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    vector = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]
    moving = [(g, v) for g, v in zip(first, vector, strict=True) if g.requires_grad]
    along = torch.stack([(g * v).sum() for g, v in moving]).sum()
    second = torch.autograd.grad(along, parameters, allow_unused=True, materialize_grads=True)
    return features.detach(), flat(first), flat(second)


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def assert_trains_as_timms(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0, **options_for(name, SIZE)).double().train()
    built = fuse_batch_norm(differentiable_twice(copy.deepcopy(plain)))
    images = torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64)
    found, expected = derivatives(built, images), derivatives(plain, images)
    for what, ours, theirs in zip(("features", "gradient", "product"), found, expected, strict=True):
        difference = float((ours - theirs).norm() / theirs.norm())
        assert difference <= 1e-10, f"{name}: {what} {difference:.1e} off"
    for (key, ours), theirs in zip(built.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=lambda m, k=key: f"{name}, {k}: {m}")


@pytest.mark.parametrize("name", MEMBERS)
def test_first_step_and_product_are_timms(name: str) -> None:
    assert_trains_as_timms(name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_first_step_and_product_of_a_small_member_of_every_family_are_timms() -> None:
    tried = 0
    for _, name, parameters in smallest_members():
        if parameters <= LARGEST and takes(name):
            assert_trains_as_timms(name)
            tried += 1
    assert tried > 60


def takes(name: str) -> bool:
    """Whether the network takes images of SIZE at all."""
    try:
        timm.create_model(name, num_classes=0, **options_for(name, SIZE))(torch.zeros(2, 3, SIZE, SIZE))
    except Exception:  # what it raises is another test's
        return False
    return True


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_fused_networks_of_torchvision_are_differentiated_as_without(name: str) -> None:
    torch.manual_seed(0)
    plain = torchvision.models.get_model(name).double().train()
    images = torch.randn(4, 3, SIZE, SIZE, dtype=torch.float64)
    found, expected = derivatives(fuse_batch_norm(copy.deepcopy(plain)), images), derivatives(plain, images)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm()
