"""FUSSL's two phases, oracle by oracle."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from bissl_fast.errors import UserError
from bissl_fast.methods.fussl import method as fussl
from bissl_fast.methods.fussl.blocks import BlocksTask
from bissl_fast.methods.fussl.labelling import collapse, label
from bissl_fast.methods.fussl.method import original_view, scorer
from bissl_fast.methods.fussl.pseudo_labels import PseudoLabelTask
from bissl_fast.methods.fussl.settings import FUSSLSettings
from bissl_fast.methods.stages.pretrain import PretrainSettings, PretrainTask
from bissl_fast.models import Network, build_backbone, build_projector, probe_features
from bissl_fast.models.stacked import Stack
from bissl_fast.pretext import BYOL, Learner, MoCo, OptimizerSettings, PretextTask, SimCLR, SwAV
from tests.methods.conftest import pretext_stage
from tests.methods.fussl_runs import backbone, differing, method_of, training, weights
from tests.methods.tasks import SMALL_TASKS, mostly_slow

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


@pytest.mark.parametrize("name", mostly_slow(TASKS, "moco", "swav"))
def test_stacked_blocks_are_blocks_one_by_one(name: str) -> None:
    together, alone = blocks_task(TASKS[name], stacked=True), blocks_task(TASKS[name])
    for index in range(3):
        ours, theirs = together.step(index), alone.step(index)
        torch.testing.assert_close(ours["block_losses"], theirs["block_losses"], **EXACT)
    for one, other in zip(together.blocks, alone.blocks, strict=True):
        state = other.learner.state_dict()
        for key, value in one.learner.state_dict().items():
            torch.testing.assert_close(value, state[key], msg=key, **EXACT)


def test_each_block_is_trained_as_if_it_were_alone_on_views_of_its_own() -> None:
    """Block k is the pretext stage on views 2k and 2k + 1 of the table; no two blocks have seen the same."""
    task = blocks_task(TASKS["byol"])
    alone = [blocks_task(TASKS["byol"], 1).blocks[0] for _ in range(3)]
    start = copy.deepcopy(alone[0].learner.state_dict())
    assert all(not differing(block.learner.state_dict(), start) for block in task.blocks)  # identical weights
    seen: list[tuple[torch.Tensor, ...]] = []
    for index in range(2):
        views = task.loader.load(index).views
        task.step(index)
        for k, block in enumerate(alone):
            own = views[2 * k : 2 * k + 2]
            block.loader = SimpleNamespace(load=lambda _, own=own: SimpleNamespace(views=own))  # type: ignore[assignment]
            block.step(index)
            seen.append(own)
    for block, other in zip(task.blocks, alone, strict=True):
        assert not differing(block.learner.state_dict(), other.learner.state_dict())
    every = [view for pair in seen for view in pair]
    assert not any(torch.equal(a, b) for k, a in enumerate(every) for b in every[:k])
    assert differing(task.blocks[0].learner.state_dict(), task.blocks[1].learner.state_dict())


@pytest.mark.parametrize("name", mostly_slow(["simclr", "moco"], "moco"))
def test_the_same_views_for_all_blocks_leave_them_equal_to_the_bit_and_of_one_mind(
    small_data: Path, tmp_path: Path, name: str
) -> None:
    folder = backbone(training(small_data, tmp_path, "--fussl.views", "shared", "--fussl.blocks", "3", task=name))
    first, *others = (weights(folder / "fussl-blocks", f"block{k}.") for k in range(3))
    assert all(not differing(first, other) for other in others)
    report = json.loads((folder / "fussl-labels" / "labels.json").read_text())
    assert (report["agreement"], report["pairwise_agreement"], report["hard_share"]) == (1, 1, 1)
    assert len(set(report["errors"])) == 1
    assert report["chosen"] == 0


def test_one_block_by_the_pretext_recipe_is_the_baseline_of_that_length(small_data: Path, tmp_path: Path) -> None:
    """The paper's "Base", and of several blocks the first, which has the baseline's views."""
    run = training(small_data, tmp_path)
    folder = backbone(run)
    base = weights(pretext_stage(run, "pretext-base", 6).folder)
    assert not differing(weights(folder / "fussl-blocks", "block0."), base)
    assert differing(weights(folder / "fussl-blocks", "block1."), base)


class Planted(nn.Module):
    """A block that gives an image, whose first pixel is its number, the scores that a table has for it."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.table[images[:, 0, 0, 0].long()]


def planted(tables: list[torch.Tensor]) -> Any:
    images = torch.arange(len(tables[0]), dtype=torch.float64).view(-1, 1, 1, 1)
    batches: Any = [SimpleNamespace(views=(part,)) for part in images.split(4)]
    return label([Planted(table) for table in tables], batches, FUSSLSettings().rule)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_block_of_the_lowest_soft_cross_entropy_is_chosen(best: int) -> None:
    """Blocks vote alike, and one of them is surer than the others."""
    votes = torch.arange(10) % 5
    tables = [torch.nn.functional.one_hot(votes, 5).double() * (2.0 if k == best else 1.0) for k in range(3)]
    found = planted(tables)
    assert found.chosen == best
    expected = [-torch.log_softmax(table, 1)[range(10), votes].mean() for table in tables]
    torch.testing.assert_close(found.errors, torch.stack(expected), **EXACT)


def test_votes_errors_and_the_report_are_those_counted_by_hand() -> None:
    """Ten images: on 6 all agree, on 2 two of three, on 2 nobody."""
    votes = torch.tensor([[k % 3] * 3 for k in range(6)] + [[0, 0, 4], [1, 4, 1], [0, 1, 2], [3, 4, 5]])
    tables = [torch.nn.functional.one_hot(votes[:, k], 7).double() for k in range(3)]
    found = planted(tables)
    assert torch.equal(found.votes, votes)
    report = found.report()
    assert (report["agreement"], report["hard_share"]) == (0.6, 0.8)
    assert report["pairwise_agreement"] == pytest.approx((8 * 3 - 2 * 2) / 30)
    counts = [torch.bincount(votes[:, k], minlength=7).tolist() for k in range(3)]
    chance = [sum(a * b for a, b in zip(counts[j], counts[k], strict=True)) / 100 for j, k in ((0, 1), (0, 2), (1, 2))]
    assert report["pairwise_agreement_by_chance"] == pytest.approx(sum(chance) / 3)
    assert (report["pseudo_classes"], report["pseudo_classes_in_use"]) == (7, 6)
    dense = torch.zeros(10, 7, dtype=torch.float64).scatter_add(1, votes, found.memberships)
    for k, table in enumerate(tables):
        expected = nn.functional.cross_entropy(table, dense)
        torch.testing.assert_close(found.errors[k], expected, **EXACT)


def test_blocks_are_frozen_while_they_vote() -> None:
    """An image's label does not depend on the images beside it, and no weight or buffer moves."""
    images = drawn(12, 3, 16, 16)
    blocks = [blocks_task(TASKS["simclr"], 1).blocks[0].learner.network for _ in range(2)]
    for k, block in enumerate(blocks):
        block.train()(drawn(8, 3, 16, 16, seed=k))
    before = [copy.deepcopy(block.state_dict()) for block in blocks]
    together, apart = (
        label(blocks, [SimpleNamespace(views=(part,)) for part in images.split(size)], FUSSLSettings().rule)  # type: ignore[misc]
        for size in (12, 5)
    )
    assert torch.equal(together.votes, apart.votes)
    torch.testing.assert_close(together.memberships, apart.memberships, **EXACT)
    torch.testing.assert_close(together.errors, apart.errors, **EXACT)
    assert not any(differing(block.state_dict(), kept) for block, kept in zip(blocks, before, strict=True))


def test_a_constant_projector_gives_one_class_and_a_warning(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = [torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64).expand(8, 3)] * 2
    report = planted(constant).report()
    assert (report["pseudo_classes_in_use"], report["pseudo_classes_effective"]) == (1, 1)
    assert "they are the same for all images" in collapse(report)
    assert collapse(planted([drawn(8, 3, seed=k) for k in range(2)]).report()) == ""
    real = scorer

    def dead(network: Network) -> Network:
        found = real(network)
        nn.init.zeros_(list(found.head.parameters())[-1])
        return found

    monkeypatch.setattr(fussl, "scorer", dead)
    run = training(small_data, tmp_path, console=Console(width=500))
    capsys.readouterr()
    folder = backbone(run)
    assert json.loads((folder / "fussl-labels" / "labels.json").read_text())["pseudo_classes_in_use"] == 1
    said = capsys.readouterr().out
    assert "fussl-labels: labels have collapsed: they are the same for all images" in said
    assert "1 of 16 pseudo-classes are in use" in said


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


@pytest.mark.parametrize("name", mostly_slow(SMALL_TASKS, "byol", "swav", "wmse"))
def test_every_pretext_task_has_a_first_phase_and_leaves_backbone_and_projector(
    small_data: Path, tmp_path: Path, name: str
) -> None:
    """Predictor, prototypes, momentum copy and queue stay behind in phase 1's stage."""
    folder = backbone(
        training(small_data, tmp_path, "--fussl.first-epochs", "0.34", "--fussl.second-epochs", "0.34", task=name)
    )
    final, block = weights(folder / "fussl"), weights(folder / "fussl-blocks", "block1.")
    projector = {key.replace("head.projector.", "head.") for key in block if key.startswith("head.")}
    projector = {key for key in projector if "predictor" not in key and "prototypes" not in key}
    assert {key for key in final if key.startswith("head.")} == projector
    assert {key.split(".")[0] for key in final} == {"backbone", "head"}
    assert {key for key in final if key.startswith("backbone.")} == {k for k in block if k.startswith("backbone.")}
    report = json.loads((folder / "fussl-labels" / "labels.json").read_text())
    assert report["pseudo_classes"] == {"wmse": 4}.get(name, 16)  # the projector's width
    assert all(bool(value.isfinite().all()) for value in final.values())


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


def test_the_papers_recipe_is_adam_at_a_high_rate_for_ten_epochs_and_then_at_a_thousandth(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--fussl.recipe", "paper", "--fussl.first-rate", "0.2", "--fussl.first-rate-epochs", "1")
    run = training(small_data, tmp_path, *more, console=Console(width=500))
    said = capsys.readouterr().out
    assert "phase 1 begins with Adam at 0.2 (0.2 in the paper), far above" in said
    assert "never falls" not in said
    always = ("--fussl.recipe", "paper", "--fussl.first-rate-epochs", "2")
    training(small_data, tmp_path, *always, console=Console(width=500))
    assert "fussl-blocks: the rate is 0.2 in all 6 steps and never falls" in capsys.readouterr().out
    method = method_of(run)
    own, _, rate, _ = method._recipe(run.context)
    assert rate is not None
    assert [rate(step) for step in range(5)] == [0.2, 0.2, 0.2, 0.001, 0.001]
    assert own.optimizer == OptimizerSettings("adam", 1e-6, exclude_1d=False, scale_learning_rate=False)
    method._train_blocks(run.context, 0, None)
    records = (run.context.folder / "fussl-blocks" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["lr"] for line in records] == [0.2, 0.2, 0.2, 0.001, 0.001, 0.001]


def test_what_a_stage_logs_is_of_the_worst_block(small_data: Path, tmp_path: Path) -> None:
    folder = backbone(training(small_data, tmp_path))
    records = [json.loads(line) for line in (folder / "fussl-blocks" / "metrics.jsonl").read_text().splitlines()]
    assert all(record["loss"] == pytest.approx(sum(record["block_losses"]) / 2, rel=1e-6) for record in records)
    assert all(len(record["block_losses"]) == 2 and record["spread"] > 0 for record in records)
    last = json.loads((folder / "fussl" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"label_loss", "labels_met", "lr", "spread", "effective_rank"} <= last.keys()
    assert 0 <= last["labels_met"] <= 1


def test_blocks_side_by_side_pass_whole_batches(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--fussl.stacked passes whole batches"):
        training(small_data, tmp_path, "--fussl.stacked", "--pretrain.chunk", "8")


def test_a_backbone_without_stages_is_refused_before_the_first_stage_unless_nothing_is_frozen(
    small_data: Path, tmp_path: Path
) -> None:
    size = ("--backbone", "test_vit", "--images.size", "32", "--images.cache-size", "32")
    with pytest.raises(UserError, match="has no last stage"):
        training(small_data, tmp_path, *size)
    with pytest.raises(UserError, match=r"cannot be put side by side.*leave out --fussl.stacked"):
        training(small_data, tmp_path, *size, "--fussl.trained-whole", "1", "--fussl.stacked")
    training(small_data, tmp_path, *size, "--fussl.trained-whole", "1")
