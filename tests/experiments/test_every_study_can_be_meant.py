"""Every arm of every ablation is a run that can start, named and labelled apart from the others."""

from pathlib import Path

import pytest
from rich.console import Console

from bissl_fast.cli import main
from bissl_fast.errors import UserError
from bissl_fast.experiments.comparison import Experiment
from bissl_fast.experiments.studies import STUDIES
from bissl_fast.methods.bissl import method as bissl
from bissl_fast.methods.gessl import method as gessl
from tests.experiments.comparisons import comparison

SMALL = """
--gessl.steps 2 --gessl.tasks 2 --gessl.batch-size 4 --fussl.first-epochs 2 --fussl.second-epochs 1
--abrl.batch-size 4 --abrl.epochs 1 --bissl.stored-batches 1
""".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def without_trials_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which every method has tests of."""
    for method in (bissl, gessl):
        monkeypatch.setattr(method, "kept_or_tried", lambda run, bilevel, *_: bilevel)
    monkeypatch.setattr(gessl, "failure_of", lambda *_: "")


@pytest.mark.parametrize("name", STUDIES)
def test_its_arms_can_start_and_differ(name: str, small_data: Path, tmp_path: Path) -> None:
    fewer = {"gessl-tasks": ["--gessl.batch-size", "2"], "gessl-batch": ["--gessl.tasks", "1"]}
    config = comparison(small_data, tmp_path, *SMALL, *fewer.get(name, []))
    study = STUDIES[name]
    question = study.question(name, config)
    plan = Experiment(config, question, Console(quiet=True)).plan
    assert [row.label for row in plan.rows] == [arm.label for arm in question.arms]
    for names in ([row.label for row in plan.rows], [row.title for row in plan.rows]):
        assert len(set(names)) == len(names) >= 3
    assert all(label == Path(label).name and label.isascii() for label in (row.label for row in plan.rows))
    assert plan.reference in {row.label for row in plan.rows}
    assert len({tuple(row.settings.items()) for row in plan.rows}) == len(plan.rows)
    assert plan.budget is None
    assert plan.rows[0].runs[1] == f"{plan.rows[0].label}-seed-1"


def test_a_refusal_names_the_arm(small_data: Path, tmp_path: Path) -> None:
    config = comparison(small_data, tmp_path, *SMALL)
    question = STUDIES["gessl-tasks"].question("gessl-tasks", config)
    with pytest.raises(UserError, match=r"^n-16-seed-0: --gessl.tasks 16 of --gessl.batch-size 4 are 64 images"):
        Experiment(config, question, Console(quiet=True)).run()
    assert not list(tmp_path.rglob("key.json"))


def test_the_study_of_lengths_takes_no_budget(small_data: Path, tmp_path: Path) -> None:
    config = comparison(small_data, tmp_path, "--budget", "4")
    with pytest.raises(UserError, match="fussl-controls compares trainings of different lengths: leave out --budget"):
        STUDIES["fussl-controls"].question("fussl-controls", config)


def test_the_controls_of_fussl_have_the_lengths_of_its_paper_and_of_its_cost(small_data: Path, tmp_path: Path) -> None:
    config = comparison(small_data, tmp_path, *SMALL)
    plan = Experiment(config, STUDIES["fussl-controls"].question("x", config), Console(quiet=True)).plan
    epochs = [row.planned.model_epochs for row in plan.rows]
    assert epochs == [3 * 2 + 1, 2 + 1, 3 * 2 + 1]


def test_the_list_names_every_study_and_what_it_varies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--list"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told and study.about in told for name, study in STUDIES.items())
