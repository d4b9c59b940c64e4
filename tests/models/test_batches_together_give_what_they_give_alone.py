"""`forward_each`: one pass for several batches, with the numbers of separate passes."""

import copy

import pytest
import torch
from timm.layers import EvoNorm2dB0
from torch import nn

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.measuring.products import loss_of_views, mean_loss_of_views
from bissl_fast.models import Network, build_backbone, build_projector, forward_each, fuse_batch_norm, probe_features
from bissl_fast.models.separate import ANSWERS, keeps_apart
from bissl_fast.pretext import SimCLR


def network(name: str = "test_resnet") -> Network:
    return Network(build_backbone(name, 0), build_projector(probe_features(name, 32), (16, 16), 0)).double().train()


def batches(count: int, images: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(images, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [batch.contiguous(memory_format=torch.channels_last) for batch in drawn]


def test_outputs_and_running_statistics_are_those_of_separate_passes() -> None:
    together, alone = network(), network()
    calls = []
    together.register_forward_hook(lambda *_: calls.append(1))
    found = forward_each(together, batches(4))
    expected = [alone(batch) for batch in batches(4)]
    assert len(calls) == 1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for (name, ours), theirs in zip(together.state_dict().items(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=name)


def test_layers_that_would_mix_the_batches_get_them_one_by_one() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    fused = fuse_batch_norm(copy.deepcopy(plain))
    for ours, theirs in zip(forward_each(plain, batches(3)), forward_each(fused, batches(3)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


class Centred(nn.Module):
    """A layer that nobody knows: it takes the mean over the whole batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


def evolved() -> nn.Module:
    """timm's EvoNorm2dB0 takes batch statistics and is no batch norm; fresh from timm its network hides it half."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), EvoNorm2dB0(4)).double()


def met_twice() -> nn.Module:
    """A batch norm whose running statistics move twice in a pass."""
    norm = nn.BatchNorm2d(3)
    return fuse_batch_norm(nn.Sequential(norm, nn.ReLU(), norm)).double()


MIXING = {
    "a batch norm that is met twice": met_twice,
    "EvoNorm2dB0": evolved,
    "an unknown layer": lambda: nn.Sequential(nn.Conv2d(3, 4, 3).double(), Centred()),
    "an unknown layer behind a weight of zero": lambda: nn.Sequential(Centred(), zeroed(nn.Conv2d(3, 4, 3).double())),
    "instance norm with running statistics": lambda: nn.InstanceNorm2d(3, track_running_stats=True).double(),
}


def zeroed(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@pytest.mark.parametrize("name", MIXING)
def test_a_network_of_unknown_layers_is_asked_whether_it_mixes(name: str) -> None:
    together, alone = MIXING[name](), MIXING[name]()
    alone.load_state_dict(together.state_dict())
    with torch.no_grad():
        found = forward_each(together, batches(3))
        for ours, batch in zip(found, batches(3), strict=True):
            torch.testing.assert_close(ours, alone(batch), rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(together.state_dict().values(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_network_with_dropout_draws_for_each_batch_as_alone() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    torch.manual_seed(0)
    found = forward_each(module, batches(2))
    torch.manual_seed(0)
    assert all(torch.equal(ours, module(batch)) for ours, batch in zip(found, batches(2), strict=True))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    forward_each(module.eval(), batches(2))  # asked, and left as it was
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_of_little_weight_is_noticed() -> None:
    class Slight(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1e-12 * nn.functional.dropout(x, 0.5)

    assert not keeps_apart(nn.Sequential(nn.Linear(3, 3), Slight()), torch.zeros(2, 3))


def test_asking_leaves_network_and_hooks_alone_and_happens_once() -> None:
    module, calls = network(), []
    module.backbone.register_forward_hook(lambda *_: calls.append(1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert keeps_apart(module, batches(1)[0])
    assert not calls
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    answers = ANSWERS[module]
    forward_each(module, batches(2))
    assert len(answers) == 1
    module.eval()
    forward_each(module, batches(2))
    assert len(answers) == 2


@pytest.mark.parametrize("mode", ["reverse", "linearized", "gauss_newton"])
def test_a_network_is_asked_inside_a_product_too(mode: str) -> None:
    module = network()
    HessianOperator(loss_of_views(SimCLR()), ParameterVector(module, "backbone."), [tuple(batches(2))], mode)  # type: ignore[arg-type]
    assert list(ANSWERS[module].values()) == [True]


@pytest.mark.parametrize("mode", ["reverse", "linearized"])
def test_products_of_a_network_that_mixes_are_those_of_separate_passes(mode: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), Centred(), nn.Flatten(), nn.Linear(16, 2)).double()
    theta, views = ParameterVector(module), [batch[..., :4, :4] for batch in batches(2)]
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def together(module: nn.Module, views: list[torch.Tensor]) -> torch.Tensor:
        return sum(out.square().square().mean() for out in forward_each(module, views))

    def alone(module: nn.Module, views: list[torch.Tensor]) -> torch.Tensor:
        return sum(module(view).square().square().mean() for view in views)

    found, expected = (
        HessianOperator(loss, theta, [views], mode).matvec(v)  # type: ignore[arg-type]
        for loss in (together, alone)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_runs_of_batches_of_one_size_pass_together() -> None:
    unequal = [*batches(2, 6), *batches(3, 4)]
    found = forward_each(network(), unequal)
    for ours, batch in zip(found, unequal, strict=True):
        torch.testing.assert_close(ours, network()(batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["reverse", "linearized"])
def test_stored_batches_at_once_have_the_hessian_of_their_mean(mode: str) -> None:
    module, task = network(), SimCLR(projector=(16, 16))
    theta = ParameterVector(module, "backbone.")
    views = batches(8)
    stored = [tuple(views[k : k + 2]) for k in range(0, 8, 2)]
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = HessianOperator(loss_of_views(task), theta, stored, mode).matvec(v)  # type: ignore[arg-type]
    for count in (1, 2, 4):
        grouped = [tuple(stored[k : k + count]) for k in range(0, 4, count)]
        found = HessianOperator(mean_loss_of_views(task), theta, grouped, mode).matvec(v)  # type: ignore[arg-type]
        assert (found - expected).norm() < 1e-9 * expected.norm()
