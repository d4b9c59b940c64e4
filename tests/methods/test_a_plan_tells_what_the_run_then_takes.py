"""`bissl-fast plan`: stages, steps, disk and memory of a run that has not been made."""

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from bissl_fast.cli.plan import grid, sentences
from bissl_fast.errors import UserError
from bissl_fast.methods.bissl import method as bissl
from bissl_fast.methods.costs.needs import stage_needs
from bissl_fast.methods.costs.steps import LONG, Steps, measured_steps
from bissl_fast.methods.costs.work import Sizes, stages_of
from bissl_fast.methods.stages.pretrain import PretrainTask
from bissl_fast.methods.train import Training, train
from bissl_fast.training.clock import peak_memory
from bissl_fast.training.log import Metrics
from tests.methods.tasks import small_config

QUIET = Console(quiet=True)
SHORT = """
--methods bissl abrl --abrl.epochs 1 --abrl.batch-size 6 --pretrain.epochs 2 --head.epochs 2 --bissl.alternations 3
--finetune.seeds 2 --finetune.epochs 2 --loop.checkpoint-seconds 3600
""".split()  # noqa: SIM905


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_every_stage_is_planned_with_its_disk_and_memory(small_data: Path, tmp_path: Path) -> None:
    config = small_config("simclr", small_data, tmp_path, *SHORT)
    found = stage_needs(config, QUIET)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["needs.json"]
    training = Training(config, QUIET)
    folder = training.run()
    shared = Counter(training.context.stages)
    assert shared.pop("pretext-warmup") == 2
    assert [stage.stage for stage in found.stages] == list(dict.fromkeys(training.context.stages))
    assert found.costs == {name: method.cost(training.context) for name, (method, _) in training.arms.items()}
    for stage in found.stages:
        assert stage.disk == pytest.approx(size(folder / stage.stage), rel=0.2, abs=2000), stage.stage
        peak = peak_memory(folder / stage.stage)
        assert peak is not None
        assert stage.memory == pytest.approx(peak, rel=0.2), stage.stage
        lines = (folder / stage.stage / "metrics.jsonl").read_text().splitlines() if stage.steps else []
        assert not lines or json.loads(lines[-1])["step"] == stage.steps
    told = grid(found).to_markdown()
    assert all(stage.stage in told for stage in found.stages)
    assert any("products of second order" in sentence for sentence in sentences(found, config))


def test_what_stages_find_in_their_few_steps_is_not_told_as_if_it_were_of_the_run(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bissl, "troubles", lambda records: [f"a solver has given up in {len(records)} records"])
    config = small_config("simclr", small_data, tmp_path, *SHORT)
    console = Console(record=True, file=io.StringIO(), width=200)
    stage_needs(config, console)
    told = console.export_text()
    assert "NT-Xent by " in told  # of the run
    assert "bissl: a few steps are measured" in told
    assert "given up" not in told


@pytest.mark.parametrize(
    ("steps", "every", "seconds"),
    [(1, 1, 100), (1, 5, 100), (4, 1, 100 + 3 * 7), (10, 5, 100 + 7 * 1 + 2 * 7), (11, 5, 100 + 7 * 1 + 3 * 7)],
)
def test_seconds_are_those_of_the_first_step_of_plain_ones_and_of_logged_ones(
    steps: int, every: int, seconds: float
) -> None:
    assert Steps(every, first=100, plain=1, logged=7).total(steps) == seconds


def test_a_search_and_further_models_are_counted_from_one(small_data: Path, tmp_path: Path) -> None:
    more = ("--methods", "baseline", "--search.trials", "5", "--finetune.seeds", "3", "--finetune.epochs", "1")
    config = small_config("simclr", small_data, tmp_path, *more, "--controls", "--pretrain.epochs", "1")
    stages = {stage.stage: stage for stage in stage_needs(config, QUIET).stages}
    assert list(stages) == [
        "pretext-baseline",
        "search-baseline",
        *(f"finetune-baseline-{k}" for k in range(3)),
        "test",
        "untrained",
        *(f"finetune-untrained-{k}" for k in range(3)),
        "test-controls",
    ]
    assert stages["search-baseline"].seconds == pytest.approx(5 * stages["finetune-baseline-0"].seconds)


def test_a_plan_measures_the_stages_and_steps_that_a_reproduction_counts(small_data: Path, tmp_path: Path) -> None:
    short = (*SHORT[7:], "--methods", "bissl", "baseline", "--search.trials", "2")
    config = small_config("simclr", small_data, tmp_path, *short)
    measured = {stage.stage: stage.steps for stage in stage_needs(config, QUIET).stages}
    counted = stages_of(config, Sizes(48, 39, 9, 12), tuned=True)
    assert measured.keys() == counted.keys()
    for name, work in counted.items():
        units = ("pretext step", "head step", "tuning step")
        steps = sum(work.get(unit, 0) for unit in units) // (2 if name.startswith("search") else 1)
        assert measured[name] == steps + work.get("lower step", 0) // config.bissl.lower_steps, name


def test_of_steps_that_are_long_two_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        steps, log_every, made = 100, 10, 0

        def step(self, index: int) -> dict[str, float]:
            self.made += 1
            return {}

    clock = iter(range(0, 10**6, int(2 * LONG)))
    monkeypatch.setattr("bissl_fast.methods.costs.steps.time.monotonic", lambda: next(clock))
    task, metrics = Slow(), Metrics(tmp_path)
    steps, lines = measured_steps(task, metrics, lambda: None)
    metrics.close()
    assert (task.made, lines) == (2, 1)
    assert steps.total(100) == 100 * 2 * LONG


def test_memory_that_is_full_names_the_stage_what_to_lower_and_what_was_planned(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config("simclr", small_data, tmp_path, "--methods", "baseline", "--pretrain.epochs", "1")

    def full(task: PretrainTask, index: int) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(PretrainTask, "step", full)
    sentence = r"memory is full in the stage pretext-baseline \(Unable to allocate 9 GiB\); lower --pretrain.batch-size"
    with pytest.raises(UserError, match=sentence + ".*plan` with the options of `train` tells beforehand"):
        train(config, QUIET)
    with pytest.raises(UserError, match=sentence):
        stage_needs(config, QUIET)
    (tmp_path / "run" / "needs.json").write_text('{"pretext-baseline": {"memory": 4200000000}}')
    with pytest.raises(UserError, match=sentence + r".*plan` had estimated 4\.2 GB for it"):
        train(config, QUIET)
