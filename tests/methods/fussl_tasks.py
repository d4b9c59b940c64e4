"""FUSSL's first phase without a run: small tasks in float64, on batches of noise."""

from types import SimpleNamespace
from typing import Any

import torch

from bissl_fast.methods.fussl.blocks import BlocksTask
from bissl_fast.methods.stages.pretrain import PretrainSettings, PretrainTask
from bissl_fast.models import Network, build_backbone, probe_features
from bissl_fast.models.stacked import Stack
from bissl_fast.pretext import BYOL, Learner, MoCo, OptimizerSettings, PretextTask, SimCLR, SwAV

EXACT = {"rtol": 1e-12, "atol": 1e-12}
TASKS: dict[str, PretextTask] = {
    "simclr": SimCLR(projector=(8, 6)),
    "byol": BYOL(projector=(8, 6), predictor=8),
    "moco": MoCo(projector=(8, 6), queue=12),
    "swav": SwAV(projector=(8, 6), prototypes=5, freeze_prototypes=1, local_views=1),
}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Views:
    """Batches of noise in place of a loader, which keeps what it gave."""

    batch_size = 6

    def __init__(self, count: int, small: tuple[int, ...] = ()) -> None:
        self.count, self.small = count, small

    def load(self, draw: int) -> Any:
        sizes = [8 if k in self.small else 16 for k in range(self.count)]
        views = tuple(drawn(6, 3, size, size, seed=100 * draw + k) for k, size in enumerate(sizes))
        return SimpleNamespace(views=views, samples=torch.arange(6) + 6 * (draw % 2))


def blocks_task(task: PretextTask, count: int = 3, stacked: bool = False, shared: bool = False) -> BlocksTask:
    """Phase 1 in float64, of three steps by SGD."""
    features = probe_features("test_resnet", 16)
    settings = PretrainSettings(batch_size=6, learning_rate=0.1, optimizer=OptimizerSettings("sgd"))
    learners = []
    for _ in range(count):
        network = Network(build_backbone("test_resnet", 0), task.head(features, 0)).double()
        learners.append(Learner(task, network, seed=0))
    each = task.needs.large + task.needs.local
    views = Views(each if shared else each * count, tuple(range(2, each * count, each)) if task.needs.local else ())
    blocks: list[PretrainTask] = [PretrainTask(one, views, settings, 3, 0) for one in learners]  # type: ignore[arg-type]
    stack = Stack(learners[0].network.backbone, count) if stacked else None
    return BlocksTask(blocks, views, 0, 3, stack)  # type: ignore[arg-type]
