"""ABRL as an arm: whose images it sees, what it costs, where it starts, how it goes on, what it refuses."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from bissl_fast.bilevel import HessianOperator
from bissl_fast.cli.report import print_results
from bissl_fast.cli.train import parse_config
from bissl_fast.data.pipelines.choice import Pipeline
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.sets.readers.voc import CLASSES
from bissl_fast.errors import UserError
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.methods.abrl.algorithm import ABRLTask, Features
from bissl_fast.methods.abrl.halves import Halves
from bissl_fast.methods.abrl.method import ABRL
from bissl_fast.methods.abrl.settings import ABRLSettings
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.train import Training, train
from bissl_fast.pretext import Learner
from tests.data import published
from tests.methods.conftest import SMALL, train_arguments, write_images

ABRL_SMALL = (
    *("--methods", "abrl", "--abrl.batch-size", "6", "--abrl.epochs", "2", "--pretrain.epochs", "1"),
    *("--loop.checkpoint-seconds", "3600"),
)


def training(data: Path, output: Path, *more: str) -> Training:
    return Training(parse_config(train_arguments(data, output, *ABRL_SMALL, *more)), Console(quiet=True))


def arm(run: Training) -> ABRL:
    method = run.arms["abrl"][0]
    assert isinstance(method, ABRL)
    return method


def abrl_stage(data: Path, output: Path, *more: str) -> Path:
    run = training(data, output, *more)
    return arm(run).backbone(run.context).folder


def rows(images: ImageSet) -> Counter[bytes]:
    return Counter(image.tobytes() for image in images.images)


def test_an_arm_among_others_is_trained_fine_tuned_tested_and_reported(small_data: Path, tmp_path: Path) -> None:
    arguments = train_arguments(
        small_data, tmp_path, *ABRL_SMALL, "--methods", "baseline,abrl", "--finetune.epochs", "2"
    )
    folder = train(parse_config(arguments), Console(quiet=True))
    print_results(folder, Console(quiet=True))
    results = json.loads((folder / "results.json").read_text())["arms"]
    assert list(results) == ["baseline", "abrl"]
    assert results["abrl"]["title"] == "ABRL"
    assert len(results["abrl"]["scores"]["top1"]) == 1
    assert "ABRL" in (folder / "table.md").read_text()
    assert 'class="missing"' not in (folder / "report.html").read_text()
    records = RunFolder(folder).metrics("abrl")
    assert [record["epoch"] for record in records] == [1, 2]
    assert {"val_top1", "outer_loss", "inner_gradient", "cosine_to_unrolled", "spread"} <= set(records[0])
    best = max(records, key=lambda record: record["val_top1"])
    kept = load_file(folder / "abrl" / "weights.safetensors")
    assert {name.split(".")[0] for name in kept} == {"backbone", "head"}
    assert best["val_top1"] >= records[-1]["val_top1"]


def test_images_of_the_validation_and_test_splits_train_nothing(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ImageSet] = []
    loader: Callable[..., Any] = Pipeline.loader

    def noted(self: Pipeline, images: ImageSet, *rest: Any) -> Any:
        seen.append(images)
        return loader(self, images, *rest)

    monkeypatch.setattr(Pipeline, "loader", noted)
    run = training(small_data, tmp_path, "--abrl.start", "weights")
    arm(run).backbone(run.context)
    splits, (head, encoder) = run.context.data.splits, seen
    assert rows(head) + rows(encoder) == rows(splits.train)
    assert not rows(head) & rows(encoder)
    assert not (rows(head) + rows(encoder)) & (rows(splits.val) + rows(splits.test))


def labelled(labels: np.ndarray, classes: int) -> ImageSet:
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8)
    return ImageSet("toy", images, labels, tuple(f"c{k}" for k in range(classes)), "hash")


def test_the_cut_takes_its_share_of_every_class_and_is_that_of_its_seed() -> None:
    images = labelled(np.repeat([0, 1, 2], [10, 20, 5]), 3)
    train, validation = Halves(images, 0.2, 0).cut()
    assert np.bincount(validation.labels).tolist() == [2, 4, 1]
    assert rows(train) + rows(validation) == rows(images)
    assert rows(Halves(images, 0.2, 0).cut()[1]) == rows(validation)
    assert rows(Halves(images, 0.2, 1).cut()[1]) != rows(validation)
    assert np.bincount(Halves(images, 0.4, 0).cut()[1].labels).tolist() == [4, 8, 2]


def test_an_image_of_many_classes_counts_in_the_rarest() -> None:
    targets = np.full((24, 3), -1, np.int8)
    targets[:, 0] = 1
    targets[:4, 1] = 1
    targets[2:4, 2] = 1
    halves = Halves(labelled(targets, 3), 0.5, 0)
    halves.require(10)
    present = [(part.labels == 1).sum(0).tolist() for part in halves.cut()]
    assert present == [[12, 2, 1], [12, 2, 1]]


def test_a_class_of_one_image_is_refused_before_the_first_stage(small_data: Path, tmp_path: Path) -> None:
    for level in range(3):
        for split in ("train", "val", "test"):
            count = 1 if (level, split) == (2, "train") else 12
            write_images(tmp_path / "set" / split / f"class{level}", count, level, level)
    arguments = train_arguments(small_data, tmp_path, *ABRL_SMALL, "--dataset", f"folder:{tmp_path / 'set'}")
    with pytest.raises(UserError, match=r"leaves no validation image of class2: .* No share helps a class with one"):
        Training(parse_config(arguments), Console(quiet=True))
    assert not (tmp_path / "run" / "pretext-warmup").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["--abrl.batch-size", "30"],
            r"leaves \d+ validation images, fewer than a batch of 30: pass --abrl.batch-size",
        ),
        (["--abrl.validation-share", "0.95"], r"leaves \d+ training images, fewer than a batch of 6"),
        (["--abrl.damping", "0"], "abrl.damping must be positive: .* softmax head is singular .*, found 0"),
        (["--abrl.hypergradient", "converged", "--abrl.ridge", "0"], r"abrl.ridge \(ρ\) must be positive: .* minimum"),
        (["--abrl.validation-share", "1"], "abrl.validation-share must be between 0 and 1, found 1"),
        (["--abrl.inner-steps", "0"], r"abrl.inner-steps \(K\) must be at least 1, found 0"),
        (["--abrl.inner-rate", "nan"], r"abrl.inner-rate \(α\) must be finite and positive, found nan"),
        (["--abrl.penalty", "-1"], r"abrl.penalty \(λ\) must be 0 or more, found -1"),
        (["--abrl.running-covariance", "1"], r"abrl.running-covariance must be in \[0, 1\), found 1"),
        (["--abrl.epochs", "0"], "abrl.epochs must be positive, found 0"),
        (["--abrl.outer.learning-rate", "0"], r"abrl.outer.*learning-rate must be positive"),
    ],
)
def test_what_cannot_be_meant_ends_in_a_sentence(
    small_data: Path, tmp_path: Path, more: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        training(small_data, tmp_path, *more)


def test_damping_of_zero_is_no_trouble_to_estimators_that_do_not_use_it() -> None:
    assert ABRLSettings(hypergradient="unrolled", damping=0.0).head.damping == 0


COSTS = [
    (["--abrl.compare-every", "0"], 2, 0),
    (["--abrl.compare-every", "3"], 2, 2),
    (["--abrl.hypergradient", "unrolled"], 2, 0),
    (["--abrl.hypergradient", "converged"], 2, 1),
    (["--abrl.variant", "no-implicit"], 1, 0),
    (["--abrl.variant", "no-penalty"], 2, 1),
    (["--abrl.variant", "single-level"], 2, 0),
]
"""Options, passes per outer step, and comparisons in four of them."""


@pytest.mark.parametrize(("more", "per_step", "compared"), COSTS)
def test_the_cost_is_that_of_the_passes_that_are_made(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], per_step: int, compared: int
) -> None:
    run = training(small_data, tmp_path, "--abrl.steps", "4", *more)
    made: Counter[str] = Counter()
    features: Callable[..., Any] = ABRLTask._features
    loss: Callable[..., Any] = Learner.loss

    def backward(images: int) -> Callable[[torch.Tensor], None]:
        return lambda gradient: made.update(passes=1, images=images)

    def watched(self: ABRLTask, batch: Any) -> Features:
        found: Features = features(self, batch)
        if not found.rows.requires_grad:
            return found
        rows = found.rows.clone()
        rows.register_hook(backward(len(rows)))
        return replace(found, rows=rows)

    def pretext(self: Learner, views: Any) -> torch.Tensor:
        made.update(passes=1, images=len(views[0]))
        found: torch.Tensor = loss(self, views)
        return found

    monkeypatch.setattr(ABRLTask, "_features", watched)
    monkeypatch.setattr(Learner, "loss", pretext)
    monkeypatch.setattr(HessianOperator, "matmat", lambda *_: made.update(products=1))
    arm(run).backbone(run.context)
    stated = arm(run).cost(run.context)
    assert {name: made[name] for name in ("passes", "images", "products")} == vars(stated)
    assert stated.passes == 3 + 4 * per_step + compared  # the pretext warm-up has three steps


def test_within_a_budget_it_is_as_long_as_the_budget_allows(small_data: Path, tmp_path: Path) -> None:
    run = training(small_data, tmp_path, "--abrl.compare-every", "4")
    method, context = arm(run), run.context
    warmup, step = 3 * 16, 12
    least = warmup + step + 6  # the first step is compared with the unrolled gradient
    for budget in (least, least + 11, least + 12, 200, 501, 5000):
        fitted = method.within(context, budget)
        assert fitted.cost(context).images <= budget
        longer = replace(fitted, settings=replace(fitted.settings, steps=(fitted.settings.steps or 0) + 1))
        assert longer.cost(context).images > budget
    with pytest.raises(
        UserError, match=rf"one outer step take passes of {least} images, and the budget is {least - 1}"
    ):
        method.within(context, least - 1)
    assert replace(method, settings=replace(method.settings, start="weights")).within(context, 18).settings.steps == 1


def test_it_starts_from_the_pretext_warm_up_that_bissl_starts_from(small_data: Path, tmp_path: Path) -> None:
    run = training(small_data, tmp_path, "--methods", "bissl,abrl", "--bissl.alternations", "1", "--head.epochs", "1")
    run.arms["bissl"][0].backbone(run.context)
    warmed = (tmp_path / "run" / "pretext-warmup" / "DONE").stat().st_mtime_ns
    stage = arm(run).backbone(run.context)
    assert (tmp_path / "run" / "pretext-warmup" / "DONE").stat().st_mtime_ns == warmed
    key = [json.loads((tmp_path / "run" / name / "key.json").read_text())["inputs"] for name in ("bissl", "abrl")]
    assert key[0]["backbone"] == key[1]["backbone"]
    assert stage.folder.name == "abrl"


@pytest.mark.parametrize("start", ["pretext", "weights"])
def test_the_first_step_is_taken_from_where_it_is_told_to_start(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    begun: list[dict[str, torch.Tensor]] = []
    step: Callable[..., Any] = ABRLTask.step

    def noted(self: ABRLTask, index: int) -> Any:
        begun.append({name: value.clone() for name, value in self.network.backbone.state_dict().items()})
        return step(self, index)

    monkeypatch.setattr(ABRLTask, "step", noted)
    run = training(small_data, tmp_path, "--abrl.start", start, "--abrl.steps", "1")
    arm(run).backbone(run.context)
    warmup = tmp_path / "run" / "pretext-warmup"
    assert warmup.exists() == (start == "pretext")
    expected = run.context.backbone().state_dict()
    if start == "pretext":
        saved = load_file(warmup / "weights.safetensors")
        expected = {name: saved[f"backbone.{name}"] for name in expected}
    assert all(torch.equal(begun[0][name], value) for name, value in expected.items())
    assert arm(run).cost(run.context).passes == 2 + 1 + (3 if start == "pretext" else 0)


@pytest.mark.parametrize(
    "more",
    [
        ["--abrl.running-covariance", "0.9"],
        pytest.param(["--abrl.variant", "single-level"], marks=pytest.mark.slow),
    ],
)
def test_broken_off_within_a_step_it_ends_with_the_same_bits(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    whole = abrl_stage(small_data, tmp_path / "whole", *more)
    outer: Callable[..., Any] = ABRLTask._outer_loss

    def breaking(self: ABRLTask, index: int, *rest: Any, **named: Any) -> Any:
        if index == 7:  # in the second epoch, the head's K steps done
            raise KeyboardInterrupt
        return outer(self, index, *rest, **named)

    monkeypatch.setattr(ABRLTask, "_outer_loss", breaking)
    with pytest.raises(KeyboardInterrupt):
        abrl_stage(small_data, tmp_path / "broken", *more, "--loop.checkpoint-seconds", "0")
    monkeypatch.undo()
    assert (tmp_path / "broken" / "run" / "abrl" / "checkpoint.pt").exists()
    again = abrl_stage(small_data, tmp_path / "broken", *more)
    first, second = load_file(whole / "weights.safetensors"), load_file(again / "weights.safetensors")
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("hypergradient", ["ift", "converged"])
def test_a_multi_label_set_is_trained_on_its_own_loss(tmp_path: Path, hypergradient: str) -> None:
    published.voc2007(tmp_path, CLASSES, per_split=60)
    named = ["--dataset", "voc2007", "--pretext-dataset", "voc2007", "--data-root", str(tmp_path), "--name", "run"]
    place = ["--cache-dir", str(tmp_path / "cache"), "--output", str(tmp_path / "runs")]
    config = parse_config(
        [*named, *place, *SMALL, *ABRL_SMALL, "--abrl.steps", "3", "--abrl.hypergradient", hypergradient]
    )
    run = Training(config, Console(quiet=True))
    stage = arm(run).backbone(run.context)
    records = RunFolder(tmp_path / "runs" / "run").metrics("abrl")
    assert all("val_map" in record for record in records)
    key = json.loads((stage.folder / "key.json").read_text())["settings"]
    assert (key["multilabel_loss"], key["difficult"]) == ("bce", "ignored")


def test_a_run_says_what_its_estimator_is_exact_for_and_where_the_penalty_ends(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*more: str) -> str:
        arguments = train_arguments(small_data, tmp_path, *ABRL_SMALL, *more)
        Training(parse_config(arguments), Console(width=1000))
        return capsys.readouterr().out

    said = told("--abrl.hypergradient", "unrolled")
    assert "abrl: unrolled is exact for the map of K gradient steps" in said
    assert "of 96 features its distance from the identity is 91 or more, whatever the encoder" in said
    assert "or more, whatever the encoder" not in told("--abrl.running-covariance", "0.9")
    assert "or more, whatever the encoder" not in told("--abrl.variant", "no-penalty")
    assert "abrl: " not in told("--abrl.variant", "no-implicit", "--abrl.running-covariance", "0.9")


def test_the_preset_paper_has_the_documents_numbers() -> None:
    abrl = preset_config("paper", "cub200").abrl
    assert (abrl.inner_steps, abrl.inner_rate, abrl.epochs) == (5, 0.001, 100)
    outer = abrl.outer
    assert (outer.learning_rate, outer.momentum, outer.weight_decay, outer.final_share) == (0.01, 0.9, 1e-4, 0)
    assert (abrl.hypergradient, abrl.variant) == ("ift", "full")
