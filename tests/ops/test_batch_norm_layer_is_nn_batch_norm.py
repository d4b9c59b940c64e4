"""The layer is ``nn.BatchNorm`` in numbers, names and buffers, and groups are separate passes."""

import copy
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bissl_fast.errors import UserError
from bissl_fast.models.separate import keeps_apart
from bissl_fast.ops import BatchNormAct, backend, statistics_groups
from bissl_fast.ops.batch_norm import statistics_at_once

NAMES = ("cpp", "reference")


class Count(TorchDispatchMode):
    """How many operations are dispatched that are no views."""

    launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.launches += not func.is_view
        return func(*args, **(kwargs or {}))


def pair(momentum: float | None = 0.1, **options: bool) -> tuple[BatchNormAct, nn.BatchNorm2d]:
    """Ours and PyTorch's with the same random weights."""
    ours = BatchNormAct(5, momentum=momentum, **options).double()
    theirs = nn.BatchNorm2d(5, momentum=momentum, **options).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(4, 5, 3, 2, dtype=torch.float64, generator=generator) + k for k in range(count)]


def assert_same_buffers(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, found), (other, expected) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert name == other
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_parameters_buffers_and_their_first_values_are_those_of_nn_batch_norm() -> None:
    ours, theirs = BatchNormAct(5).state_dict(), nn.BatchNorm2d(5).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", NAMES)
def test_train_and_eval_mode_give_the_numbers_of_nn_batch_norm(name: str, momentum: float | None) -> None:
    ours, theirs = pair(momentum)
    with backend(name):
        for x in batches():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    assert_same_buffers(ours, theirs)
    ours.eval(), theirs.eval()
    x = batches()[0]
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours(x, x, relu=True), torch.relu(theirs(x) + x), rtol=1e-12, atol=1e-12)
    assert_same_buffers(ours, theirs)


def test_without_running_statistics_the_batchs_own_serve_in_eval_mode_too() -> None:
    ours, theirs = pair(track_running_stats=False)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(batches()[0]), theirs(batches()[0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", NAMES)
def test_groups_are_separate_passes_in_order(name: str, momentum: float | None) -> None:
    ours, theirs = pair(momentum)
    network = nn.Sequential(nn.Conv2d(5, 5, 1).double(), ours)
    with backend(name), statistics_groups(network, 3):
        found = network(torch.cat(batches()))
    expected = torch.cat([theirs(network[0](x)) for x in batches()])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert_same_buffers(ours, theirs)
    assert ours.groups == 1


def test_groups_end_with_the_block_even_by_an_error_and_refuse_layers_that_would_mix_them() -> None:
    layer = BatchNormAct(5).double()
    with pytest.raises(ValueError, match="batch of 4 cannot be cut into 3"), statistics_groups(layer, 3):
        layer(batches()[0])
    assert layer.groups == 1
    network = nn.Sequential(layer, nn.BatchNorm2d(5))
    with pytest.raises(UserError, match="1, a BatchNorm2d, takes its statistics"), statistics_groups(network, 2):
        pass
    tracking = nn.Sequential(layer, nn.InstanceNorm2d(5, track_running_stats=True))  # moves as a batch norm does
    with pytest.raises(UserError, match="1, a InstanceNorm2d, takes its statistics"), statistics_groups(tracking, 2):
        pass
    with pytest.raises(UserError, match="1 group or more"), statistics_groups(layer, 0):
        pass
    with statistics_groups(network, 1), statistics_groups(network.eval(), 2):
        assert layer.groups == 2


@pytest.mark.parametrize("groups", [1, 2])
def test_statistics_that_move_at_once_are_those_that_move_layer_by_layer(groups: int) -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        twice = BatchNormAct(5)  # met twice in a pass
        return nn.Sequential(
            BatchNormAct(5), twice, BatchNormAct(5, momentum=None), BatchNormAct(5, eps=1e-3, momentum=0.3), twice
        )

    one_by_one, at_once = network(), network()
    for _ in range(2):
        for batch in batches():
            for layers, block in ((one_by_one, nullcontext()), (at_once, statistics_at_once())):
                with block, statistics_groups(layers, groups):
                    layers(batch.float())
    found, expected = at_once.state_dict(), one_by_one.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert int(found["1.num_batches_tracked"]) == 2 * 2 * 3 * groups


def test_statistics_of_many_layers_move_in_as_many_calls_as_those_of_one() -> None:
    def calls(layers: int) -> int:
        network = nn.Sequential(*(BatchNormAct(5) for _ in range(layers)))
        with Count() as count, torch.no_grad(), statistics_at_once():
            network(batches()[0].float())
            before = count.launches
        return count.launches - before

    assert calls(7) == calls(1) > 0


def test_whether_batches_may_pass_together_does_not_depend_on_when_statistics_move() -> None:
    network = nn.Sequential(BatchNormAct(5))
    with statistics_at_once():
        assert keeps_apart(network, batches()[0].float())


def test_it_can_be_copied_and_pickled() -> None:
    layer = BatchNormAct(5).double()
    x = batches()[0]
    layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_buffers(twin, layer)
        assert torch.equal(twin(x), copy.deepcopy(layer)(x))


def test_a_batch_of_one_value_per_channel_raises_as_in_pytorch() -> None:
    x = torch.randn(1, 5, 1, 1)
    for layer in (BatchNormAct(5), nn.BatchNorm2d(5)):
        with pytest.raises(ValueError, match="value"):
            layer(x)
