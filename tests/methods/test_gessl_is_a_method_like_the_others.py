"""GeSSL as an arm of a run: its cost, its budget, kill and resume, what it refuses, and every pretext task."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from bissl_fast.bilevel import HessianOperator
from bissl_fast.cli import main
from bissl_fast.errors import UserError
from bissl_fast.methods.config import TrainConfig, load_config, save_config
from bissl_fast.methods.gessl.algorithm import GeSSLTask
from bissl_fast.methods.gessl.method import GeSSL
from bissl_fast.methods.gessl.settings import TOLD
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.run import Run
from bissl_fast.methods.train import Training, describe
from bissl_fast.pretext import Learner
from bissl_fast.pretext.instances import Instances
from bissl_fast.training.stage import stage_key
from tests.methods.tasks import SMALL_TASKS, mostly_slow, small_arguments, small_config

SHORT = (
    *("--methods", "gessl", "--gessl.tasks", "2", "--gessl.batch-size", "8", "--gessl.target-steps", "2"),
    *("--gessl.steps", "3", "--gessl.inner-rate", "0.001", "--gessl.outer.learning-rate", "0.001"),
    *("--loop.checkpoint-seconds", "3600"),
)


def options(task: str, *more: str) -> tuple[str, ...]:
    """Short ones; W-MSE's slices are of eight images."""
    return (*SHORT, *more)


def training(task: str, data: Path, output: Path, *more: str, console: Console | None = None) -> Training:
    return Training(small_config(task, data, output, *options(task, *more)), console or Console(quiet=True))


def backbone(made: Training) -> Path:
    return made.arms["gessl"][0].backbone(made.context).folder


@pytest.mark.parametrize("name", mostly_slow(SMALL_TASKS, "moco", "dino"))  # queue and head; centre and prototypes
def test_every_pretext_task_trains_and_resumes_with_the_same_bits(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Broken off between the optimiser's step and the state's move; with a head where there are no prototypes."""
    kind = "native" if name in ("swav", "dino") else "head" if name in ("simclr", "moco") else "similarity"
    more = ("--gessl.probabilities", kind, "--gessl.tasks", "1", "--gessl.target-steps", "1", "--gessl.steps", "2")
    whole = backbone(training(name, small_data, tmp_path / "whole", *more))
    advance: Callable[..., Any] = Learner.advance
    calls = iter(range(2))

    def breaking(*arguments: Any) -> Any:
        if next(calls, None) == 1:
            raise KeyboardInterrupt
        return advance(*arguments)

    monkeypatch.setattr(Learner, "advance", breaking)
    with pytest.raises(KeyboardInterrupt):
        backbone(training(name, small_data, tmp_path / "broken", *more, "--loop.checkpoint-seconds", "0"))
    monkeypatch.undo()
    assert (tmp_path / "broken" / "run" / "gessl" / "checkpoint.pt").exists()
    broken = backbone(training(name, small_data, tmp_path / "broken", *more))
    one, other = (load_file(folder / "weights.safetensors") for folder in (whole, broken))
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert any(key.startswith("backbone.") for key in one)
    assert ("classifier.weight" in one) == (kind == "head")


@pytest.mark.parametrize("differentiation", mostly_slow(TOLD, *(set(TOLD) - {"neumann"})))  # whose count is that of cg
def test_images_passes_and_products_are_those_that_are_made(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, differentiation: str
) -> None:
    more = ("--gessl.differentiation", differentiation, "--gessl.inner-steps", "2", "--gessl.check-every", "2")
    made = training("simclr", small_data, tmp_path, *more)
    count: Counter[str] = Counter()

    def counted(kind: type, name: str, note: Callable[..., None]) -> None:
        call = getattr(kind, name)

        def wrapper(self: Any, *given: Any) -> Any:
            note(self, *given)
            return call(self, *given)

        monkeypatch.setattr(kind, name, wrapper)

    def compared(task: GeSSLTask, *_: Any) -> None:
        if task.settings.differentiation != "lookahead":  # which takes no gradient of it
            count.update(passes=1, images=8)

    counted(Instances, "gradient", lambda _, task: count.update(passes=1, images=len(task.views[0])))
    counted(GeSSLTask, "_compare", compared)
    counted(HessianOperator, "matmat", lambda hessian, v: count.update(products=len(v) * len(hessian._batches)))
    backbone(made)
    stated = made.arms["gessl"][0].cost(made.context).told(48)
    assert {key: count[key] for key in ("images", "passes", "products")} == {
        key: stated[key] for key in ("images", "passes", "products")
    }
    assert stated["model_epochs"] == stated["images"] / 48
    assert (stated["products"] > 0) == (differentiation != "lookahead")  # some of the check alone


def test_at_the_papers_settings_fd_takes_fourteen_gradients_of_a_task() -> None:
    settings = preset_config("paper", "dtd").gessl
    assert (settings.tasks, settings.batch_size, settings.inner_steps, settings.target_steps) == (8, 16, 1, 10)
    assert (settings.outer.momentum, settings.outer.weight_decay) == (0.9, 1e-4)
    assert (settings.differentiation, settings.loss, settings.probabilities) == ("fd", "kl", "similarity")
    assert settings.cost(1).passes == 14 * 8
    assert settings.cost(10).images == 10 * 14 * 8 * 16


@pytest.mark.parametrize("left", [0, 1, 95])
def test_within_a_budget_it_is_the_longest_that_fits(small_data: Path, tmp_path: Path, left: int) -> None:
    made = training("simclr", small_data, tmp_path)
    method = made.arms["gessl"][0]
    assert isinstance(method, GeSSL)
    step = method.settings.cost(1).images
    assert step == 2 * 8 * (1 + 2 + 1 + 2) == 96
    fitted = method.within(made.context, 7 * step + left)
    assert fitted.cost(made.context).images == 7 * step
    with pytest.raises(UserError, match=r"gessl: one outer step takes passes of 96 images .* the budget is 95"):
        method.within(made.context, step - 1)


def test_epochs_are_of_images_in_tasks(small_data: Path, tmp_path: Path) -> None:
    config = small_config("simclr", small_data, tmp_path, *SHORT, "--gessl.steps", "None", "--gessl.epochs", "5")
    made = Training(config, Console(quiet=True))
    assert made.arms["gessl"][0].cost(made.context).passes == 5 * (48 // 16) * 2 * 6


@pytest.mark.parametrize(
    ("task", "arguments", "sentence"),
    [
        ("simclr", "--gessl.inner-rate 0", r"--gessl.inner-rate \(α\) must be positive, found 0.0"),
        ("simclr", "--gessl.inner-steps 0", "--gessl.inner-steps must be at least 1, found 0"),
        ("simclr", "--gessl.target-steps 0", "--gessl.target-steps must be at least 1, found 0"),
        ("simclr", "--gessl.batch-size 1", r"--gessl.batch-size \(B\) must be at least 2: one class is no task"),
        ("simclr", "--gessl.temperature nan", r"--gessl.temperature \(τ\) must be finite and positive"),
        ("simclr", "--gessl.steps 0", "--gessl.steps must be at least 1, found 0"),
        ("simclr", "--gessl.outer.learning-rate 0", r"\(upper, gessl.outer, .*\).learning-rate must be positive"),
        (
            "simclr",
            "--gessl.tasks 7",
            "--gessl.tasks 7 of --gessl.batch-size 8 are 56 images per outer step",
        ),
        ("byol", "--gessl.probabilities native", "native is for tasks with prototypes .*, and --pretext byol has none"),
        ("wmse", "--gessl.batch-size 12", "--gessl.batch-size must be a multiple of 8, as --pretext wmse is set"),
        (  # all tasks' keys enter it at once
            "moco",
            "--gessl.batch-size 8 --gessl.tasks 6",
            "--pretext.queue must hold the 48 keys of a step of --gessl.tasks × --gessl.batch-size 48, found 40",
        ),
        (
            "simclr",
            "--gessl.differentiation through --bilevel.mode gauss_newton",
            "through needs products with the Hessian, and --bilevel.mode gauss_newton is another matrix",
        ),
    ],
)
def test_what_cannot_be_meant_ends_in_a_sentence(
    small_data: Path, tmp_path: Path, task: str, arguments: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        training(task, small_data, tmp_path, *arguments.split())
    assert not (tmp_path / "run" / "gessl").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--gessl.differentiation cg", "gessl: outer gradient by cg: (I + αK∇²ℓ)⁻¹ g by conjugate gradients"),
        ("--gessl.differentiation first-order", "gessl: outer gradient by first-order: g itself"),
        ("--gessl.target algorithm-box --gessl.target-steps 1", "with λ = 1 is the task's own model: nothing trains"),
        (
            "--gessl.probabilities head --gessl.temperature 0.3",
            "gessl: --gessl.temperature has no effect with --gessl.probabilities head",
        ),
        ("--backbone test_vit --images.size 160", "gessl: outer gradient by fd"),
        ("--pretrain.chunk 4", "gessl: --pretrain.chunk has no effect on its steps"),
    ],
)
def test_what_a_user_should_know_is_told_before_the_first_step(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, sentence: str
) -> None:
    training("simclr", small_data, tmp_path, *arguments.split(), console=Console(width=300))
    assert sentence in capsys.readouterr().out


def test_a_capture_for_bissl_leaves_its_checks_alone(small_data: Path, tmp_path: Path) -> None:
    more = ("--bilevel.mode", "linearized", "--bilevel.capture", "--gessl.steps", "1")
    made = training("simclr", small_data, tmp_path, *more)
    records = (backbone(made) / "metrics.jsonl").read_text().splitlines()
    assert any("cos_through" in json.loads(record) for record in records)


def test_its_presets_survive_their_file(tmp_path: Path) -> None:
    for preset in ("paper", "official", "quick"):
        for task in ("simclr", "wmse"):
            config = preset_config(preset, "dtd", task)  # type: ignore[arg-type]
            config.pretext.require_batch(config.gessl.batch_size, "gessl.batch-size")
            (tmp_path / "config.yaml").write_text(save_config(config), encoding="utf-8")
            found = load_config(tmp_path / "config.yaml", TrainConfig)
            assert found == config
            assert save_config(found) == save_config(config)


def test_its_stage_is_found_again_by_the_config_that_a_run_leaves(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config("simclr", small_data, tmp_path, *SHORT)
    config = replace(config, gessl=replace(config.gessl, epochs=2))  # as a preset may write it
    (tmp_path / "config.yaml").write_text(save_config(config), encoding="utf-8")
    keys: list[str] = []
    monkeypatch.setattr(Run, "stage", lambda run, name, settings, *_: keys.append(stage_key(name, settings, {})[0]))
    for each in (config, load_config(tmp_path / "config.yaml", TrainConfig)):
        made = Training(each, Console(quiet=True))
        made.arms["gessl"][0].backbone(made.context)
    assert keys[0] == keys[1]


def test_from_end_to_end_beside_the_baseline(small_data: Path, tmp_path: Path) -> None:
    arguments = small_arguments("simclr", small_data, tmp_path, *SHORT, "--methods", "gessl,baseline")
    assert main(["train", *arguments, "--pretrain.epochs", "1", "--finetune.epochs", "1"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["arms"].keys() == {"gessl", "baseline"}
    assert results["arms"]["gessl"]["title"] == "GeSSL"
    first = json.loads((tmp_path / "run" / "gessl" / "metrics.jsonl").read_text().splitlines()[0])
    wanted = {"loss", "gradient_norm", "outer_loss", "outer_gradient_norm", "task_accuracy", "cos_through", "spread"}
    assert wanted <= first.keys()
    assert (tmp_path / "run" / "report.html").is_file()


def test_sigma_and_one_step_measure_a_stage_and_tell_what_they_cannot(
    small_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = training("simclr", small_data, tmp_path, "--gessl.steps", "1", "--gessl.check-every", "0")
    stage = backbone(made)
    describe(made.context, made.config)
    before = (stage / "weights.safetensors").read_bytes()
    labelled = f"folder:{small_data / 'labelled'}"
    few = ["--ways", "3", "--shots", "1", "--queries", "2", "--tasks", "5"]
    cache = ["--cache-dir", str(small_data / "cache")]
    assert main(["sigma", str(stage), "--dataset", labelled, *few, *cache]) == 0
    assert "(uniform: 1.0986), accuracy" in capsys.readouterr().out
    assert main(["one-step", str(stage), "--tasks", "2", "--batch-size", "8"]) == 0
    assert f"after one step (chance: {100 / 15:.1f} %)" in " ".join(capsys.readouterr().out.split())
    assert (stage / "weights.safetensors").read_bytes() == before
    for arguments, sentence in (
        (["sigma", str(stage), "--dataset", labelled, *cache], "a task needs 5 classes of 20 images"),
        (["sigma", str(stage), "--dataset", labelled, "--ways", "1"], "--ways must be at least 2"),
        (["one-step", str(tmp_path)], "is no finished stage of a run"),
        (["one-step", str(stage), "--batch-size", "99"], "--batch-size must be at most the 48 images"),
        (["one-step", str(stage), "--inner-rate", "0"], "--inner-rate must be positive"),
    ):
        assert main(arguments) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
