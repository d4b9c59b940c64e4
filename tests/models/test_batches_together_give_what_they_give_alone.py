"""`forward_each`: one pass for several batches, with the numbers of separate passes."""

import copy

import pytest
import torch
from torch import nn

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.models import Network, build_backbone, build_projector, forward_each, fuse_batch_norm, probe_features
from bissl_fast.pretext import SimCLR, mean_pretext_loss, pretext_loss


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


def test_batches_of_different_sizes_come_one_by_one() -> None:
    unequal = [*batches(1, 6), *batches(1, 4)]
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
    apart = [pretext_loss(SimCLR(projector=(16, 16)), torch.enable_grad)]
    expected = HessianOperator(apart[0], theta, stored, mode).matvec(v)  # type: ignore[arg-type]
    for count in (1, 2, 4):
        grouped = [tuple(stored[k : k + count]) for k in range(0, 4, count)]
        found = HessianOperator(mean_pretext_loss(task), theta, grouped, mode).matvec(v)  # type: ignore[arg-type]
        assert (found - expected).norm() < 1e-9 * expected.norm()
