"""`before_last_stage`: what stands still while the last stage is trained, whatever the family."""

import pytest
import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.models import build_backbone
from bissl_fast.models.last_stage import before_last_stage

LAST = {
    "test_resnet": {"layer4"},
    "resnet50": {"layer4"},
    "regnety_002": {"s4"},
    "convnext_atto": {"stages.3", "head"},
    "mobilenetv3_small_100": {"blocks.4", "blocks.5", "conv_head"},
    "conv4": {"blocks.12", "blocks.13"},
    "densenet121": {"features.transition3", "features.denseblock4", "features.norm5"},
}
"""Beginnings of the names of all parameters of the last stage."""


def meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(name, 0)


@pytest.mark.parametrize("name", LAST)
def test_the_rest_is_the_last_stage(name: str) -> None:
    backbone = meta(name)
    modules, parameters = before_last_stage(backbone)
    early = {id(parameter) for parameter in parameters}
    late = {key for key, parameter in backbone.named_parameters() if id(parameter) not in early}
    assert all(key.startswith(tuple(f"{start}." for start in LAST[name])) for key in late)
    assert {start for start in LAST[name] if any(key.startswith(f"{start}.") for key in late)} == LAST[name]
    assert not [
        key for key in dict(backbone.named_parameters()) if key.startswith(tuple(LAST[name])) and key not in late
    ]
    held = {id(parameter) for module in modules for parameter in module.parameters()}
    assert held <= early, "no module holds a part of the last stage"


def test_a_resnet_50_keeps_the_forty_convolutions_of_stem_and_three_stages() -> None:
    """ "First 41 layers" (section 4.1.3): 40 by count, beside those of the shortcuts."""
    backbone = meta("resnet50")
    modules, _ = before_last_stage(backbone)
    names = {id(module): name for name, module in backbone.named_modules()}
    convolutions = [names[id(module)] for module in modules if isinstance(module, nn.Conv2d)]
    assert len([name for name in convolutions if "downsample" not in name]) == 40


def test_batch_norms_of_the_first_stages_are_all_among_the_modules() -> None:
    backbone = meta("test_resnet")
    modules, _ = before_last_stage(backbone)
    early = {id(module) for module in modules}
    for name, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (id(module) in early) == (not name.startswith("layer4"))


@pytest.mark.parametrize("backbone", [nn.Linear(3, 2), "test_vit"])
def test_a_backbone_without_stages_is_refused(backbone: nn.Module | str) -> None:
    with pytest.raises(UserError, match=r"has no last stage to train alone.*--fussl.trained-whole 1"):
        before_last_stage(meta(backbone) if isinstance(backbone, str) else backbone)
