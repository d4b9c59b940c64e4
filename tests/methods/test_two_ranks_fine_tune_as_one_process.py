"""Head warm-up and fine-tuning on two ranks are those of one process, the last batch of an epoch and the scores too."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bissl_fast.data.pipelines.loader import ViewLoader, sequential_batches
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.presets import eval_view, simclr_views
from bissl_fast.evaluation.finetuning import FineTuneTask
from bissl_fast.evaluation.metrics import Evaluation, evaluate
from bissl_fast.methods.stages.head import HeadWarmupTask
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.models import Network
from bissl_fast.ops import Ranks
from bissl_fast.ops.collectives import own_rows
from tests.methods.test_two_ranks_alternate_as_one_process import CLASSES, SIDE, InDouble, small_backbone
from tests.ranks import Processes

IMAGES, BATCH, EPOCHS, VALIDATION = 21, 8, 2, 7
"""Epochs of 8, 8 and 5 images, of which the 5 have no equal parts."""

SGD = SGDSettings(learning_rate=0.1, weight_decay=1e-3)


class Shared(InDouble):
    """In float64, and as a loader that knows which batches ranks share."""

    def shared(self, draw: int) -> bool:
        return self._loader.shared(draw)


def labelled(count: int, multilabel: bool) -> ImageSet:
    rng = np.random.default_rng(count)
    pixels = rng.integers(0, 255, (count, SIDE, SIDE, 3), np.uint8)
    shape = (count, CLASSES) if multilabel else (count,)
    labels = rng.integers(-1, 2, shape).astype(np.int8) if multilabel else rng.integers(0, CLASSES, shape)
    return ImageSet("noise", pixels, labels, tuple(map(str, range(CLASSES))), "")


def trained(ranks: Ranks | None, stage: str, multilabel: bool) -> dict[str, Any]:
    """All that the steps move or log."""
    torch.manual_seed(0)
    backbone, features = small_backbone()
    network = Network(backbone, nn.Linear(features, CLASSES)).double()
    place = {} if ranks is None else {"rank": ranks.rank, "ranks": ranks.size}
    order = BatchOrder(IMAGES, BATCH, seed=1, keep_last=True, **place)
    loader = Shared(ViewLoader(labelled(IMAGES, multilabel), simclr_views(SIDE)[:1], order, 1, "cpu"))
    if stage == "head":
        task: Any = HeadWarmupTask(network, loader, SGD, EPOCHS * 3, nullcontext, leak_statistics=True, ranks=ranks)  # type: ignore[arg-type]
    else:
        optimizer = SGD.build(list(network.parameters()))
        validate = validation(ranks, labelled(VALIDATION, multilabel))
        task = FineTuneTask(network, loader, validate, optimizer, EPOCHS, 3, nullcontext, ranks=ranks)  # type: ignore[arg-type]
    logged = [torch.stack([torch.as_tensor(v).double() for v in task.step(k).values()]) for k in range(task.steps)]
    best = {f"best.{name}": value for name, value in getattr(task, "best", {}).items()}
    return {**network.state_dict(), **best, "logged": torch.cat(logged)}


def validation(ranks: Ranks | None, images: ImageSet) -> Any:
    def validate(network: Network) -> Evaluation:
        wanted = None if ranks is None else range(len(images))[own_rows(len(images), ranks)]
        batches = sequential_batches(images, eval_view(SIDE), 3, "cpu", wanted)
        double = (replace(batch, views=(batch.views[0].double(),)) for batch in batches)
        return evaluate(network, double, "cpu", ranks=ranks)

    return validate


@pytest.mark.parametrize(("stage", "multilabel"), [("head", False), ("finetune", False), ("finetune", True)])
def test_every_step_is_that_of_one_process(two_ranks: Processes, stage: str, multilabel: bool) -> None:
    whole = trained(None, stage, multilabel)
    found = two_ranks(trained, stage, multilabel)
    torch.testing.assert_close(found[0], whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_a_batch_without_equal_parts_is_every_ranks() -> None:
    orders = [BatchOrder(IMAGES, BATCH, seed=1, keep_last=True, rank=rank, ranks=2) for rank in range(2)]
    whole = BatchOrder(IMAGES, BATCH, seed=1, keep_last=True)
    assert [orders[0].shared(draw) for draw in range(3)] == [True, True, False]
    for draw in (0, 1):
        parts = [order.indices(draw)[1] for order in orders]
        np.testing.assert_array_equal(np.concatenate(parts), whole.indices(draw)[1])
    for order in orders:
        np.testing.assert_array_equal(order.indices(2)[1], whole.indices(2)[1])
