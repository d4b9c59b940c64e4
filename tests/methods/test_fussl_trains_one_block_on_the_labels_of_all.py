"""FUSSL's second phase: one block on the labels of all, most of it frozen."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.methods.fussl import method as fussl
from bissl_fast.methods.fussl.method import original_view, scorer
from bissl_fast.methods.fussl.pseudo_labels import PseudoLabelTask
from bissl_fast.methods.fussl.settings import FUSSLSettings
from bissl_fast.models import Network, build_backbone, build_projector, probe_features
from tests.methods.fussl_runs import backbone, differing, method_of, training, weights
from tests.methods.fussl_tasks import EXACT, Views, drawn

SETTINGS = FUSSLSettings(weight_decay=0.3, learning_rate=0.05, trained_whole=0.5)


def second_phase(settings: FUSSLSettings = SETTINGS, steps: int = 4, chunk: int | None = None) -> PseudoLabelTask:
    head = build_projector(probe_features("test_resnet", 16), (8, 5), 0)
    network = Network(build_backbone("test_resnet", 0), head).double()
    for k, parameter in enumerate(p for p in network.parameters() if p.ndim < 2):
        parameter.data += 0.1 * drawn(len(parameter), seed=k)  # no branch ends in a weight of zero
    votes = torch.randint(5, (12, 2), generator=torch.Generator().manual_seed(0))
    given = settings.rule(votes, drawn(12, 2).abs() + 0.1)
    return PseudoLabelTask(network, Views(1), votes, given, settings, steps, chunk=chunk)  # type: ignore[arg-type]


def test_after_its_first_part_phase_2_leaves_stem_and_first_stages_alone_to_the_bit() -> None:
    """Adam's moments and a weight decay are there to move them, and batch norms in train mode would."""
    task = second_phase()
    states = [copy.deepcopy(task.network.state_dict())]
    for index in range(4):
        task.step(index)
        states.append(copy.deepcopy(task.network.state_dict()))
    late = {name for name in states[0] if name.startswith(("backbone.layer4.", "head."))}
    early = states[0].keys() - late
    assert any("running_mean" in name for name in early)
    for step in (1, 2):
        assert differing(states[step - 1], states[step]) == states[0].keys()
    for step in (3, 4):
        assert differing(states[step - 1], states[step]) == late
    kept = [p.grad for name, p in task.network.named_parameters() if name in early]
    assert kept == [None] * len(kept)


@pytest.mark.parametrize(("share", "whole"), [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_the_share_that_is_trained_whole_is_the_first(share: float, whole: int) -> None:
    task = second_phase(replace(SETTINGS, trained_whole=share), steps=8)
    moved = []
    for index in range(8):
        first = next(task.network.backbone.parameters())
        before = first.detach().clone()
        task.step(index)
        moved.append(not torch.equal(before, first))
    assert moved == [True] * whole + [False] * (8 - whole)


def test_what_stands_still_normalises_by_its_running_statistics() -> None:
    """An image's scores in the frozen part do not depend on the other images of the batch."""
    task = second_phase(replace(SETTINGS, trained_whole=0.0))
    task._train(whole=False)
    images = Views(1).load(0).views[0]
    backbone = task.network.backbone
    with torch.no_grad():
        early: Any = nn.Sequential(backbone.conv1, backbone.bn1, backbone.act1, backbone.maxpool)
        early = nn.Sequential(early, backbone.layer1, backbone.layer2, backbone.layer3)
        torch.testing.assert_close(early(images)[:2], early(images[:2]), **EXACT)
        assert not torch.allclose(backbone(images)[:2], backbone(images[:2]))  # layer4 is in train mode


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_step_of_phase_2_is_adam_on_the_soft_cross_entropy(chunk: int | None) -> None:
    task = second_phase(replace(SETTINGS, trained_whole=1.0), chunk=chunk)
    twin = copy.deepcopy(task.network).train()
    adam = torch.optim.Adam(twin.parameters(), 0.05, weight_decay=0.3)
    for index in range(2):
        batch = task.loader.load(index)
        dense = torch.zeros(6, 5, dtype=torch.float64)
        dense.scatter_add_(1, task.votes[batch.samples], task.memberships[batch.samples])
        scores = torch.cat([twin(part) for part in batch.views[0].split(chunk or 6)])
        loss = nn.functional.cross_entropy(scores, dense)
        adam.zero_grad()
        loss.backward()
        adam.step()
        torch.testing.assert_close(task.step(index)["label_loss"], loss.detach(), **EXACT)
    for (name, ours), theirs in zip(task.network.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_phase_2_sees_images_as_the_labels_were_given_for_without_augmentation(
    small_data: Path, tmp_path: Path
) -> None:
    """Also under the preset whose pretext views have pixels up to 255."""
    run = training(small_data, tmp_path, "--images.first.pixel-range", "255").context
    view = original_view(run)
    assert view.pixel_range == 255
    whole = torch.cat([batch.views[0] for batch in run.data.pipeline.in_order(run.data.unlabelled, view, 16)])
    assert float(whole.abs().max()) > 100
    with run.data.loader(run.data.unlabelled, (view,), 16, "fussl-0") as loader:
        for draw in range(4):
            batch = loader.load(draw)
            assert torch.equal(batch.views[0], whole[batch.samples])


def test_progressive_puts_the_chosen_block_back_into_its_slot_and_labels_anew(small_data: Path, tmp_path: Path) -> None:
    run = training(small_data, tmp_path, "--fussl.case", "progressive", "--fussl.rounds", "2", task="byol")
    method = method_of(run)
    steps = [method._train_blocks(run.context, 0, None)]
    steps += [method._label(run.context, 0, steps[0])]
    steps += [method._train_chosen(run.context, 0, *steps)]
    names = [stage.folder.name for stage in steps]
    assert names == ["fussl-blocks-1", "fussl-labels-1", "fussl-chosen-1"]
    done = fussl.Round(*steps)
    learners, number = method._learners(run.context, done), done.number
    for k, learner in enumerate(learners):
        left = weights(steps[0].folder, f"block{k}.")
        if k != number:
            assert not differing(learner.state_dict(), left)
            continue
        trained = weights(steps[2].folder)
        mine = learner.state_dict()
        assert not differing(scorer(learner.network).state_dict(), trained)
        kept = {name for name in mine if torch.equal(mine[name], left[name])}
        assert {name for name in mine if name.startswith(("head.predictor.", "momentum."))} <= kept
        assert not kept & {f"backbone.{name}" for name in dict(learner.network.backbone.named_parameters())}
    folder = backbone(run)
    assert {path.name for path in folder.glob("fussl*")} == {
        *names,
        "fussl-blocks-2",
        "fussl-labels-2",
        "fussl",
    }
    key = json.loads((folder / "fussl-labels-2" / "key.json").read_text())
    assert (
        key["inputs"]["blocks"] != json.loads((folder / "fussl-labels-1" / "key.json").read_text())["inputs"]["blocks"]
    )
    assert [len((folder / f"fussl-blocks-{k}" / "metrics.jsonl").read_text().splitlines()) for k in (1, 2)] == [3, 3]


def test_progressive_of_one_round_is_fuzzy_labels_with_nothing_frozen(small_data: Path, tmp_path: Path) -> None:
    progressive = ("--fussl.case", "progressive", "--fussl.rounds", "1")
    one = backbone(training(small_data, tmp_path, *progressive))
    other = backbone(training(small_data, tmp_path, "--fussl.trained-whole", "1", "--name", "other"))
    assert not differing(weights(one / "fussl"), weights(other / "fussl"))


def test_a_backbone_without_stages_is_refused_before_the_first_stage_unless_nothing_is_frozen(
    small_data: Path, tmp_path: Path
) -> None:
    size = ("--backbone", "test_vit", "--images.size", "32", "--images.cache-size", "32")
    with pytest.raises(UserError, match="has no last stage"):
        training(small_data, tmp_path, *size)
    with pytest.raises(UserError, match=r"cannot be put side by side.*leave out --fussl.stacked"):
        training(small_data, tmp_path, *size, "--fussl.trained-whole", "1", "--fussl.stacked")
    training(small_data, tmp_path, *size, "--fussl.trained-whole", "1")
