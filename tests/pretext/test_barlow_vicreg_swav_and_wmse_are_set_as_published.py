"""Heads, views, optimisers and defaults of the tasks without a momentum copy; and settings that cannot be meant."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.ops import BatchNormAct
from bissl_fast.pretext import TASKS, WMSE, BarlowTwins, PretextTask, SwAV, VICReg
from tests.pretext.direct import TASKS as SMALL
from tests.pretext.direct import batches, network


def layers(task: PretextTask, features: int) -> list[tuple[str, int, bool]]:
    """Kind, width and bias of what a head is made of, in order."""
    with torch.device("meta"):
        head = task.head(features, 0)
    found = []
    for module in head.modules():
        if isinstance(module, nn.Linear):
            found.append(("linear", module.out_features, module.bias is not None))
        elif isinstance(module, BatchNormAct):
            found.append(("norm", module.num_features, module.bias is not None))
        elif isinstance(module, nn.ReLU):
            found.append(("relu", 0, False))
    return found


def hidden(width: int, bias: bool) -> list[tuple[str, int, bool]]:
    return [("linear", width, bias), ("norm", width, True), ("relu", 0, False)]


def test_heads_are_those_of_the_released_codes() -> None:
    assert layers(BarlowTwins(), 512) == 2 * hidden(8192, False) + [("linear", 8192, False)]
    assert layers(VICReg(), 512) == 2 * hidden(8192, True) + [("linear", 8192, False)]
    assert layers(SwAV(), 512) == [*hidden(2048, True), ("linear", 128, True), ("linear", 3000, False)]
    assert layers(WMSE(), 512) == [*hidden(1024, True), ("linear", 64, True)]


def test_a_head_of_prototypes_gives_unit_embeddings_and_their_scores() -> None:
    head = SwAV(projector=(6, 5), prototypes=7).head(4, seed=0)
    embeddings, scores = head(torch.randn(3, 4))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(scores, embeddings @ head.get_parameter("prototypes.weight").T)
    assert torch.equal(SwAV().embedding((embeddings, scores)), embeddings)


def test_a_head_follows_from_its_seed_and_leaves_pytorchs_generator_alone() -> None:
    for task in SMALL.values():
        before = torch.get_rng_state()
        first, again, other = (task.head(4, seed).state_dict() for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert all(not torch.equal(first[name], other[name]) for name in first if first[name].dim() > 1)


def test_rates_and_decays_are_the_published_ones() -> None:
    found = {
        task.name: (task.optimizer.kind, task.optimizer.peak(task.learning_rate, batch), task.optimizer.weight_decay)
        for task, batch in ((BarlowTwins, 2048), (VICReg, 2048), (SwAV, 4096), (WMSE, 512))
    }
    assert found == {
        "barlow": ("lars", 1.6, 1.5e-6),
        "vicreg": ("lars", 1.6, 1e-6),
        "swav": ("lars", 4.8, 1e-6),
        "wmse": ("adam", 3e-3, 1e-6),
    }
    of_biases = BarlowTwins.learning_rate * BarlowTwins.optimizer.rate_1d
    assert of_biases == pytest.approx(0.0048)
    assert {BarlowTwins, VICReg, SwAV, WMSE} <= set(TASKS)


def test_views_are_as_many_and_as_large_as_the_tasks_look_at() -> None:
    assert [view.size for view in SwAV().views(224)] == [224, 224, *[96] * 6]
    assert [view.crop_scale for view in SwAV().views(224)] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 6
    assert [view.crop_scale for view in SwAV(local_views=0).views(224)] == [(0.08, 1.0)] * 2
    assert len(WMSE(positives=4).views(96)) == len(WMSE(positives=4).needs.online) == 4
    for task in (BarlowTwins(), VICReg()):
        first, second = task.views(96)
        assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    for task in (*SMALL.values(), BarlowTwins(), VICReg(), SwAV(), WMSE()):
        count = len(task.views(96))
        assert count == task.needs.large + task.needs.local


BAD: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "redundancy": (BarlowTwins, {"redundancy": -1.0}, "redundancy must be finite and 0 or more, found -1.0"),
    "no projector": (BarlowTwins, {"projector": ()}, "projector must be positive layer widths"),
    "weight": (VICReg, {"covariance": float("nan")}, "covariance must be finite and 0 or more, found nan"),
    "width": (VICReg, {"projector": (8, 0)}, "projector must be positive layer widths"),
    "temperature": (SwAV, {"temperature": 0.0}, "temperature must be finite and positive"),
    "epsilon": (SwAV, {"epsilon": float("inf")}, "epsilon must be finite and positive"),
    "iterations": (SwAV, {"sinkhorn_iterations": 0}, "sinkhorn-iterations must be at least 1"),
    "prototypes": (SwAV, {"prototypes": 1}, "prototypes must be at least 2"),
    "frozen": (SwAV, {"freeze_prototypes": -1}, "freeze-prototypes must be 0 or more steps"),
    "local views": (SwAV, {"local_views": -1}, "local-views must be 0 or more"),
    "slice": (WMSE, {"slice_size": 127}, "slice-size must be at least 128, twice the last width"),
    "shrinkage": (WMSE, {"shrinkage": 1.0}, "shrinkage must be at least 0 and below 1"),
    "positives": (WMSE, {"positives": 1}, "positives must be at least 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_cannot_be_meant_end_in_a_sentence(case: str) -> None:
    task, settings, sentence = BAD[case]
    with pytest.raises(UserError, match="--pretext." + sentence.replace(".", r"\.")):
        task(**settings)


def test_batches_that_slices_do_not_divide_end_in_a_sentence() -> None:
    task = WMSE(projector=(6, 2), slice_size=5)
    assert task.needs.batch_multiple == 5
    outputs = [torch.randn(12, 2) for _ in range(2)]
    with pytest.raises(UserError, match=r"--pretext\.slice-size 5 does not divide a batch of 12 images"):
        task.loss(outputs, {})


def test_embeddings_that_have_collapsed_end_in_a_sentence() -> None:
    task = SMALL["wmse"]
    trained, (first, second) = network(task), batches(task, 1)[0]
    outputs = [trained(torch.ones_like(view)) for view in (first, second)]
    with pytest.raises(UserError, match=r"no Cholesky factor .* Raise --pretext\.shrinkage"):
        task.loss(outputs, {})
