"""A comparison gives every arm the same budget, tells it before it starts, and makes no run twice."""

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.evaluation.comparison import read_comparison
from bissl_fast.evaluation.plan import read_plan
from bissl_fast.experiments import comparison as module
from bissl_fast.experiments.comparison import Arm, Question, compare, laid_over, of_methods, search_words
from bissl_fast.methods.config import ComparisonConfig, TrainConfig
from bissl_fast.methods.train import Training, methods_of, train
from tests.experiments.comparisons import Killed, Work, comparison

IMAGES = 48  # of the unlabelled set


def quiet(config: ComparisonConfig) -> Path:
    return compare(config, of_methods(config), Console(quiet=True))


def compared(folder: Path) -> dict[str, Any]:
    """What a comparison has found, without times and memory."""
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    for arm in found["arms"].values():
        assert arm["cost"].pop("seconds") > 0
        assert arm["cost"].pop("memory") > 0
    return found


@pytest.fixture(autouse=True)
def without_reports_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which take longer than such runs."""
    monkeypatch.setattr(module, "write_report", lambda folder: folder)


@pytest.fixture(scope="module")
def whole(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ComparisonConfig, Work]:
    """A comparison of two seeds, and the work that it took."""
    config = comparison(small_data, tmp_path_factory.mktemp("whole"), "--seeds", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_report", lambda folder: folder)
        work = Work(patch)
        quiet(config)
    return config, work


def test_the_passes_of_every_arm_are_those_of_its_budget(whole: tuple[ComparisonConfig, Work]) -> None:
    config, work = whole
    found = compared(config.run_folder)
    budget = found["budget"]["images"]
    assert budget == 2 * IMAGES + 4 * 2 * 16  # the baseline's warm-up and T · N_L steps
    alternation = 2 * 16 + 2 * 8
    for seed in (0, 1):
        assert work.images[seed, "baseline"] == budget
        assert budget - alternation < work.images[seed, "bissl"] <= budget
        for arm in ("baseline", "bissl"):
            assert work.images[seed, arm] == found["arms"][arm]["cost"]["images"]
    (row,) = (row for row in found["rows"] if row["label"] == "bissl")
    assert row["configured"]["images"] > budget >= row["planned"]["images"]


def test_nothing_is_run_twice_and_a_further_seed_alone_is_run(
    whole: tuple[ComparisonConfig, Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (given, made), config = whole, replace(whole[0], output=tmp_path)
    shutil.copytree(given.run_folder, config.run_folder)
    before = compared(config.run_folder)
    work = Work(monkeypatch)
    quiet(config)
    assert (work.passes, work.tuned) == (0, 0)
    assert compared(config.run_folder) == before
    quiet(replace(config, seeds=3))
    assert set(work.images) == {(2, "bissl"), (2, "baseline")}
    assert work.tuned * 2 == made.tuned
    assert (
        compared(config.run_folder)["arms"]["bissl"]["scores"]["top1"]["means"][:2]
        == (before["arms"]["bissl"]["scores"]["top1"]["means"])
    )


def test_results_of_other_settings_are_not_counted_with_new_ones(
    whole: tuple[ComparisonConfig, Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, config = whole[0], replace(whole[0], output=tmp_path)
    shutil.copytree(given.run_folder, config.run_folder)

    def one(run: TrainConfig, *others: Any) -> Path:
        if run.seed == 1:
            raise Killed
        return train(run, *others)

    monkeypatch.setattr(module, "train", one)
    with pytest.raises(Killed):
        quiet(replace(config, finetune=replace(config.finetune, epochs=2)))
    assert list(read_comparison(config.run_folder).by_seed) == [0]


def test_killed_in_any_stage_the_same_command_ends_with_the_same_comparison(
    whole: tuple[ComparisonConfig, Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, made = whole
    broken = replace(config, output=tmp_path, loop=replace(config.loop, checkpoint_seconds=0))
    work = Work(monkeypatch)
    kills = (3, 20, made.passes // 2 + 12)  # in warm-up, baseline, and BiSSL of the second seed
    for passes in kills:
        work.last = passes
        with pytest.raises(Killed):
            quiet(broken)
    work.last = -1
    quiet(broken)
    alternation = 2 + 2
    assert work.passes - made.passes < len(kills) * alternation  # no more than a step of each kill is made again
    assert compared(broken.run_folder) == compared(config.run_folder)


def test_an_arm_over_the_budget_is_told_before_anything_starts(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(module, "train", stop)
    for more, done in (([], "is shortened to it"), (["--keep-schedules"], "runs as configured")):
        config = comparison(small_data, tmp_path, *more)
        console = Console(file=io.StringIO(), width=300, record=True)
        with pytest.raises(Killed):
            compare(config, of_methods(config), console)
        told = console.export_text()
        assert f"BiSSL as configured exceeds the budget by 29 % and {done}." in told
        assert "Budget of a backbone: 4.67 model-epochs (224 images), the cost of Only FT" in told
        assert not list(config.run_folder.glob("*/*/key.json"))


def test_with_schedules_kept_every_arm_runs_as_configured(small_data: Path, tmp_path: Path) -> None:
    config = comparison(small_data, tmp_path, "--keep-schedules", "--seeds", "1", "--budget", "4")
    plan = module.Experiment(config, of_methods(config), Console(quiet=True)).plan
    assert [row.planned == row.configured for row in plan.rows] == [True, True]
    assert plan.title(plan.rows[0]).startswith("BiSSL (over budget by ")


def test_what_cannot_work_is_refused_before_the_first_stage(small_data: Path, tmp_path: Path) -> None:
    config = comparison(small_data, tmp_path, "--budget", "2.5")
    with pytest.raises(UserError, match="bissl: the pretext warm-up and one alternation take passes of 144 images"):
        quiet(config)
    assert not list(tmp_path.rglob("key.json"))
    config = comparison(small_data, tmp_path, "--budget", "0.1", "--methods", "baseline")
    with pytest.raises(UserError, match="one step of the pretext task takes a batch of 16 images"):
        quiet(config)
    config = comparison(small_data, tmp_path, "--methods", "baseline,gessl", "--gessl.probabilities", "native")
    config = replace(config, gessl=replace(config.gessl, tasks=1, batch_size=4), budget=20)
    with pytest.raises(UserError, match=r"native is for tasks with prototypes \(swav, dino\), and --pretext simclr"):
        quiet(config)
    assert not list(tmp_path.rglob("key.json"))


@pytest.mark.parametrize("name", ["bissl", "baseline"])
@pytest.mark.parametrize("images", [160, 191, 224, 1000, 5003])
def test_within_is_the_longest_version_that_fits(small_data: Path, tmp_path: Path, name: str, images: int) -> None:
    training = Training(comparison(small_data, tmp_path).of_run("a", 0), Console(quiet=True))
    run, method = training.context, methods_of(training.config)[name][0]
    fitted = method.within(run, images)
    cost = fitted.cost(run).images
    step = {"bissl": 2 * 16 + 2 * 8, "baseline": 16}[name]
    assert cost <= images < cost + step
    assert fitted.within(run, images).cost(run) == fitted.cost(run)
    assert fitted.title == method.title


def test_a_baseline_that_was_to_have_no_training_has_none_at_any_budget(small_data: Path, tmp_path: Path) -> None:
    config = comparison(small_data, tmp_path, "--pretrain.baseline-epochs", "0").of_run("a", 0)
    training = Training(config, Console(quiet=True))
    method, _ = methods_of(config)["baseline"]
    assert method.within(training.context, 1000).cost(training.context).images == 0


def test_a_run_alone_keeps_to_its_budget_and_its_config_says_so(small_data: Path, tmp_path: Path) -> None:
    config = comparison(small_data, tmp_path, "--budget", "3.5").of_run("a", 0, budget=3.5)
    training = Training(config, Console(quiet=True))
    costs = [method.cost(training.context).images for method, _ in training.arms.values()]
    assert costs == [144, 160]  # of 168: an alternation has 48 images, a step 16
    assert all(cost <= 3.5 * IMAGES for cost in costs)


def test_arms_of_a_study_differ_by_their_settings_alone_and_share_what_these_leave_alike(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = comparison(small_data, tmp_path, "--seeds", "1")
    arms = tuple(Arm(f"p-{n}", f"N_c = {n}", "bissl", {"bissl.solver_iterations": n}) for n in (1, 2))
    work = Work(monkeypatch)
    folder = compare(config, Question("products", arms, "p-1"), Console(quiet=True))
    assert work.passes == 6 + 2 * 4 * (2 + 2)  # one warm-up, and twice four alternations
    runs = [json.loads((folder / f"p-{n}-seed-0" / "bissl" / "key.json").read_text()) for n in (1, 2)]
    assert [run["settings"]["bissl"].pop("solver_iterations") for run in runs] == [1, 2]
    assert runs[0]["settings"] == runs[1]["settings"]
    found = compared(folder)
    assert found["budget"] is None
    assert [row["settings"] for row in found["rows"]] == [{"bissl.solver_iterations": n} for n in (1, 2)]
    assert {arm: found["arms"][arm]["cost"]["products"] for arm in found["arms"]} == {"p-1": 4, "p-2": 8}
    assert not math.isnan(found["arms"]["p-2"]["scores"]["top1"]["means"][0])


def test_a_comparison_and_a_run_do_not_share_a_folder(small_data: Path, tmp_path: Path) -> None:
    config = comparison(small_data, tmp_path)
    config.run_folder.mkdir()
    (config.run_folder / "config.yaml").write_text("version: 5\n")
    with pytest.raises(UserError, match="holds a run: choose another --name"):
        quiet(config)
    (config.run_folder / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="holds a comparison of `bissl-fast compare`: choose another --name"):
        train(config.of_run("x", 0, output=config.output, name="run"), Console(quiet=True))


def test_a_setting_that_is_not_there_is_a_sentence() -> None:
    assert laid_over(TrainConfig(), {"bissl.damping": 3.0, "seed": 4}).bissl.damping == 3.0
    with pytest.raises(UserError, match=r"There is no setting 'damp' in BiSSLSettings"):
        laid_over(TrainConfig(), {"bissl.damp": 3.0})
    with pytest.raises(UserError, match=r"bissl.damping \(λ_damp\) must be 0 or more"):
        laid_over(TrainConfig(), {"bissl.damping": -3.0})


def test_rates_are_searched_on_the_first_pretext_seed_and_serve_the_others(small_data: Path, tmp_path: Path) -> None:
    config = comparison(small_data, tmp_path, "--seeds", "3", "--seed", "4", "--search.trials", "2")
    for each, source in ((False, config.run_folder / "seed-4"), (True, None)):
        made = module.Experiment(replace(config, search_each=each), of_methods(config), Console(quiet=True))
        runs = {seed: next(iter(made._runs(seed, None).values())) for seed in made.seeds}
        assert [run.search.rates_of for run in runs.values()] == [None, source, source]
        assert [run.search.trials for run in runs.values()] == ([2, 2, 2] if each else [2, 0, 0])
    assert search_words(config).endswith(
        "2 trials for each arm on its backbone of pretext seed 4 alone, and those found serve all seeds."
    )
    assert search_words(replace(config, search_each=True)).endswith("on the backbone of every pretext seed.")
    assert search_words(comparison(small_data, tmp_path)) == ""


def test_a_comparison_fine_tunes_all_seeds_by_one_search_and_tells_it_once(small_data: Path, tmp_path: Path) -> None:
    config = comparison(small_data, tmp_path, "--seeds", "2", "--search.trials", "2", "--pretrain.epochs", "1")
    arms = tuple(Arm(f"e-{n}", "", "baseline", {"pretrain.baseline_epochs": n}) for n in (1, 2))
    folder = compare(config, Question("epochs", arms, "e-1"), Console(quiet=True))
    assert read_plan(folder).search == search_words(config)
    for arm, told in compared(folder)["arms"].items():
        (found,) = told["rates"]
        best = json.loads((folder / f"{arm}-seed-0" / "search-baseline" / "best.json").read_text())
        assert found.items() <= best.items()
        for seed in (0, 1):
            key = json.loads((folder / f"{arm}-seed-{seed}" / "finetune-baseline-0" / "key.json").read_text())
            assert key["settings"]["sgd"]["learning_rate"] == found["learning_rate"]
    assert not list(folder.glob("*-seed-1/search-*"))
