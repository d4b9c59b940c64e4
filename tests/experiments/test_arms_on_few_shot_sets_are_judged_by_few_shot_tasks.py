"""On a set with other classes to test than to train nothing is fine-tuned: few-shot tasks judge the backbones."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from bissl_fast.cli.compare import parse_comparison
from bissl_fast.errors import UserError
from bissl_fast.evaluation import protocols
from bissl_fast.evaluation.protocols import PAPERS
from bissl_fast.experiments import comparison
from bissl_fast.experiments.comparison import Experiment, compare, of_methods
from bissl_fast.experiments.studies import STUDIES
from bissl_fast.methods.config import ComparisonConfig
from bissl_fast.methods.stages import protocols as stage
from bissl_fast.methods.stages.protocols import subject_of
from bissl_fast.methods.train import Training, train
from bissl_fast.training.stage import StageOutput
from tests.experiments.comparisons import Killed, Work

SMALL = """
--dataset omniglot-fewshot --backbone test_resnet --images.size 16 --images.cache-size 20 --threads 1
--methods baseline,gessl,fussl --seeds 2 --loop.checkpoint-seconds 0 --pretrain.batch-size 16 --pretrain.epochs 1
--pretrain.warmup-epochs 0.5 --pretrain.baseline-epochs 2 --gessl.tasks 2 --gessl.batch-size 4 --gessl.inner-steps 1
--gessl.target-steps 1 --gessl.steps 4 --fussl.blocks 2 --fussl.first-epochs 1 --fussl.second-epochs 1
--fussl.recipe pretext --name few
""".split()  # noqa: SIM905
METRICS = ["fewshot_5w1s", "fewshot_5w5s"]  # of (20, 1) the six characters are too few
SENTENCE = "nothing is fine-tuned, and --finetune.* and --search.* have no effect"


@pytest.fixture(scope="module")
def omniglot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four characters to train on and six others, of twenty drawings each; a data root."""
    root, rng = tmp_path_factory.mktemp("omniglot"), np.random.default_rng(0)
    for part, characters in (("background", 4), ("evaluation", 6)):
        for character in range(characters):
            form = rng.random((15, 15)) < 0.3
            folder = root / "omniglot-py" / f"images_{part}" / f"Alphabet_{part}" / f"character{character + 1:02}"
            folder.mkdir(parents=True)
            for number in range(20):
                ink = np.kron(form ^ (rng.random((15, 15)) < 0.1), np.ones((7, 7))).astype(bool)
                Image.fromarray(~ink).save(folder / f"{number:02}.png")
    return root


FEW = replace(
    PAPERS,
    fewshot=replace(PAPERS.fewshot, episodes=12),
    crossdomain=replace(PAPERS.crossdomain, episodes=3),
)
"""600 episodes of each task take seconds per backbone."""


@pytest.fixture(autouse=True, scope="module")
def few_episodes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(stage, "PAPERS", FEW)
        yield


def config_of(omniglot: Path, output: Path, *more: str) -> ComparisonConfig:
    data = ["--data-root", str(omniglot), "--cache-dir", str(omniglot / "cache"), "--output", str(output)]
    return parse_comparison([*SMALL, *data, *more], "bissl-fast compare", "", "compare")


def told_of(config: ComparisonConfig) -> str:
    """What a comparison of methods says."""
    console = Console(file=io.StringIO(), width=300, record=True)
    compare(config, of_methods(config), console)
    return console.export_text()


def content(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def whole(omniglot: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ComparisonConfig, Work, str]:
    """A finished comparison of three methods over two pretext seeds, the passes that it made, and what it said."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        work = Work(monkeypatch)
        config = config_of(omniglot, tmp_path_factory.mktemp("runs"))
        return config, work, told_of(config)


def test_no_stage_fine_tunes_and_each_run_says_so_once(whole: tuple[ComparisonConfig, Work, str]) -> None:
    config, work, told = whole
    assert work.tuned == 0
    assert told.count(SENTENCE) == config.seeds
    stages = {path.parent.name for path in (config.run_folder / "seed-0").glob("*/DONE")}
    assert {stage for stage in stages if not stage.startswith("fussl")} == {
        *("pretext-baseline", "gessl"),
        *("protocols-baseline", "protocols-gessl", "protocols-fussl"),
    }


def test_results_hold_few_shot_scores_with_their_intervals_and_no_other(
    whole: tuple[ComparisonConfig, Work, str],
) -> None:
    config = whole[0]
    results = content(config.run_folder / "seed-1", "results.json")
    assert (results["judged_by"], results["classes"]) == ("few-shot tasks", 6)
    run = Training(config.of_run("seed-1", 1), Console(quiet=True)).context
    stages = {"baseline": "pretext-baseline", "gessl": "gessl", "fussl": "fussl"}
    for arm, told in results["arms"].items():
        subject = subject_of(run, StageOutput(run.folder / stages[arm], ""))
        expected = protocols.run("fewshot", subject, FEW).scores
        assert list(told["scores"]) == list(told["intervals"]) == METRICS
        for key, made in expected.items():
            assert told["scores"][key] == [pytest.approx(made.value)]
            assert told["intervals"][key] == pytest.approx(made.interval)


def test_the_comparison_is_of_five_way_one_shot_over_pretext_seeds(whole: tuple[ComparisonConfig, Work, str]) -> None:
    folder = whole[0].run_folder
    found = content(folder, "compare.json")
    assert "Against pretext training only (" in found["verdict"]
    assert "5-way 1-shot accuracy) on omniglot-fewshot" in found["verdict"]
    assert "Welch's t-test over pretext seeds" in found["verdict"]
    seeds = [content(folder / f"seed-{seed}", "results.json")["arms"] for seed in (0, 1)]
    for arm, told in found["arms"].items():
        assert list(told["scores"]) == METRICS
        for key, of_key in told["scores"].items():
            assert of_key["means"] == [seed[arm]["scores"][key][0] for seed in seeds]
            assert of_key["intervals"] == [seed[arm]["intervals"][key] for seed in seeds]
            assert not {"fine_tuned", "within"} & of_key.keys()
    assert found["over_pretext_seeds"]["fewshot_5w1s"]["gessl"]["p"] is not None


def test_nothing_that_is_written_tells_of_fine_tuning(whole: tuple[ComparisonConfig, Work, str]) -> None:
    folder = whole[0].run_folder
    run = folder / "seed-0"
    texts = [path.read_text() for path in (folder / "table.md", run / "table.md")]
    pages = [
        path.read_text().split("<h2>Settings and files")[0] for path in (folder / "report.html", run / "report.html")
    ]
    for text in (*texts, *pages):
        assert "Only FT" not in text
        assert "fine-tuning" not in text.lower()
        assert "5-way 1-shot" in text
        assert "Only pretext" in text
    assert "pretext seeds per arm: 1" in texts[1]
    assert "6 classes to test, none of them trained on" in texts[1]
    gessl = content(run, "results.json")["arms"]["gessl"]
    cell = f"{gessl['scores']['fewshot_5w1s'][0]:.1f} ± {gessl['intervals']['fewshot_5w1s']:.1f}"
    assert cell in texts[1]
    assert {path.stem for path in (run / "figures").iterdir()} == {"pretext", "collapse"}
    assert not any("Left out" in text for text in pages)


def test_killed_anywhere_the_same_command_ends_with_the_same_scores_and_then_does_nothing(
    whole: tuple[ComparisonConfig, Work, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, made, _ = whole
    monkeypatch.setattr(comparison, "write_report", lambda _: None)  # figures take most of the time
    broken, work = replace(config, output=tmp_path, seeds=1), Work(monkeypatch)
    for passes in (3, made.passes // 4 + 5):
        work.last = passes
        with pytest.raises(Killed):
            told_of(broken)
    work.last = -1
    told_of(broken)
    first, again = (content(folder / "seed-0", "results.json") for folder in (config.run_folder, broken.run_folder))
    assert first == again
    monkeypatch.setattr(protocols, "run", lambda *_: pytest.fail("scored again"))
    done = work.passes
    told_of(broken)
    assert work.passes == done


@pytest.mark.parametrize("methods", ["bissl", "abrl,baseline", "bissl,abrl"])
def test_methods_that_use_labels_are_refused_before_the_first_stage(
    omniglot: Path, tmp_path: Path, methods: str
) -> None:
    config = config_of(omniglot, tmp_path, "--methods", methods).of_run("a", 0)
    with pytest.raises(UserError, match="would learn from labels of a task that nothing tests") as refused:
        train(config, Console(quiet=True))
    assert "evaluate RUN --dataset omniglot-fewshot --protocol crossdomain" in str(refused.value)
    assert "another --dataset" in str(refused.value)
    assert not list(tmp_path.rglob("key.json"))


def test_a_protocol_that_learns_the_classes_is_refused(omniglot: Path, tmp_path: Path) -> None:
    config = config_of(omniglot, tmp_path, "--protocols", "fewshot,linear").of_run("a", 0)
    with pytest.raises(UserError, match="--protocol linear learns classes from training images, and omniglot-fewshot"):
        Training(config, Console(quiet=True))


def test_cross_domain_tasks_stand_beside_and_are_told_to_be_of_the_same_domain(omniglot: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300, record=True)
    more = ["--methods", "baseline", "--protocols", "crossdomain,fewshot"]
    folder = train(config_of(omniglot, tmp_path, *more).of_run("a", 0), console)
    scores = content(folder, "results.json")["arms"]["baseline"]["scores"]
    assert list(scores) == [*METRICS, "crossdomain_5w5s"]
    assert "crossdomain: backbones are trained on omniglot-fewshot itself" in console.export_text()


@pytest.mark.parametrize("name", ["gessl-losses", "fussl-cases", "bissl-damping"])
def test_studies_of_methods_without_labels_can_start(omniglot: Path, tmp_path: Path, name: str) -> None:
    config = config_of(omniglot, tmp_path)
    study = Experiment(config, STUDIES[name].question(name, config), Console(quiet=True))
    if name.startswith("bissl"):
        with pytest.raises(UserError, match=r"^damping-1.0-seed-0: The test classes of omniglot-fewshot are none"):
            _ = study.plan
    else:
        assert len(study.plan.rows) >= 4
