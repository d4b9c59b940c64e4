"""Which weights fine-tuning keeps: of the epoch with the highest validation accuracy, the earliest of equal ones."""

import copy
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from bissl_fast.data.pipelines.loader import Batch, Loader
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.evaluation.finetuning import FineTuneTask
from bissl_fast.evaluation.metrics import Evaluation
from bissl_fast.methods.stages.head import HeadWarmupTask
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network


class Noise(Loader):
    """Random vectors of two classes."""

    def __init__(self) -> None:
        super().__init__("noise", 8, BatchOrder(8, 4, seed=0))

    def load(self, draw: int) -> Batch:
        views = torch.randn(4, 3, generator=torch.Generator().manual_seed(draw))
        return Batch((views,), torch.tensor([0, 1, 0, 1]), np.arange(4), draw)

    def close(self) -> None: ...


@pytest.mark.parametrize("share", [0.0, 1e-3])
def test_the_rate_falls_from_its_peak_to_the_final_share(share: float) -> None:
    torch.manual_seed(0)
    network = Network(nn.Linear(3, 4), nn.Linear(4, 2))
    sgd = SGDSettings(0.1, 0.0).build(list(network.parameters()))
    task = FineTuneTask(network, Noise(), None, sgd, 50, 2, nullcontext, final_share=share)
    rates = [float(task.step(index)["lr"]) for index in range(task.steps)]
    assert rates[0] == 0.1
    assert rates[50] == pytest.approx(0.1 * (1 + share) / 2)
    assert rates[-1] - 0.1 * share == pytest.approx(0.1 * (math.pi / 100) ** 2 / 4, rel=2e-3)


@pytest.mark.parametrize("leak", [True, False])
def test_the_heads_warm_up_moves_the_backbones_statistics_only_where_the_released_code_is_followed(leak: bool) -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2))
    before = copy.deepcopy(network.state_dict())
    task = HeadWarmupTask(network, Noise(), SGDSettings(0.1, 0.0), 2, nullcontext, leak_statistics=leak)
    for index in range(2):
        task.step(index)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    buffers = {f"backbone.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved == {"head.weight", "head.bias"} | (buffers if leak else set())


@pytest.mark.parametrize(
    ("accuracies", "best"), [((0.1, 0.5, 0.4), 1), ((0.5, 0.5, 0.5), 0), ((0.0, 0.0, 0.1), 2), ((0.0, 0.0, 0.0), 0)]
)
@pytest.mark.parametrize("metric", ["top1", "map"])
def test_the_epoch_that_is_kept(accuracies: tuple[float, ...], best: int, metric: str) -> None:
    torch.manual_seed(0)
    network = Network(nn.Linear(3, 4), nn.Linear(4, 2))
    after = []

    def validate(network: nn.Module) -> Evaluation:
        after.append({name: value.clone() for name, value in network.state_dict().items()})
        return Evaluation({metric: accuracies[len(after) - 1]}, loss=0.0, count=4)

    sgd = SGDSettings(0.1, 0.0).build(list(network.parameters()))
    task = FineTuneTask(network, Noise(), validate, sgd, len(accuracies), 2, nullcontext)
    for index in range(task.steps):
        task.step(index)
    assert len(after) == len(accuracies)
    assert all(torch.equal(value, after[best][name]) for name, value in task.best.items())
    others = [epoch for number, epoch in enumerate(after) if number != best]
    assert all(not torch.equal(epoch["head.weight"], task.best["head.weight"]) for epoch in others)
