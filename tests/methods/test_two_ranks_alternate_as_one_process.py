"""Whole alternations of BiSSL on two ranks, from the images to the weights, are those of one process."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bissl_fast.data.pipelines.loader import Batch, ViewLoader
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.presets import simclr_views
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.bissl import BiSSLSettings, BiSSLTask
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network, build_backbone, build_projector, fuse_batch_norm
from bissl_fast.ops import Ranks
from bissl_fast.pretext import Learner, OptimizerSettings, SimCLR
from tests.ranks import Processes

SIDE, CLASSES = 16, 3
SETTINGS = BiSSLSettings(
    alternations=2,
    lower_steps=2,
    upper_steps=2,
    solver_iterations=3,
    stored_batches=2,
    adaptation_every=2,
    warmup_steps=1,
    learning_rate=0.5,
)
LONG = replace(SETTINGS, alternations=1, lower_steps=1, upper_steps=1, stored_batches=1)


class InDouble:
    """A loader's batches in float64."""

    def __init__(self, loader: ViewLoader) -> None:
        self._loader, self.batch_size = loader, loader.batch_size

    def load(self, draw: int) -> Batch:
        batch = self._loader.load(draw)
        return replace(batch, views=tuple(view.double() for view in batch.views))


def small_backbone() -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 5, 2, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return fuse_batch_norm(nn.Sequential(*layers)), 5


def alternated(ranks: Ranks | None, kind: str, mode: Any) -> dict[str, Any]:
    """All that the alternations move or log."""
    torch.manual_seed(0)
    settings, (backbone, features) = SETTINGS, small_backbone()
    if kind == "resnet18":
        settings, (backbone, features) = LONG, (build_backbone("resnet18", 0, SIDE), 512)
    pretext = Network(backbone, build_projector(features, (6, 5), seed=1)).double()
    downstream = Network(copy.deepcopy(backbone), nn.Linear(features, CLASSES)).double()
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 255, (24, SIDE, SIDE, 3), np.uint8), rng.integers(0, CLASSES, 24)
    images = ImageSet("noise", pixels, labels, tuple(map(str, range(CLASSES))), "")
    views, place = simclr_views(SIDE), {} if ranks is None else {"rank": ranks.rank, "ranks": ranks.size}
    loaders = [
        ViewLoader(images, wanted, BatchOrder(24, 8, seed, phase_length=2, **place), seed, "cpu")
        for seed, wanted in ((1, views), (2, views[:1]))
    ]
    task = BiSSLTask(
        Learner(SimCLR(0.5), pretext, ranks=ranks),
        downstream,
        *(InDouble(loader) for loader in loaders),  # type: ignore[arg-type]
        None,
        settings,
        BilevelSettings(mode=mode),
        OptimizerSettings(),
        SGDSettings(learning_rate=0.1, weight_decay=1e-3),
        nullcontext,
    )
    logged = {f"{k}: {name}": value for k in range(task.steps) for name, value in task.step(k).items()}
    for loader in loaders:
        loader.close()
    found = {
        **task.learner.state_dict(),
        **{f"downstream.{n}": t for n, t in downstream.state_dict().items()},
        **logged,
    }
    return {name: torch.as_tensor(value) for name, value in found.items()} | {
        "images": torch.tensor(task.images_per_step)
    }


def assert_one_process(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        first, *others = (state[name] for state in found)
        assert all(torch.equal(first, other) for other in others), name
        torch.testing.assert_close(first, value, rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("small", "reverse"), ("small", "linearized"), pytest.param("resnet18", "reverse", marks=pytest.mark.slow)],
)
def test_whole_alternations_are_those_of_one_process_and_the_same_bits_on_both_ranks(
    two_ranks: Processes, kind: str, mode: Any
) -> None:
    assert_one_process(two_ranks(alternated, kind, mode), alternated(None, kind, mode))


@pytest.mark.slow
def test_so_are_those_of_four_ranks(four_ranks: Processes) -> None:
    assert_one_process(four_ranks(alternated, "small", "reverse"), alternated(None, "small", "reverse"))
