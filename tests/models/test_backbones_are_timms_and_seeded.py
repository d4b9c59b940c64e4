"""Backbones and heads are functions of their name and seed."""

import pytest
import torch

from bissl_fast.errors import UserError
from bissl_fast.models import Network, build_backbone, build_classifier, probe_features


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("vgg11_bn", 4096), ("resnet50", 2048)])
def test_probe_tells_the_features_that_the_backbone_really_gives(name: str, features: int) -> None:
    assert probe_features(name, 64) == features


def test_same_seed_same_weights_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (build_backbone("test_resnet", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_residual_blocks_start_as_the_identity() -> None:
    backbone = build_backbone("resnet18", 0)
    last = [module.bn2.weight for name, module in backbone.named_modules() if name.count(".") == 1 and "layer" in name]
    assert len(last) == 8
    assert all(not weight.any() for weight in last)


def test_network_is_head_after_backbone() -> None:
    network = Network(build_backbone("test_resnet", 0), build_classifier(probe_features("test_resnet", 32), 5, 0))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_a_backbone_that_pytorch_cannot_differentiate_twice() -> None:
    with pytest.raises(
        UserError, match=r"'mobilenetv3_small_050' cannot be differentiated twice .*hardsigmoid_backward"
    ):
        probe_features("mobilenetv3_small_050", 48)


def test_a_backbone_that_timm_does_not_have() -> None:
    with pytest.raises(UserError, match="timm knows no backbone called 'resnet_18'; did you mean resnet18"):
        build_backbone("resnet_18", 0)
