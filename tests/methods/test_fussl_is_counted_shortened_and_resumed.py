"""FUSSL as an arm: its cost, its length within a budget, kill and resume, and what each setting is of."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.methods.fussl import method as fussl
from bissl_fast.methods.fussl.pseudo_labels import PseudoLabelTask
from bissl_fast.methods.fussl.settings import FUSSLSettings
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.run import Run
from bissl_fast.pretext import Learner, SimCLR
from bissl_fast.training.stage import StageOutput
from tests.methods.fussl_runs import EVERY_STEP, backbone, method_of, training
from tests.methods.test_every_pretext_task_resumes_with_the_same_bits import assert_same_weights, broken_at


def slow(*parameters: Any) -> Any:
    """Of the slow suite: its like is in the quick one."""
    return pytest.param(*parameters, marks=pytest.mark.slow)


PROGRESSIVE = ("--fussl.case", "progressive", "--fussl.rounds", "2")


@pytest.mark.parametrize("more", [(), ("--fussl.blocks", "3", "--fussl.stacked"), PROGRESSIVE])
def test_its_cost_is_that_of_the_passes_that_it_makes(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    made: Counter[str] = Counter()

    def counted(kind: type, name: str, images: Callable[..., int]) -> None:
        call = getattr(kind, name)

        def wrapper(self: Any, *given: Any) -> Any:
            made.update(passes=1, images=images(*given))
            return call(self, *given)

        monkeypatch.setattr(kind, name, wrapper)

    counted(SimCLR, "loss", lambda outputs, _: len(outputs[0]))
    counted(PseudoLabelTask, "_backward", lambda images, *_: len(images))
    run = training(small_data, tmp_path, *more)
    backbone(run)
    stated = method_of(run).cost(run.context).told(48)
    blocks = 3 if "--fussl.stacked" in more else 2
    assert made == {"passes": stated["passes"], "images": stated["images"]}
    assert stated["model_epochs"] == 2 * blocks + 2
    assert stated["products"] == 0


@pytest.mark.parametrize("more", [(), ("--fussl.blocks", "5"), PROGRESSIVE])
def test_within_a_budget_it_is_as_long_as_can_be_with_phases_in_proportion(
    small_data: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    run = training(small_data, tmp_path, *more, "--fussl.first-epochs", "8", "--fussl.second-epochs", "4")
    method, context = method_of(run), run.context
    turns, blocks = method.settings.turns, method.settings.blocks
    least = turns * (blocks + 1) * 16
    for budget in (least, least + 15, 3 * least, 1000, 1600, 5000, 20_000):
        found = method.within(context, budget)
        cost = found.cost(context).images
        assert budget - 16 * turns < cost <= budget
        first, second = found._steps(context)
        assert first >= 1
        assert 0 <= second - first / 2 <= blocks + 1  # 8 to 4 epochs, and what a step of all blocks leaves
    whole = method.cost(context).images
    assert method.within(context, whole)._steps(context) == method._steps(context)
    with pytest.raises(UserError, match=f"needs {least:,} images .* the budget is {least - 1:,}"):
        method.within(context, least - 1)


def test_the_controls_are_baselines_of_equal_epochs_and_of_equal_cost(small_data: Path, tmp_path: Path) -> None:
    """1200 and 2800 epochs in the paper (Table 1)."""
    assert FUSSLSettings().controls == {"same epochs": 1200, "equal model-epochs": 2800}
    fussl_run = training(small_data, tmp_path)
    epochs = method_of(fussl_run).settings.controls["equal model-epochs"]
    more = ("--methods", "baseline", "--pretrain.baseline-epochs", str(epochs))
    control = training(small_data, tmp_path, *more)
    stated = control.arms["baseline"][0].cost(control.context)
    assert stated == method_of(fussl_run).cost(fussl_run.context)


@pytest.fixture(scope="module")
def unbroken(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run that was not broken off, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(task: str, *more: str) -> Path:
        if (task, *more) not in made:
            output = tmp_path_factory.mktemp("whole")
            made[(task, *more)] = backbone(training(small_data, output, *more, task=task))
        return made[(task, *more)]

    return run


@pytest.mark.parametrize(
    ("task", "owner", "name", "call", "more"),
    [
        ("moco", Learner, "advance", 5, ()),  # in a step, between its blocks' ends
        slow("moco", Learner, "advance", 7, ("--fussl.stacked",)),
        ("moco", fussl, "label", 0, ()),
        slow("moco", PseudoLabelTask, "_backward", 1, ()),
        ("moco", PseudoLabelTask, "_backward", 4, ("--pretrain.chunk", "6")),  # when stem and first stages stand still
        ("moco", Learner, "advance", 9, PROGRESSIVE),  # in the second round
    ],
)
def test_broken_off_in_any_stage_it_ends_with_the_same_bits(
    small_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: Callable[..., Path],
    task: str,
    owner: Any,
    name: str,
    call: int,
    more: tuple[str, ...],
) -> None:
    whole = unbroken(task, *more)
    broken_at(call, owner, name, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        backbone(training(small_data, tmp_path / "broken", *EVERY_STEP, *more, task=task))
    monkeypatch.undo()
    again = backbone(training(small_data, tmp_path / "broken", *more, task=task))
    stages = sorted(path.name for path in whole.glob("fussl*"))
    for stage in stages:
        if "labels" in stage:
            assert (again / stage / "labels.json").read_bytes() == (whole / stage / "labels.json").read_bytes()
            assert (again / stage / "labels.npz").read_bytes() == (whole / stage / "labels.npz").read_bytes()
        else:
            assert_same_weights(again / stage, whole / stage)


def test_a_run_that_is_done_tells_its_labels_again(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        folder = backbone(training(small_data, tmp_path, console=Console(width=500)))
        said = capsys.readouterr().out
        report = json.loads((folder / "fussl-labels" / "labels.json").read_text())
        assert f"blocks agree on {report['agreement']:.1%} of 48 images" in said
        assert f"Block {report['chosen']} goes on" in said
    assert "fussl-labels: done before, skipped" in said


BLOCKS, LABELS, CHOSEN = "fussl-blocks", "fussl-labels", "fussl"
OF_STAGES: list[tuple[str, set[str]]] = [
    ("--fussl.first-epochs 3", {BLOCKS}),
    ("--fussl.second-epochs 3", {CHOSEN}),
    ("--fussl.recipe paper", {BLOCKS}),
    ("--fussl.first-rate .1", set()),  # which the recipe `pretext` has not
    ("--fussl.first-rate-epochs 1", set()),
    ("--pretrain.learning-rate .1", {BLOCKS}),
    ("--pretrain.warmup-epochs 0.34", {BLOCKS}),
    ("--pretrain.chunk 8", {BLOCKS, CHOSEN}),
    ("--fussl.learning-rate .1", {CHOSEN}),
    ("--fussl.weight-decay .1", {CHOSEN}),
    ("--fussl.views shared", {BLOCKS}),
    ("--fussl.stacked", {BLOCKS}),
    ("--fussl.blocks 3", {BLOCKS, LABELS}),
    ("--fussl.case hard", {LABELS}),
    ("--fussl.case soft", {LABELS}),
    ("--fussl.ties all", {LABELS}),
    ("--fussl.memberships uniform", {LABELS}),
    ("--fussl.trained-whole .5", {CHOSEN}),
    ("--fussl.rounds 2", set()),  # of `progressive` alone
    ("--pretrain.epochs 1", set()),  # of the pretext warm-up
    ("--bissl.alternations 2", set()),
]


def settings_of_stages(
    data: Path, output: Path, done: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> dict[str, Mapping[str, Any]]:
    """By stage, what it is keyed by, without running any: earlier outputs are those of a run that is done."""
    found: dict[str, Mapping[str, Any]] = {}

    def stage(self: Run, name: str, settings: Mapping[str, Any], *_: Any) -> StageOutput:
        found[name] = settings
        return StageOutput(done / name, "the same")

    with monkeypatch.context() as patched:
        patched.setattr(Run, "stage", stage)
        backbone(training(data, output, *more))
    return found


def test_a_setting_is_of_the_stages_that_it_changes_and_of_no_other(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: Callable[..., Path]
) -> None:
    done = unbroken("moco")
    base = settings_of_stages(small_data, tmp_path, done, monkeypatch)
    assert base.keys() == {BLOCKS, LABELS, CHOSEN}
    for option, stages in OF_STAGES:
        found = settings_of_stages(small_data, tmp_path, done, monkeypatch, *option.split())
        assert {name for name in base if found[name] != base[name]} == stages, option
    paper = settings_of_stages(small_data, tmp_path, done, monkeypatch, "--fussl.recipe", "paper")
    for option, stages in (
        ("first-rate", {BLOCKS}),
        ("learning-rate", {BLOCKS, CHOSEN}),
        ("weight-decay", {BLOCKS, CHOSEN}),
    ):
        given = ("--fussl.recipe", "paper", f"--fussl.{option}", ".3")
        found = settings_of_stages(small_data, tmp_path, done, monkeypatch, *given)
        assert {name for name in base if found[name] != paper[name]} == stages, option


def test_cases_share_phase_1_and_differ_in_their_labels(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under one output, later cases copy the blocks; hard labels have one class, soft ones all that have votes."""
    arrays = {}
    for case in ("fuzzy", "hard", "soft"):
        more = ("--fussl.case", case, "--fussl.blocks", "3", "--name", case)
        folder = backbone(training(small_data, tmp_path, *more, console=Console(width=500)))
        arrays[case] = dict(np.load(folder / LABELS / "labels.npz"))
        assert ("fussl-blocks: copied from" in capsys.readouterr().out) == (case != "fuzzy")
    assert all(np.array_equal(found["votes"], arrays["fuzzy"]["votes"]) for found in arrays.values())
    distinct = np.array([len(set(row)) for row in arrays["fuzzy"]["votes"].tolist()])
    members = {case: (found["memberships"] > 0).sum(1) for case, found in arrays.items()}
    assert (members["hard"] == 1).all()
    assert (members["soft"] == distinct).all()
    assert (members["fuzzy"] == np.where(distinct == 3, 3, 1)).all()
    assert len(set(distinct.tolist())) > 1, "the small data show more than one kind of vote"


def test_presets_are_the_papers_numbers_and_what_two_cores_bear() -> None:
    paper = preset_config("paper", "dtd").fussl
    assert (paper.blocks, paper.first_epochs, paper.second_epochs) == (3, 800, 400)
    assert (paper.recipe, paper.first_rate, paper.first_rate_epochs) == ("paper", 0.2, 10)
    assert (paper.learning_rate, paper.weight_decay, paper.trained_whole) == (0.001, 1e-6, 0.25)
    assert (paper.case, paper.ties, paper.memberships, paper.views) == ("fuzzy", "tied", "confidence", "own")
    assert paper.first_epochs / paper.rounds == 200
    assert paper.second_epochs / paper.rounds == 100
    assert preset_config("official", "dtd").fussl == paper
    quick = preset_config("quick", "textures")
    assert quick.fussl.recipe == "pretext"
    assert quick.fussl.first_epochs == quick.pretrain.epochs
    unlike = ("first_epochs", "second_epochs", "recipe")
    assert replace(quick.fussl, **{name: getattr(paper, name) for name in unlike}) == paper


def test_quick_says_that_its_recipe_is_not_the_papers(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training(small_data, tmp_path, console=Console(width=500))
    said = capsys.readouterr().out
    assert "fussl: phase 1 by lars at 2.4, as the baseline; the paper's Adam at 0.2, then 0.001" in said
    assert "--pretrain.baseline-epochs 4 (same epochs) or 6 (equal model-epochs)" in said


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"blocks": 0}, "--fussl.blocks must be at least 1, found 0"),
        ({"rounds": 0}, "--fussl.rounds must be at least 1, found 0"),
        ({"first_epochs": 0.0}, "--fussl.first-epochs must be positive, found 0.0"),
        ({"second_epochs": -1.0}, "--fussl.second-epochs must be positive"),
        ({"learning_rate": float("nan")}, "--fussl.learning-rate must be finite"),
        ({"first_rate_epochs": -1.0}, "--fussl.first-rate-epochs must be 0 or more"),
        ({"weight_decay": -1.0}, "--fussl.weight-decay must be 0 or more"),
        ({"trained_whole": 1.5}, "--fussl.trained-whole must be between 0 and 1, found 1.5"),
    ],
)
def test_settings_that_cannot_be_meant(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        FUSSLSettings(**values)


def test_the_weights_of_a_stage_load_into_a_backbone(small_data: Path, tmp_path: Path) -> None:
    """What fine-tuning and `train --weights` ask of an arm's last stage."""
    run = training(small_data, tmp_path)
    stage = method_of(run).backbone(run.context)
    network = run.context.downstream_network(stage, torch.nn.Identity())
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, run.context.features)
