"""A run with --search.trials fine-tunes by what its trials have found, killed in between or helped by others or not."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bissl_fast.cli import main
from bissl_fast.cli.train import parse_config
from bissl_fast.errors import UserError
from bissl_fast.evaluation.finetuning import FineTuneTask
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.table import results_table
from bissl_fast.methods.config import TrainConfig, save_config
from bissl_fast.methods.search.sweep import searching, sweep
from bissl_fast.methods.train import train
from tests.methods.conftest import train_arguments

SEARCH = """
--methods bissl,baseline --pretrain.epochs 1 --pretrain.warmup-epochs 0.5 --head.epochs 1 --bissl.alternations 1
--bissl.upper-steps 1 --bissl.solver-iterations 1 --finetune.epochs 2 --statistics.batches 1 --search.trials 4
--loop.checkpoint-seconds 3600 --search.rule accuracy --search.learning-rate 1e-3 0.1
""".split()  # noqa: SIM905
EPOCH = 5  # steps, of 39 images in batches of 8
TRIAL = 2 * EPOCH


class Killed(BaseException):
    """The process is no more."""


class Steps:
    """Steps of fine-tuning by their peak rate, and a kill at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rates: Counter[float] = Counter()
        self.last = -1
        step = FineTuneTask.step

        def counted(task: FineTuneTask, index: int) -> Any:
            if self.rates.total() == self.last:
                raise Killed
            self.rates[task._peaks[0]] += 1
            return step(task, index)

        monkeypatch.setattr(FineTuneTask, "step", counted)


def config(data: Path, output: Path, *more: str) -> TrainConfig:
    return parse_config([*train_arguments(data, output), *SEARCH, *more]).located()


def found(run: Path, arm: str) -> tuple[dict[str, Any], str]:
    stage = run / f"search-{arm}"
    return json.loads((stage / "best.json").read_text()), (stage / "trials.csv").read_text()


@pytest.fixture(scope="module")
def whole(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Steps]:
    """A run that nothing has disturbed, and the steps that it took."""
    settings = config(small_data, tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        train(settings, Console(quiet=True))
    return settings, steps


def test_every_arm_tries_the_same_configurations_and_is_fine_tuned_with_the_one_that_is_chosen(
    whole: tuple[TrainConfig, Steps],
) -> None:
    settings, steps = whole
    run = settings.run_folder
    results = json.loads((run / "results.json").read_text())["arms"]
    tried, chosen = [], Counter[float]()
    for arm in ("bissl", "baseline"):
        best, table = found(run, arm)
        rows = [row.split(",") for row in table.splitlines()[1:]]
        tried.append([row[:3] for row in rows])
        assert best["score"] == max(float(row[5]) for row in rows)
        sgd = json.loads((run / f"finetune-{arm}-0" / "key.json").read_text())["settings"]["sgd"]
        assert (sgd["learning_rate"], sgd["weight_decay"]) == (best["learning_rate"], best["weight_decay"])
        assert results[arm]["search"].items() >= best.items()
        chosen[best["learning_rate"]] += 1
    assert tried[0] == tried[1]
    assert len(tried[0]) == 4
    assert steps.rates == {float(row[1]): (2 + chosen[float(row[1])]) * TRIAL for row in tried[0]}


def test_the_table_tells_that_rates_were_searched(whole: tuple[TrainConfig, Steps]) -> None:
    run = whole[0].run_folder
    table = results_table(RunFolder(run).results()).to_markdown()
    best = found(run, "bissl")[0]
    assert f"| BiSSL | {best['learning_rate']:.3g} | {best['weight_decay']:.3g} | {best['score']:.1f} |" in table
    assert "Rule: the highest score." in table


def test_killed_within_a_trial_a_run_makes_that_trial_alone_again_and_ends_with_the_same(
    whole: tuple[TrainConfig, Steps], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(whole[0], output=tmp_path)
    for stage in ("pretext-warmup", "head-warmup", "bissl", "pretext-baseline"):
        shutil.copytree(whole[0].run_folder / stage, settings.run_folder / stage)
    steps = Steps(monkeypatch)
    for last in (
        2 * TRIAL + 3,
        2 * TRIAL + 3 + 3 * TRIAL + 1,
    ):  # in the third trial of one arm, the second of the other
        steps.last = last
        with pytest.raises(Killed):
            train(settings, Console(quiet=True))
    steps.last = -1
    (helped,) = searching(settings.run_folder)
    sweep(helped, [], Console(quiet=True))  # makes what is left
    assert steps.rates.total() == 8 * TRIAL + 3 + 1
    train(settings, Console(quiet=True))
    assert steps.rates.total() == 10 * TRIAL + 3 + 1
    for arm in ("bissl", "baseline"):
        assert found(settings.run_folder, arm) == found(whole[0].run_folder, arm)


def test_another_rule_chooses_among_the_trials_that_are_there_and_more_trials_go_on_from_them(
    whole: tuple[TrainConfig, Steps], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(whole[0], output=tmp_path)
    shutil.copytree(whole[0].run_folder, settings.run_folder)
    steps = Steps(monkeypatch)
    train(settings, Console(quiet=True))
    assert steps.rates.total() == 0
    more = replace(settings, search=replace(settings.search, trials=5, rule="balanced"), methods=("baseline",))
    train(more, Console(quiet=True))
    best, table = found(settings.run_folder, "baseline")
    assert table.startswith(found(whole[0].run_folder, "baseline")[1])
    made = TRIAL + (best["learning_rate"] != found(whole[0].run_folder, "baseline")[0]["learning_rate"]) * TRIAL
    assert steps.rates.total() == made


def test_results_of_other_settings_are_gone_before_a_run_has_its_own(
    whole: tuple[TrainConfig, Steps], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(whole[0], output=tmp_path)
    shutil.copytree(whole[0].run_folder, settings.run_folder)
    Steps(monkeypatch).last = 0
    with pytest.raises(Killed):
        train(replace(settings, search=replace(settings.search, trials=5)), Console(quiet=True))
    assert not (settings.run_folder / "results.json").exists()


def test_controls_are_fine_tuned_with_the_rates_that_were_found_for_the_baseline(
    whole: tuple[TrainConfig, Steps], tmp_path: Path
) -> None:
    settings = replace(whole[0], output=tmp_path, methods=("baseline",), controls=True)
    shutil.copytree(whole[0].run_folder, settings.run_folder)
    run = train(settings, Console(quiet=True))
    kept = [json.loads((run / f"finetune-{name}-0" / "key.json").read_text()) for name in ("untrained", "baseline")]
    assert kept[0]["settings"]["sgd"] == kept[1]["settings"]["sgd"]


def test_a_run_takes_the_rates_that_another_has_searched(
    whole: tuple[TrainConfig, Steps], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = whole[0]
    taken = replace(searched.search, trials=0, rates_of=searched.run_folder)
    settings = replace(searched, output=tmp_path, methods=("baseline",), seed=1, search=taken)
    steps = Steps(monkeypatch)
    train(settings, Console(quiet=True))
    rate = found(searched.run_folder, "baseline")[0]["learning_rate"]
    assert steps.rates == {rate: TRIAL}
    told = json.loads((settings.run_folder / "results.json").read_text())["arms"]["baseline"]["search"]
    assert (told["of"], told["learning_rate"]) == ("run", rate)
    lacking = replace(settings, name="lacking", search=replace(taken, rates_of=tmp_path))
    with pytest.raises(UserError, match="search-baseline tells no rates"):
        train(lacking, Console(quiet=True))
    assert not list(lacking.run_folder.glob("*/key.json"))  # before hours of training


def test_a_server_that_does_not_answer_is_told_before_the_first_stage(
    whole: tuple[TrainConfig, Steps], tmp_path: Path
) -> None:
    pytest.importorskip("psycopg")
    search = replace(whole[0].search, storage=f"postgresql:///trials?host={tmp_path}")  # no server's socket is there
    settings = replace(whole[0], output=tmp_path, search=search)
    with pytest.raises(UserError, match=r"the database of the search, .+, does not serve \(.+\): mend it"):
        train(settings, Console(quiet=True))
    assert not list(settings.run_folder.glob("*/key.json"))


def test_rates_at_which_training_diverges_are_told_apart(whole: tuple[TrainConfig, Steps], tmp_path: Path) -> None:
    search = replace(whole[0].search, trials=2, learning_rate=(1e30, 1e31))
    settings = replace(whole[0], output=tmp_path, methods=("baseline",), search=search)
    with pytest.raises(UserError, match="None of the 2 trials has trained to its end with finite numbers"):
        train(settings, Console(quiet=True))


def test_sweep_lists_trials_and_the_best_so_far(
    whole: tuple[TrainConfig, Steps], capsys: pytest.CaptureFixture[str]
) -> None:
    run = whole[0].run_folder
    assert main(["sweep", str(run), "--list"]) == 0
    told = capsys.readouterr().out
    assert told.count("4 of 4") == 2
    assert f"{found(run, 'baseline')[0]['learning_rate']:.3g}" in told
    assert main(["sweep", str(run), "--arms", "gessl"]) == 2
    assert "has no arm 'gessl'; it has bissl and baseline" in capsys.readouterr().err
    assert main(["sweep", str(run.parent)]) == 2
    assert "config.yaml cannot be read" in capsys.readouterr().err


def test_a_process_that_helps_waits_for_backbones_and_ends_with_the_one_it_is_tied_to(
    small_data: Path, tmp_path: Path
) -> None:
    settings = config(small_data, tmp_path)
    settings.run_folder.mkdir()
    (settings.run_folder / "config.yaml").write_text(save_config(settings))
    command = [sys.executable, "-m", "bissl_fast.cli", "sweep", str(settings.run_folder), "--tied"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert any(b"waits for the backbones of bissl and baseline" in line for line in process.stdout)
        process.stdin.close()
        assert process.wait(60) == 130
        assert b"Go on with: bissl-fast sweep" in process.stderr.read()
