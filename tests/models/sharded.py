"""Small backbones with blocks, whole or sharded, and what training makes of them."""

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from bissl_fast.data.pipelines.loader import ChunkLoader
from bissl_fast.evaluation.finetuning import FineTuneTask
from bissl_fast.evaluation.metrics import Evaluation, evaluate
from bissl_fast.methods.stages.pretrain import PretrainSettings, PretrainTask
from bissl_fast.models import Network, fuse_batch_norm
from bissl_fast.models.sharded import shard
from bissl_fast.models.together import in_chunks as in_parts
from bissl_fast.ops import Ranks
from bissl_fast.pretext import BYOL, DINO, Learner, OptimizerSettings, PretextTask, SimCLR
from bissl_fast.training.precision import Precision, apply_precision

TASKS: dict[str, PretextTask] = {
    "simclr": SimCLR(projector=(6, 5)),
    "byol": BYOL(projector=(6, 5), predictor=7, momentum=0.9),
    "dino": DINO(prototypes=7, projector=(6, 5), momentum=0.9, freeze_last_layer=1, local_views=0, trained_norm=True),
}
OPTIMIZERS = {
    "sgd": OptimizerSettings("sgd", weight_decay=1e-3),
    "lars": OptimizerSettings("lars", weight_decay=1e-3),
    "adamw, clipped": OptimizerSettings("adamw", weight_decay=1e-2, clip=0.1),
}
IMAGES, SIDE, STEPS = 8, 16, 3
Found = dict[str, torch.Tensor]


def backbone(kind: str) -> tuple[nn.Module, int]:
    """A ResNet of four blocks or a vision transformer of two, and its features."""
    torch.manual_seed(0)
    if kind == "resnet":
        made = ResNet(
            BasicBlock, (1, 1, 1, 1), channels=(4, 6, 5, 7), stem_width=4, num_classes=0, zero_init_last=False
        )
        return fuse_batch_norm(made).double(), 7
    options: dict[str, Any] = {"embed_dim": 6, "depth": 2, "num_heads": 2, "num_classes": 0}
    return VisionTransformer(SIDE, 8, **options).double(), 6


class Noise:
    """A loader of two views of noise, of which each rank has its part."""

    batch_size = IMAGES

    def __init__(self, ranks: Ranks | None, dtype: torch.dtype = torch.float64) -> None:
        self.ranks, self.dtype = ranks, dtype

    def load(self, index: int) -> "Noise":
        return self.of(index)

    def of(self, index: int) -> "Noise":
        generator = torch.Generator().manual_seed(index)
        views = [torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator, dtype=self.dtype) for _ in range(2)]
        labels = torch.randint(3, (IMAGES,), generator=generator)
        self.views, self.target = [self.part(view) for view in views], self.part(labels)
        return self

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        return whole if self.ranks is None else whole.chunk(self.ranks.size)[self.ranks.rank]


def pretraining(
    kind: str,
    task: str,
    optimizer: str,
    ranks: Ranks | None,
    spread: bool = False,
    in_chunks: bool = False,
    precision: Precision | None = None,
) -> PretrainTask:
    """The task of training a small network for some steps, in float64 unless a precision is given."""
    dtype = torch.float64 if precision is None else torch.float32
    forward = nullcontext if precision is None else apply_precision(precision, torch.device("cpu"))
    body, features = backbone(kind)
    network = Network(body, TASKS[task].head(features, seed=0)).to(dtype)
    loader: Any = Chunks(ranks) if in_chunks else Noise(ranks, dtype)
    chunk = loader.chunk if in_chunks else None
    learner = Learner(TASKS[task], network, forward, chunk=chunk, ranks=ranks, shard=spread)
    settings = PretrainSettings(learning_rate=0.1, optimizer=OPTIMIZERS[optimizer])
    return PretrainTask(learner, loader, settings, STEPS, warmup=0)


class Labelled(Noise):
    """One view and labels; the second batch has no equal parts and is every rank's."""

    def __init__(self, ranks: Ranks | None) -> None:
        super().__init__(ranks)
        self.batch_size = IMAGES // (1 if ranks is None else ranks.size)

    def shared(self, index: int) -> bool:
        return index != 1

    def load(self, index: int) -> "Noise":
        return (self if self.shared(index) else Noise(None)).of(index)


class Chunks(ChunkLoader):
    """The same in chunks of 4 images of all ranks together; in one process those of both ranks stand side by side."""

    def __init__(self, ranks: Ranks | None) -> None:
        self.noise, self.batch_size, self.chunk = Noise(ranks), IMAGES, 2 if ranks else 4

    def passes(self, draw: int) -> tuple[Any, Any]:
        views = self.noise.load(draw).views
        if self.noise.ranks is None:
            order = torch.arange(IMAGES).view(2, 2, 2).transpose(0, 1).reshape(-1)
            views = [view[order] for view in views]
        parts = [SimpleNamespace(views=of_chunk) for of_chunk in in_parts(views, self.chunk)]
        return parts, parts


def finetuning(kind: str, ranks: Ranks | None) -> FineTuneTask:
    """Fine-tuning for some steps, of which each is an epoch with a validation of other images."""
    body, features = backbone(kind)
    network = Network(body, nn.Linear(features, 3).double())
    if ranks is not None:
        shard(network, ranks)

    def validate(network: nn.Module) -> Evaluation:
        batch = Noise(ranks).of(17)
        known = SimpleNamespace(views=batch.views, labels=batch.target)
        return evaluate(network, [known], "cpu", ranks=ranks)  # type: ignore[list-item]

    loader: Any = Labelled(ranks)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-3)
    return FineTuneTask(network, loader, validate, optimizer, STEPS, 1, nullcontext, ranks=ranks)


def flat(state: Any, path: str = "") -> Found:
    """All tensors and numbers of nested containers, by path."""
    if isinstance(state, dict | list | tuple):
        pairs: Sequence[tuple[Any, Any]] = list(state.items() if isinstance(state, dict) else enumerate(state))
        return {name: value for key, child in pairs for name, value in flat(child, f"{path}/{key}").items()}
    return {path: torch.as_tensor(state)} if isinstance(state, torch.Tensor | float | int) else {}


def stepped(task: Any, first: int = 0, last: int = STEPS) -> Found:
    """All that steps log, and the state behind them."""
    logged = {f"step {k}": dict(task.step(k)) for k in range(first, last)}
    return flat({**logged, "state": task.state()})
