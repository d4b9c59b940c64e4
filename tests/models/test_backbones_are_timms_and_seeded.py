"""Backbones and heads are functions of their name and seed."""

import pytest
import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.models import Network, build_backbone, build_classifier, place, probe_features
from bissl_fast.models.backbone import require_small


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


REFUSED = {
    "an assertion without a word": ("halonet26t", 64, r"cannot take images of 64 px \(AssertionError without a word\)"),
    "a size that timm asks for and ignores": ("efficientformer_l1", 64, r"64 px \(.*timm made it for 224 px: choose"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_backbone_that_cannot_take_the_images_is_refused_with_a_sentence(name: str) -> None:
    backbone, size, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence):
        probe_features(backbone, size)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 96), ("convit_tiny", 64), ("levit_128s", 128)])
def test_a_backbone_made_for_one_size_is_made_for_the_images(name: str, size: int) -> None:
    backbone = build_backbone(name, 0, size)
    assert backbone(torch.randn(2, 3, size, size)).shape == (2, probe_features(name, size))


def test_a_size_changes_nothing_in_a_backbone_that_takes_any() -> None:
    plain, sized = build_backbone("test_resnet", 0).state_dict(), build_backbone("test_resnet", 0, 48).state_dict()
    assert all(torch.equal(plain[name], sized[name]) for name in plain)


def test_frozen_parameters_are_no_obstacle() -> None:
    assert not all(parameter.requires_grad for parameter in build_backbone("efficientvim_m1", 0).parameters())
    assert probe_features("efficientvim_m1", 64) == 960


def test_layers_with_three_dimensional_filters_are_placed() -> None:
    network = place(nn.ModuleList([nn.Conv2d(4, 4, 3), nn.Conv3d(4, 4, 3), nn.Linear(2, 2)]), "cpu")
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous()
    shapes = [weight.dim() for weight in place(build_backbone("lambda_resnet26t", 0), "cpu").parameters()]
    assert 5 in shapes


def test_a_backbone_that_timm_does_not_have() -> None:
    with pytest.raises(UserError, match="timm knows no backbone called 'resnet_18'; did you mean resnet18"):
        build_backbone("resnet_18", 0)


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("channels", [1, 5])
def test_the_first_layer_takes_the_channels_of_the_images(name: str, channels: int) -> None:
    features = probe_features(name, 64, channels)
    backbone = build_backbone(name, 0, 64, channels).eval()
    assert backbone(torch.randn(2, channels, 64, 64)).shape == (2, features)
    with pytest.raises(RuntimeError):
        backbone(torch.randn(2, 3, 64, 64))


def test_small_views_are_refused_where_a_backbone_takes_one_size() -> None:
    require_small("resnet18", 32, 14)
    sentence = (
        r"'vit_tiny_patch16_224', built for images of 32 px, cannot take small views of 14 px .*--pretext.local-views 0"
    )
    with pytest.raises(UserError, match=sentence):
        require_small("vit_tiny_patch16_224", 32, 14)
