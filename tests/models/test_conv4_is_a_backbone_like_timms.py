"""`--backbone conv4`: the layers of the few-shot literature, by timm's name, ready for products."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.errors import UserError
from bissl_fast.models import Network, build_backbone, probe_features
from bissl_fast.models.weights import BackboneWeights, backbone_weights
from bissl_fast.ops import nt_xent_loss
from bissl_fast.training.files import save_weights


def test_it_has_the_layers_and_the_size_that_papers_give() -> None:
    network = build_backbone("conv4", 0)
    shapes = [tuple(m.weight.shape) for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(64, 3, 3, 3)] + [(64, 64, 3, 3)] * 3
    assert sum(p.numel() for p in network.parameters()) == 113_088  # as of the published Conv-4 with biases
    assert [probe_features("conv4", size) for size in (28, 32, 84)] == [64, 256, 1600]
    assert probe_features("conv4", 28, channels=1) == 64


def test_it_computes_four_blocks_of_convolution_norm_relu_and_pooling() -> None:
    network = build_backbone("conv4", 1).double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    x = images
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    for convolution, norm in zip(convolutions, norms, strict=True):
        x = nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (variance + norm.eps).sqrt()  # weights of 1 and 0 at first
        x = nn.functional.max_pool2d(x.clamp(min=0), 2)
    torch.testing.assert_close(network(images), x.flatten(1), rtol=1e-10, atol=1e-12)


def test_its_linearized_product_is_that_of_a_double_backward_pass() -> None:
    torch.manual_seed(0)
    network = Network(build_backbone("conv4", 2), nn.Linear(64, 8)).double()
    theta = ParameterVector(network, "backbone.")
    views = [torch.randn(4, 3, 16, 16, dtype=torch.float64) for _ in range(2)]
    vector = torch.randn(len(theta), dtype=torch.float64)

    def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return nt_xent_loss(model(batch[0]), model(batch[1]), 0.5)

    buffers = {name: value.clone() for name, value in network.named_buffers()}
    found = HessianOperator(loss, theta, [views], "linearized", compiled=False).matvec(vector)
    for name, value in network.named_buffers():
        assert torch.equal(value, buffers[name]), name
    gradients = torch.autograd.grad(loss(network, views), theta.tensors, create_graph=True)
    dot = sum((g * v).sum() for g, v in zip(gradients, theta.unflatten(vector), strict=True))
    expected = torch.cat([h.flatten() for h in torch.autograd.grad(dot, theta.tensors)])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_its_weights_go_through_a_file_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    network = build_backbone("conv4", 3)
    save_weights(tmp_path / "w.safetensors", {f"backbone.{k}": v for k, v in network.state_dict().items()})
    other = build_backbone("conv4", 4)
    weights = backbone_weights(str(tmp_path / "w.safetensors"), other, "conv4")
    assert isinstance(weights, BackboneWeights)
    weights.load_into(other)
    assert torch.equal(other.blocks[0].weight, network.blocks[0].weight)
    with pytest.raises(UserError, match="timm has no pretrained weights of conv4"):
        backbone_weights("timm:conv4", other, "conv4")


def test_images_that_four_halvings_leave_nothing_of_are_refused() -> None:
    with pytest.raises(UserError, match=r"'conv4' cannot take images of 12 px .* timm made it for 84 px"):
        probe_features("conv4", 12)
