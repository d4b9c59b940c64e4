"""Small networks and losses that several tests of products share."""

import torch
from torch import nn

from bissl_fast.bilevel import CompositeLoss, ParameterVector
from bissl_fast.models import Network, build_projector
from bissl_fast.ops.nt_xent import nt_xent_loss

Views = tuple[torch.Tensor, torch.Tensor]


def tiny_network() -> Network:
    """Two convolutions with batch norms and a projector with another: 91 backbone parameters."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Conv2d(3, 2, 3, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
    )
    projector = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4, bias=False))
    return Network(backbone, projector).double()


def project(network: nn.Module, views: Views) -> Views:
    return network(views[0]), network(views[1])


contrastive = CompositeLoss(project, lambda outputs: nt_xent_loss(outputs[0], outputs[1], 0.5))


def batches(count: int, shape: tuple[int, ...] = (6, 1, 6, 6), dtype: torch.dtype = torch.float64) -> list[Views]:
    generator = torch.Generator().manual_seed(1)

    def views() -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return [(views(), views()) for _ in range(count)]


def dense_hessian(network: Network, stored: list[Views]) -> torch.Tensor:
    """∂²/∂θ² of the mean loss by functional calls on copied buffers, through torch.autograd.functional."""
    theta = ParameterVector(network, "backbone.")

    def mean_loss(flat: torch.Tensor) -> torch.Tensor:
        values = dict(zip(theta.names, theta.unflatten(flat), strict=True))
        losses = []
        for views in stored:
            state = values | {name: buffer.clone() for name, buffer in network.named_buffers()}
            outputs = [torch.func.functional_call(network, state, (view,)) for view in views]
            losses.append(nt_xent_loss(outputs[0], outputs[1], 0.5))
        return torch.stack(losses).mean()

    return torch.autograd.functional.hessian(mean_loss, theta.values())


def resnet18(dtype: torch.dtype) -> Network:
    """timm's ResNet-18 with the paper's projector."""
    from bissl_fast.models import build_backbone

    return Network(build_backbone("resnet18", 0), build_projector(512, (256, 256, 256), 0)).to(dtype)
