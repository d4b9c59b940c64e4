"""`Stack`: several networks in one pass give what each gives alone, to first and second order, and move as alone."""

import copy

import pytest
import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.models import build_backbone, build_mlp, forward_each
from bissl_fast.models.stacked import Stack, stacks_exactly

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def networks(name: str, count: int = 3) -> list[nn.Module]:
    """Of different weights, with residual branches that are not zero."""
    found = [build_backbone(name, seed).double().train() for seed in range(count)]
    for seed, network in enumerate(found):
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            if parameter.ndim < 2:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return found


def batches(count: int, images: int = 4, size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, images, 3, size, size, generator=generator, dtype=torch.float64))


def assert_same_buffers(ours: list[nn.Module], theirs: list[nn.Module]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for (name, moved), expected in zip(one.named_buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(moved, expected, msg=name, **EXACT)


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("test_resnet", True),
        ("test_resnet", False),
        pytest.param("resnet18", True, marks=pytest.mark.slow),
        ("mobilenetv3_small_100", True),
    ],
)
def test_outputs_gradients_and_buffers_are_equal(name: str, training: bool) -> None:
    together = [network.train(training) for network in networks(name)]
    alone, images = copy.deepcopy(together), batches(3)
    found = Stack(together[0], 3)(together, images)
    expected = [network(batch) for network, batch in zip(alone, images, strict=True)]
    for k, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(ours, theirs, **EXACT)
        ((k + 1) * ours.square().sum()).backward(retain_graph=True)
        ((k + 1) * theirs.square().sum()).backward()
    for one, other in zip(together, alone, strict=True):
        for (parameter, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
            scale = float(theirs.grad.abs().max())
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12 * max(1.0, scale), msg=parameter)
    assert_same_buffers(together, alone)


def test_a_network_alone_in_its_stack_does_not_hear_of_the_others() -> None:
    """The loss of one network has no gradient in another."""
    nets = networks("test_resnet", 2)
    first, _ = Stack(nets[0], 2)(nets, batches(2))
    found = torch.autograd.grad(first.sum(), list(nets[1].parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in found)


def test_products_are_equal() -> None:
    """Second order: the gradient of ⟨∇L, v⟩."""

    def product(nets: list[nn.Module], outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        parameters = [p for network in nets for p in network.parameters()]
        loss = sum(output.pow(3).sum() for output in outputs)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        generator = torch.Generator().manual_seed(2)
        along = [torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in gradients]
        return list(torch.autograd.grad(gradients, parameters, along))

    nets, images = networks("test_resnet", 2), batches(2)
    alone = product(nets, [network(batch) for network, batch in zip(nets, images, strict=True)])
    together = product(nets, Stack(nets[0], 2)(nets, images))
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12 * float(theirs.abs().max()))


def test_views_have_statistics_of_their_own_and_may_be_of_two_sizes() -> None:
    together = networks("test_resnet", 2)
    alone = copy.deepcopy(together)
    views = [[batches(4)[k], batches(4)[k + 2], batches(4, size=8)[k]] for k in range(2)]
    found = Stack(together[0], 2).forward_each(together, views)
    for network, own, outputs in zip(alone, views, found, strict=True):
        for ours, theirs in zip(outputs, forward_each(network, own), strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)
    assert_same_buffers(together, alone)


def test_heads_of_linear_layers_and_tuples_of_outputs_are_stacked() -> None:
    from bissl_fast.models import PredictorHead

    heads = [PredictorHead(build_mlp(6, (5, 4), k), build_mlp(4, (3, 4), k)).double() for k in range(3)]
    alone, rows = copy.deepcopy(heads), list(torch.randn(3, 7, 6, dtype=torch.float64))
    for k, (ours, theirs) in enumerate(zip(Stack(heads[0], 3)(heads, rows), alone, strict=True)):
        for one, other in zip(ours, theirs(rows[k]), strict=True):
            torch.testing.assert_close(one, other, **EXACT)
    assert_same_buffers(heads, alone)


class Dense(nn.Module):
    """Two convolutions, each of all channels before it, as in a DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(torch.cat([images, self.first(images)], 1)).mean((2, 3))


@pytest.mark.parametrize(
    ("name", "stacked"),
    [
        ("test_resnet", True),
        ("test_vit", False),
        ("dense", False),
        pytest.param("densenet121", False, marks=pytest.mark.slow),
        ("dropout", False),
    ],
)
def test_a_network_is_asked_whether_it_can_be_stacked(name: str, stacked: bool) -> None:
    """Densely connected layers put channels of the networks among each other; dropout draws for all at once."""
    dropout = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Flatten())
    small = {"dropout": dropout, "dense": Dense()}
    network = (small[name] if name in small else build_backbone(name, 0, 32)).train()
    before = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert stacks_exactly(network, torch.zeros(2, 3, 32, 32)) == stacked
    assert all(torch.equal(value, before[0][key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_layer_that_is_not_known_is_named() -> None:
    with pytest.raises(UserError, match="1, a LayerNorm, cannot be put side by side"):
        Stack(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), 2)
