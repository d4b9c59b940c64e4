"""`bissl-fast reproduce`: which runs it makes, what it says they cost, and that none is made twice."""

import json
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from bissl_fast.bilevel import HessianOperator
from bissl_fast.cli import main
from bissl_fast.cli.train import laid_over
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.errors import UserError
from bissl_fast.evaluation.metrics import METRICS
from bissl_fast.evaluation.statistics import compare
from bissl_fast.experiments.beside_paper import Beside, beside_table, claim, results_of
from bissl_fast.experiments.expected import Expected, planned
from bissl_fast.experiments.paper_results import DATASETS, TABLE_1
from bissl_fast.experiments.paper_runs import Asked, Found, PaperRun, runs_of
from bissl_fast.experiments.reproduction_page import Reproduced
from bissl_fast.methods.bissl.algorithm import BiSSLTask
from bissl_fast.methods.config import TrainConfig, load_config
from bissl_fast.methods.costs.units import Measured, measure
from bissl_fast.methods.costs.work import UNITS, Sizes, stages_of
from bissl_fast.methods.loading import RunData
from bissl_fast.methods.presets import TABLE_2_BASELINE, TABLE_4_AFTER_BISSL
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.finetune import FineTuneTask
from bissl_fast.methods.stages.head import HeadWarmupTask
from bissl_fast.methods.stages.pretrain import PretrainTask
from tests.data import published, trees
from tests.forks import Command

TABLE = ("table1", "--datasets", "flowers,pets,dtd", "--rates", "paper")
METRIC = {metric.key: metric for metric in METRICS}
STL10 = Sizes(100_000, 1880, 1880, 1880)  # the last three of DTD
SMALL = """
--backbone test_resnet --images.size 16 --images.cache-size 20 --images.downstream-cache-size 20 --threads 1
--pretrain.batch-size 16 --bissl.lower-steps 2 --bissl.upper-steps 1 --bissl.stored-batches 1
--bissl.solver-iterations 1 --finetune.batch-size 4 --finetune.epochs 1 --bilevel.mode reverse --statistics.batches 1
--loop.checkpoint-seconds 0
""".split()  # noqa: SIM905


def as_it_is(config: Any) -> Any:
    return config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with STL10's images, Flowers of noise and DTD, and with no other set."""
    folder = tmp_path_factory.mktemp("sets")
    trees.stl10(folder)
    trees.dtd(folder, per_split=4)
    rng = np.random.default_rng(0)
    for path in sorted((published.flowers(folder, per_class=4) / "jpg").glob("*.jpg")):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)  # no two alike, for a map
    return folder


def arguments(root: Path, output: Path, what: str, *more: str) -> list[str]:
    places = ["--data-root", str(root), "--cache-dir", str(root / "cache"), "--output", str(output)]
    return ["reproduce", what, *places, "--scale", "0.005", "--probe-seconds", "0", *SMALL, *more]


def test_table_1_is_14_runs_as_the_paper_did_them() -> None:
    runs = runs_of(Asked("table1", DATASETS), as_it_is)
    assert len(runs) == 14
    for run in runs:
        config = run.config
        assert (config.pretrain.epochs, config.pretrain.baseline_epochs, config.pretext_dataset) == (500, 600, None)
        assert (config.bissl.alternations, config.bissl.lower_steps, config.bissl.upper_steps) == (500, 20, 8)
        assert (config.head.epochs, config.finetune.epochs, config.finetune.seeds) == (20, 400, 10)
        assert (config.search.trials, config.search.sampler, config.search.pruning) == (200, "random", False)
        assert (config.search.learning_rate, config.search.weight_decay) == ((1e-4, 1.0), (1e-5, 1e-2))
        assert Reproduced(Asked("table1", DATASETS), Path(), (run,), {}).departures == {}


def test_the_printed_rates_can_stand_in_place_of_the_search() -> None:
    for run in runs_of(Asked("table1", DATASETS, rates="paper"), as_it_is):
        tuned = (run.config.finetune_baseline, run.config.finetune_bissl)
        printed = (TABLE_2_BASELINE[run.dataset], TABLE_4_AFTER_BISSL[run.dataset])
        assert tuple((sgd.learning_rate, sgd.weight_decay) for sgd in tuned) == printed
        assert run.config.search.trials == 0
        assert Reproduced(Asked("table1", DATASETS, rates="paper"), Path(), (run,), {}).departures == {}


def test_the_points_of_figure_2_keep_warm_up_and_baseline_100_epochs_apart() -> None:
    runs = runs_of(Asked("figure2", ("flowers",), scale=0.5, epochs=(200.0, 600.0)), as_it_is)
    assert [(run.config.pretrain.epochs, run.config.pretrain.baseline_epochs) for run in runs] == [
        (50, 100),
        (250, 300),
    ]
    assert [run.config.name for run in runs] == ["flowers-200-epochs", "flowers"]
    with pytest.raises(UserError, match="--epochs must be above the 100"):
        Asked("figure2", ("flowers",), epochs=(100.0,))


def test_a_scale_shortens_lengths_alone_and_to_no_less_than_can_be_compared() -> None:
    (whole,), (tenth,), (least,) = (runs_of(Asked("table1", ("dtd",), scale), as_it_is) for scale in (1, 0.1, 0.001))
    config = tenth.config
    assert (config.pretrain.epochs, config.pretrain.baseline_epochs, config.pretrain.warmup_epochs) == (50, 60, 1)
    assert (config.head.epochs, config.bissl.alternations, config.bissl.adaptation_every) == (2, 50, 10)
    assert (config.finetune.epochs, config.finetune.seeds, config.search.trials) == (40, 3, 20)
    config = least.config
    assert (config.head.epochs, config.bissl.alternations, config.finetune.epochs) == (1, 1, 1)
    assert (config.finetune.seeds, config.search.trials) == (3, 2)
    named = set(Reproduced(Asked("table1", ("dtd",), 0.001), Path(), (least,), {}).departures)
    lengths = {"epochs", "baseline_epochs", "warmup_epochs", "alternations", "adaptation_every", "seeds", "trials"}
    assert {name.rpartition(".")[2] for name in named} == lengths
    assert replace(least.config, images=whole.config.images) == least.config


def test_shared_pretext_stages_are_counted_once_and_units_times_counts_are_the_cost(tmp_path: Path) -> None:
    runs = runs_of(Asked("figure2", ("flowers",), epochs=(200.0, 600.0)), as_it_is)
    runs += runs_of(Asked("table1", ("dtd", "voc2007")), as_it_is)
    (tmp_path / "dtd" / "head-warmup").mkdir(parents=True)
    (tmp_path / "dtd" / "head-warmup" / "DONE").touch()
    found = Found(STL10, 47, False)
    stages = planned([(run, found) for run in runs], tmp_path, tuned=True)
    pretext = {(stage.run, stage.name): stage for stage in stages if stage.name.startswith("pretext")}
    assert pretext["flowers", "pretext-baseline"].work == {"pretext step": 97 * 600}  # 97 whole batches of 1024
    assert pretext["dtd", "pretext-warmup"].shared_with == pretext["voc2007", "pretext-warmup"].shared_with == "flowers"
    assert pretext["flowers-200-epochs", "pretext-warmup"].work == {"pretext step": 97 * 100}
    units = {unit: 10.0**-number for number, unit in enumerate(UNITS)}
    expected = Expected(stages, Measured(units, 0, 64), "here")
    tuning = 400 * 8 * units["tuning step"] + 400 * 1880 * units["image scored"]  # 7 batches of 256, one of 88
    levels = 10_000 * units["lower step"] + 4_000 * units["upper step"]
    levels += 2_500 * units["linearisation"] + 500 * 200 * units["product"]
    test = (2 * 10 * 1880 + 2 * (100 * 256 + 1880)) * units["image scored"]
    run = levels + 20 * 8 * units["head step"] + 2 * (200 + 10) * tuning + test
    pretext_steps = 97 * (100 + 200 + 500 + 600) * units["pretext step"]
    done = 20 * 8 * units["head step"]
    assert expected.seconds == pytest.approx(4 * run + pretext_steps - done, rel=1e-12)
    dtd = next(row for row in expected.grid().rows if row[0].text == "dtd")
    assert dtd[1].text == "shared"


def test_products_that_do_not_fit_their_budget_are_linearised_again() -> None:
    (run,) = runs_of(Asked("table1", ("dtd",)), as_it_is)
    work = stages_of(run.config, STL10, tuned=True, kept=2)["bissl"]
    assert work["linearisation"] == 500 * (2 + 3 * 40)
    assert work["product"] == 500 * 200


class Counted:
    """How often each unit of work is really done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.units: Counter[str] = Counter()
        for kind, name, unit in (
            (PretrainTask, "step", "pretext step"),
            (HeadWarmupTask, "step", "head step"),
            (FineTuneTask, "step", "tuning step"),
            (BiSSLTask, "_add_regulariser", "lower step"),
            (BiSSLTask, "_gradient_at_theta_d", "upper step"),
            (HessianOperator, "matvec", "product"),
        ):
            self._count(monkeypatch, kind, name, unit)
        batches = RunData.evaluation_batches

        def scored(data: RunData, images: ImageSet, *ranks: Any) -> Any:
            self.units["image scored"] += len(images)
            return batches(data, images, *ranks)

        monkeypatch.setattr(RunData, "evaluation_batches", scored)

    def _count(self, monkeypatch: pytest.MonkeyPatch, kind: type, name: str, unit: str) -> None:
        call = getattr(kind, name)

        def wrapper(this: Any, *given: Any) -> Any:
            self.units[unit] += 1
            return call(this, *given)

        monkeypatch.setattr(kind, name, wrapper)


def no_probe(*_: Any) -> Measured:
    return Measured(dict.fromkeys(UNITS, 1.0), 0, 1)


@pytest.fixture(scope="module")
def killed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reproduction of two sets and one that is missing, killed while the first is tuned."""
    output = tmp_path_factory.mktemp("table1")
    process = Command(arguments(root, output, *TABLE))
    deadline = time.monotonic() + 500
    while not (output / "flowers" / "finetune-bissl-1" / "key.json").exists():
        assert process.status() is None, process.told()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    (output / "told.txt").write_text(process.end())
    shutil.copy(output / "expected-table1.json", output / "first.json")
    return output


@pytest.fixture(scope="module")
def made(root: Path, killed: Path) -> tuple[Path, Counter[str]]:
    """The same folder after the same command again, and the work that this took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bissl_fast.experiments.reproduction.measure", no_probe)
        patch.setattr("bissl_fast.experiments.reproduction.write_report", as_it_is)  # which takes longer than the runs
        counted = Counted(patch)
        assert main(arguments(root, killed, *TABLE)) == 0
    return killed, counted.units


def test_before_it_starts_it_names_the_sets_that_are_missing_and_measures_what_it_will_cost(killed: Path) -> None:
    told = " ".join((killed / "told.txt").read_text().split())
    assert "Oxford-IIIT Pets was not found" in told
    assert "oxford-iiit-pet: download it with `bissl-fast data prepare pets" in told
    assert told.index("Oxford-IIIT Pets was not found") < told.index("All that is left: ") < told.index("run 1 of 2")
    expected = json.loads((killed / "first.json").read_text())
    assert set(expected["seconds_of_a_unit"]) == set(UNITS)
    assert all(took > 0 for took in expected["seconds_of_a_unit"].values())


def test_killed_it_goes_on_and_makes_no_finished_stage_again(made: tuple[Path, Counter[str]]) -> None:
    folder, units = made
    expected = json.loads((folder / "expected-table1.json").read_text())
    left = [stage for stage in expected["stages"] if not stage["done"] and not stage["shared_with"]]
    assert {stage["stage"] for stage in expected["stages"] if stage["done"] and stage["run"] == "flowers"} >= {
        "pretext-warmup",
        "pretext-baseline",
        "bissl",
        "finetune-bissl-0",
    }
    work: Counter[str] = Counter()
    for stage in left:
        work.update(stage["work"])
    assert units["image scored"] == work["image scored"] - 2 * (
        12 + 8
    )  # of the statistics: two arms, both train splits
    broken = 3  # steps of the stage that was killed, at most, lie in its checkpoint
    for unit in ("pretext step", "head step", "lower step", "upper step"):
        assert units[unit] == work[unit], unit
    assert units["product"] == work["product"] + 1  # the one that a run tries before its first stage
    assert work["tuning step"] - broken <= units["tuning step"] <= work["tuning step"]


def test_ours_stand_beside_the_papers_with_both_marks(made: tuple[Path, Counter[str]]) -> None:
    told = json.loads((made[0] / "table1.json").read_text())
    assert not told["comparable"]
    assert [(cell["dataset"], cell["metric"]) for cell in told["cells"]][:2] == [
        ("flowers", "top1"),
        ("flowers", "top5"),
    ]
    dtd = next(cell for cell in told["cells"] if (cell["dataset"], cell["metric"]) == ("dtd", "top1"))
    assert dtd["paper"] == {"bissl": [52.1, 0.5], "baseline": [49.3, 0.5], "bold": True}
    ours = compare(*(dtd["ours"][arm]["scores"] for arm in ("bissl", "baseline")))
    assert (dtd["ours"]["p"], dtd["ours"]["apart"]) == (ours.p, ours.apart)
    page = (made[0] / "table1.html").read_text()
    assert "cannot be compared with ours" in page
    assert "<b>52.1 ± 0.5</b>" in page
    assert "pretrain.batch_size" in page


def test_results_of_other_settings_stand_beside_nothing(made: tuple[Path, Counter[str]]) -> None:
    config = load_config(made[0] / "dtd" / "config.yaml", TrainConfig)
    assert results_of(made[0], PaperRun("dtd", config, 600.0)) is not None
    assert results_of(made[0], PaperRun("dtd", replace(config, seed=1), 600.0)) is None


def test_figure_3_takes_the_backbones_that_are_there_and_speaks_of_no_search(
    root: Path, made: tuple[Path, Counter[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bissl_fast.experiments.reproduction.measure", no_probe)
    counted = Counted(monkeypatch)
    assert main(arguments(root, made[0], "figure3")) == 0
    assert "are searched" not in capsys.readouterr().out
    assert set(counted.units) == {"image scored"}
    page = (made[0] / "figure3.html").read_text()
    assert "Only pretext" in page
    assert "Their nearest neighbour among them is of the same class" in page
    assert (made[0] / "figures" / "features-flowers.png").stat().st_size > 1000


def test_figure_2_searches_rates_for_each_point_and_says_that_the_paper_prints_no_numbers_of_it(
    root: Path, made: tuple[Path, Counter[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bissl_fast.experiments.reproduction.measure", no_probe)
    monkeypatch.setattr("bissl_fast.experiments.reproduction.write_report", as_it_is)
    counted = Counted(monkeypatch)
    assert main(arguments(root, made[0], "figure2", "--epochs", "600")) == 0
    assert counted.units["tuning step"] == 2 * (2 + 3) * 3  # arms, trials and seeds, steps
    assert not {"pretext step", "head step", "lower step"} & set(counted.units)
    told = " ".join(capsys.readouterr().out.split())
    assert "learning rates and weight decays are searched" in told
    assert "prints none of its numbers" in told
    assert "| 600 | " in (made[0] / "figure2.md").read_text()
    page = (made[0] / "figure2.html").read_text()
    assert "BiSSL: " in page
    assert "at 600; Only FT: " in page


def test_a_reproduction_without_any_of_its_sets_ends_in_a_sentence(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(root, tmp_path, "table1", "--datasets", "pets,cars")) == 2
    error = capsys.readouterr().err
    assert "None of the data sets is there, so there is nothing to run. Oxford-IIIT Pets was not found" in error
    assert f"{root}/stanford_cars" in error
    assert main(arguments(tmp_path, tmp_path, "table1", "--datasets", "dtd")) == 2
    assert f"STL-10 was not found: {tmp_path} does not hold it. Expected is {tmp_path}/stl10_binary" in (
        capsys.readouterr().err
    )


def test_the_printed_table_set_beside_itself_agrees_in_27_of_27_marks() -> None:
    runs = {run.dataset: run for run in runs_of(Asked("table1", DATASETS), as_it_is)}
    cells = [
        Beside(runs[row.dataset], METRIC[row.metric], compare(*map(ten, (row.bissl, row.baseline))), row)
        for row in TABLE_1
    ]
    assert "the paper prints 14 of them in bold, and 27 of the 27 marks agree" in claim(cells)
    table = beside_table(cells, Asked("table1", DATASETS), "").to_markdown()
    assert table.count("**") == 2 * 2 * 14  # each in the paper's columns and in ours


def test_every_unit_is_measured_also_in_chunks_and_of_several_classes_per_image(tmp_path: Path) -> None:
    options = [*SMALL, "--output", str(tmp_path), "--pretrain.chunk", "8"]
    (run,) = runs_of(
        Asked("table1", ("voc2007",)), lambda config: laid_over(config, options, "bissl-fast reproduce", "")
    )
    config = run.config
    measured = measure(Run(config, config.views, Console(quiet=True)), config, 20, True, seconds=0)
    assert measured.images == 16
    assert set(measured.seconds) == set(UNITS)
    assert all(took > 0 for took in measured.seconds.values())


def test_stored_batches_keep_what_fits_their_budget() -> None:
    (run,) = runs_of(Asked("table1", ("dtd",)), as_it_is)
    config = replace(run.config, bilevel=replace(run.config.bilevel, memory_budget=8.0))
    kept = [Measured({}, size, 64).kept(config, torch.device("cpu")) for size in (0, 10**9, 3 * 10**9, 9 * 10**9)]
    assert kept == [5, 5, 2, 0]


def ten(score: tuple[float, float]) -> list[float]:
    """Ten seeds with this mean and this deviation."""
    return [score[0] + sign * score[1] * 0.9**0.5 for sign in (-1, 1)] * 5
