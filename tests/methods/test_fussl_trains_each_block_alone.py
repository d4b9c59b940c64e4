"""FUSSL's first phase: blocks by a pretext task, each as if it were alone."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.pretext import OptimizerSettings
from tests.methods.conftest import pretext_stage
from tests.methods.fussl_runs import backbone, differing, method_of, training, weights
from tests.methods.fussl_tasks import EXACT, TASKS, blocks_task
from tests.methods.tasks import SMALL_TASKS, mostly_slow


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
