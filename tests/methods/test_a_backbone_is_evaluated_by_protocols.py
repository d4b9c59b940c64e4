"""`bissl-fast evaluate` and `train --protocols`: which backbones are scored, and what is kept of their scores."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchmetrics.functional.classification import binary_calibration_error

from bissl_fast.cli import main
from bissl_fast.data.pipelines.loader import sequential_batches
from bissl_fast.data.sets.catalogue import load_downstream
from bissl_fast.errors import UserError
from bissl_fast.evaluation import protocols
from bissl_fast.evaluation.features import extract_features
from bissl_fast.evaluation.finetuning import FineTuneTask
from bissl_fast.evaluation.metrics import METRICS
from bissl_fast.evaluation.protocols import TuningSettings
from bissl_fast.evaluation.protocols.finetune import PAPER
from bissl_fast.evaluation.protocols.knn import NeighbourSettings, accuracy, answers
from bissl_fast.evaluation.protocols.subject import Labelled
from bissl_fast.evaluation.report.drawing import Look
from bissl_fast.evaluation.report.pretext_stages import pretext_stages
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.methods.config import TrainConfig, load_config
from bissl_fast.methods.evaluate import usual_tuning
from bissl_fast.models import build_backbone
from bissl_fast.training.files import load_weights
from bissl_fast.training.seeds import derive_seed
from tests.methods.conftest import train_arguments


@pytest.fixture(scope="module")
def run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the baseline, with scores by nearest neighbours."""
    output = tmp_path_factory.mktemp("runs")
    options = "--methods baseline --finetune.epochs 1 --pretrain.epochs 1 --protocols knn".split()  # noqa: SIM905
    assert main(["train", *train_arguments(small_data, output, *options)]) == 0
    return output / "run"


def expected_knn(run: Path, stage: str) -> float:
    """Nearest neighbours of features that are extracted by hand."""
    config = load_config(run / "config.yaml", TrainConfig)
    backbone = build_backbone("test_resnet", 0)
    backbone.load_state_dict(load_weights(run / stage / "weights.safetensors", "backbone."))
    splits = load_downstream(config.dataset, None, config.images.cache_size, config.cache_dir, progress=False)
    view = config.images.evaluation_view
    train, test = (
        Labelled(*extract_features(backbone, sequential_batches(part, view, 64, "cpu")))
        for part in (splits.train, splits.test)
    )
    return accuracy(answers(train, test, NeighbourSettings(), 3))


def test_a_run_adds_the_scores_of_its_backbones_to_its_results(run: Path) -> None:
    scores = json.loads((run / "results.json").read_text())["arms"]["baseline"]["scores"]
    assert list(scores) == ["top1", "top5", "knn_top1"]
    assert scores["knn_top1"] == [pytest.approx(expected_knn(run, "pretext-baseline"))]
    assert "k-NN top-1" in (run / "table.md").read_text()
    drawn = pretext_stages(RunFolder(run), {"baseline": Look("Only FT", "#000000")})
    assert [stage.label for stage in drawn] == ["Only pretext (baseline)"]  # no curve of a stage that has none


def expected_top1(run: Path, stage: str) -> float:
    """Accuracy of a fine-tuned model, from features that are extracted by hand."""
    config, weights = load_config(run / "config.yaml", TrainConfig), run / stage / "weights.safetensors"
    backbone = build_backbone("test_resnet", 0)
    backbone.load_state_dict(load_weights(weights, "backbone."))
    head = load_weights(weights, "head.")
    test = load_downstream(config.dataset, None, config.images.cache_size, config.cache_dir, progress=False).test
    features, labels = extract_features(backbone, sequential_batches(test, config.images.evaluation_view, 64, "cpu"))
    return float(100 * ((features @ head["weight"].numpy().T + head["bias"].numpy()).argmax(1) == labels).mean())


def test_controls_are_the_backbones_that_they_are_named_after_and_leave_the_arms_as_they_are(
    run: Path, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--methods bissl,baseline --finetune.epochs 1 --pretrain.epochs 1 --protocols knn --controls"
    options += " --head.epochs 1 --bilevel.solver identity --name controlled"
    assert main(["train", *train_arguments(small_data, run.parent, *options.split())]) == 0
    output = " ".join(capsys.readouterr().out.split())
    controlled = run.parent / "controlled"
    before, after = (json.loads((folder / "results.json").read_text()) for folder in (run, controlled))
    assert "controls" not in before
    assert after["arms"]["baseline"]["scores"] == before["arms"]["baseline"]["scores"]
    found = {name: control["scores"] for name, control in after["controls"].items()}
    assert list(found) == ["untrained", "pretext"]
    for name, stage in (("untrained", "untrained"), ("pretext", "pretext-warmup")):
        assert found[name]["knn_top1"] == [pytest.approx(expected_knn(controlled, stage))]
        assert found[name]["top1"] == [pytest.approx(expected_top1(controlled, f"finetune-{name}-0"))]
    untrained = load_weights(controlled / "untrained" / "weights.safetensors", "backbone.")
    first = build_backbone("test_resnet", derive_seed(0, "backbone"), 16, 3).state_dict()
    moved = {name.rsplit(".", 1)[1] for name in first if not torch.equal(first[name], untrained[name])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}
    table = (controlled / "table.md").read_text()
    scores = [found["untrained"][key][0] for key in ("knn_top1", "top1")]
    assert f"| Untrained | {scores[0]:.1f} | {scores[1]:.1f} |" in table
    gain = after["arms"]["bissl"]["scores"]["knn_top1"][0] - scores[0]
    sentence = f"BiSSL {abs(gain):.1f} points {'above' if gain >= 0 else 'below'}"
    assert sentence in table
    assert sentence in output
    assert sentence in (controlled / "report.html").read_text()


def test_evaluate_gives_a_runs_arm_the_score_that_the_run_gave_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--protocol", "knn"]) == 0
    (file,) = (run / "evaluation").glob("baseline-*-knn-*.json")
    content = json.loads(file.read_text())
    assert content["scores"]["knn_top1"]["value"] == pytest.approx(expected_knn(run, "pretext-baseline"))
    assert {"arm", "dataset", "protocol", "environment"} <= content.keys()
    output = capsys.readouterr().out
    assert "Only FT" in output
    assert f"{content['scores']['knn_top1']['value']:.1f}" in output


def test_what_was_scored_before_is_read_and_what_is_damaged_or_asked_otherwise_is_made(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["evaluate", str(run), "--protocol", "knn", "--output", str(tmp_path)]
    assert main(command) == 0
    (file,) = tmp_path.glob("*.json")
    content = json.loads(file.read_text())
    content["scores"]["knn_top1"]["value"] = 12.3  # read, not made: the table will show it
    file.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "done before, read" in output
    assert "12.3" in output
    file.write_text(json.dumps({**content, "asked": {**content["asked"], "backbone": "another"}}))
    assert main(command) == 0
    assert "12.3" not in capsys.readouterr().out
    file.write_text(json.dumps(content)[:-30])
    assert main(command) == 0
    assert "12.3" not in capsys.readouterr().out
    assert main([*command, "--knn.k", "1"]) == 0
    assert len(list(tmp_path.glob("*.json"))) == 2  # both are kept


def test_fine_tuning_a_runs_backbone_gives_the_scores_of_the_run_bit_for_bit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One fine-tuning, called from two places: settings, seeds, order, views, best epoch and test split."""
    options = ["--protocol", "finetune", "--finetune.seeds", "2", "--output", str(tmp_path)]
    assert main(["evaluate", str(run), *options]) == 0
    (file,) = tmp_path.glob("baseline-labelled-finetune-*.json")
    found, of_run = json.loads(file.read_text()), json.loads((run / "results.json").read_text())["arms"]["baseline"]
    for key in ("top1", "top5"):
        score = found["scores"][f"finetune_{key}"]
        assert score["seeds"][:1] == of_run["scores"][key]
        assert score["value"] == pytest.approx(sum(score["seeds"]) / 2)
    asked = found["asked"]["settings"]
    assert (asked["epochs"], asked["batch_size"], asked["seeds"]) == (1, 8, 2)  # the run's, and what was given
    tested = json.loads((run / "test" / "details.json").read_text())["arms"]["baseline"]
    assert found["details"]["finetune"]["per_class"][0] == tested["per_class"][0]
    assert found["details"]["finetune"]["ece"][0] == tested["ece"][0]
    assert not file.with_suffix("").exists()  # what it worked with
    output = capsys.readouterr().out
    assert "finetune of baseline: seeds 2, epochs 1, 5 steps each, SGD of rate 0.03 and decay 0.001" in output
    for row in ("Fine-tuned top-1", "Fine-tuned top-5", "Fine-tuned mean per class", "Fine-tuned calibration error"):
        assert row in output


def test_a_fine_tuning_that_was_cut_goes_on_with_the_same_scores(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["evaluate", str(run), "--protocol", "finetune", "--finetune.seeds", "2", "--finetune.epochs", "2"]
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    step, taken = FineTuneTask.step, []

    def cut(task: FineTuneTask, index: int) -> Any:
        taken.append(index)
        if len(taken) == 18:  # in the second epoch of the second seed
            os.kill(os.getpid(), signal.SIGTERM)
        return step(task, index)

    monkeypatch.setattr(FineTuneTask, "step", cut)
    again = [*command, "--output", str(tmp_path / "cut")]
    assert main(again) == 130
    assert "a checkpoint holds everything" in capsys.readouterr().err
    assert main(again) == 0
    assert len(taken) == 20  # no step twice
    output = capsys.readouterr().out
    assert "finetune-baseline-0: done before, skipped" in output
    assert "finetune-baseline-1: goes on after step 8 of 10" in output
    whole, resumed = (json.loads(next((tmp_path / name).glob("*.json")).read_text()) for name in ("whole", "cut"))
    assert (whole["scores"], whole["details"]) == (resumed["scores"], resumed["details"])


def test_without_a_run_fine_tuning_is_the_papers() -> None:
    paper = usual_tuning(None, "mine", "flowers")
    assert (paper.epochs, paper.batch_size, paper.seeds) == (400, 256, 10)  # section 4.2.1
    assert (paper.learning_rate, paper.weight_decay) == (0.113, 0.00226)  # Table 2
    assert usual_tuning(None, "mine", "folder:anything") == PAPER


def test_an_arm_is_fine_tuned_at_its_own_rate_and_by_what_is_given(run: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text((run / "config.yaml").read_text().replace("learning_rate: 0.03", "learning_rate: 0.5"))
    sgd = load_config(config, TrainConfig).finetune_bissl
    assert usual_tuning(config, "bissl", "any").learning_rate == sgd.learning_rate == 0.5
    assert TuningSettings(learning_rate=0.1).over(usual_tuning(config, "bissl", "any")).learning_rate == 0.1
    results = json.loads((run / "results.json").read_text())
    found = {"learning_rate": 0.007, "weight_decay": 0.04, "score": 50.0, "loss": 1.0, "trials": 4, "rule": "score"}
    results["arms"]["baseline"]["search"] = found
    (tmp_path / "results.json").write_text(json.dumps(results))
    searched = usual_tuning(config, "baseline", "any")
    assert (searched.learning_rate, searched.weight_decay) == (0.007, 0.04)


def test_the_test_stage_tells_of_every_model_what_its_predictions_and_confidences_say(run: Path) -> None:
    details = json.loads((run / "test" / "details.json").read_text())
    predictions, confidences = (dict(np.load(run / "test" / f"{name}.npz")) for name in ("predictions", "confidences"))
    told = details["arms"]["baseline"]
    (predicted,), (sure,), labels = predictions["baseline"], confidences["baseline"], predictions["labels"]
    rates = [100 * float((predicted[labels == label] == label).mean()) for label in range(3)]
    assert details["classes"] == predictions["classes"].tolist()
    assert told["per_class"] == [pytest.approx(rates)]
    assert told["mean_per_class"] == [pytest.approx(np.mean(rates))]
    assert np.trace(told["confusion"]) == (predicted == labels).sum()
    peer = binary_calibration_error(torch.from_numpy(sure), torch.from_numpy((predicted == labels).astype(int)), 15)
    assert told["ece"] == [pytest.approx(100 * float(peer), rel=1e-4)]
    scores = json.loads((run / "results.json").read_text())["arms"]["baseline"]["scores"]
    assert scores["top1"] == [pytest.approx(100 * float((predicted == labels).mean()))]
    report = (run / "report.html").read_text()
    assert "Expected calibration error: Only FT " in report
    assert "Class by class" in report


def test_a_run_is_not_asked_to_fine_tune_beside_its_fine_tuning(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *train_arguments(small_data, tmp_path, "--protocols", "finetune")]) == 2
    assert "a run fine-tunes the backbone of every arm as it is; leave it out" in capsys.readouterr().err


def test_protocols_of_one_class_per_image_keep_accuracy_by_class_confusion_and_calibration(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--protocol", "linear,knn", "--linear.epochs", "2", "--output", str(tmp_path)]
    assert main(["evaluate", str(run), *options]) == 0
    for name in ("linear", "knn"):
        content = json.loads(next(tmp_path.glob(f"*-{name}-*.json")).read_text())
        details = content["details"][name]
        confusion = np.array(details["confusion"])
        assert confusion.shape == (3, 3)
        assert 100 * np.trace(confusion) / confusion.sum() == pytest.approx(content["scores"][f"{name}_top1"]["value"])
        assert details["per_class"][0] == pytest.approx(100 * np.diag(confusion) / confusion.sum(1))
        assert details["mean_per_class"][0] == pytest.approx(np.mean(details["per_class"][0]))
        assert sum(details["reliability"]["counts"]) == confusion.sum()
    output = capsys.readouterr().out
    assert output.count("features of labelled/test  1/1") == 1  # extracted once, for all protocols
    for row in ("Linear mean per class", "Linear calibration error", "k-NN mean per class", "k-NN calibration error"):
        assert row in output
    assert "lower is better" in " ".join(output.split())


def test_other_weights_are_scored_under_their_own_name(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(build_backbone("test_resnet", 5).state_dict(), tmp_path / "mine.safetensors")
    data = ["--dataset", f"folder:{small_data / 'labelled'}", "--cache-dir", str(small_data / "cache")]
    options = ["--backbone", "test_resnet", "--size", "16", "--linear.epochs", "2", "--semi.epochs", "1"]
    options += ["--semi.shares", "0.5", "--semi.head-rates", "0.1", "--semi.backbone-rates", "0.01"]
    options += ["--finetune.epochs", "1", "--finetune.seeds", "1"]
    options += ["--fewshot.tasks", "3", "1", "--fewshot.queries", "2", "--fewshot.episodes", "3"]
    assert main(["evaluate", "mine.safetensors", *data, *options, "--protocol", "all"]) == 0
    names = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "evaluation").glob("*.json"))
    assert names == [f"mine-labelled-{protocol}" for protocol in ("fewshot", "finetune", "knn", "linear", "semi")]


def test_a_pretext_run_and_one_of_its_stages_are_one_backbone(small_data: Path, tmp_path: Path) -> None:
    loose = f"folder:{small_data / 'loose'}"
    options = "--backbone test_resnet --images.size 16 --images.cache-size 20 --threads 1".split()  # noqa: SIM905
    options += "--pretrain.batch-size 16 --pretrain.epochs 1".split()  # noqa: SIM905
    command = ["pretrain", "--dataset", loose, "--output", str(tmp_path), "--name", "p"]
    assert main([*command, "--cache-dir", str(small_data / "cache"), *options]) == 0
    data = ["--dataset", f"folder:{small_data / 'labelled'}", "--protocol", "knn"]
    for model in ("p", "p/pretext", "p/pretext/weights.safetensors"):
        assert main(["evaluate", str(tmp_path / model), *data]) == 0
    files = list((tmp_path / "p" / "evaluation").glob("*.json"))
    assert [file.name.split("-")[0] for file in files] == ["pretext"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--arm", "bissl"], "has no arm bissl, only baseline"),
        (["--protocol", "fewshot", "--fewshot.tasks", "9", "1"], "9-way 1-shot needs 9 classes, and labelled/test has"),
        (["--protocol", "knn", "--knn.k", "4000"], "--knn.k must be at most"),
        (["--knn.k", "0"], "--knn.k must be at least 1"),
        (["--linear.epochs", "0"], "--linear.epochs and --linear.batch-size must be at least 1"),
        (["--dataset", "nothing"], "There is no data set 'nothing'"),
        (["--size", "4"], "--size must be between 8 and 4096"),
        (["--protocol"], "--protocol must be one or more of linear, knn"),
        (["--device", "tpu9"], "device 'tpu9' cannot be used"),
        (["--output", "/dev/null/x"], "/dev/null/x could not be written"),
    ],
)
def test_what_cannot_be_meant_ends_in_a_sentence(
    options: list[str], sentence: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_weights_without_a_run_need_a_set_and_have_no_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(build_backbone("test_resnet", 5).state_dict(), tmp_path / "mine.safetensors")
    model = str(tmp_path / "mine.safetensors")
    assert main(["evaluate", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not there: give" in capsys.readouterr().err
    assert main(["evaluate", model, "--backbone", "test_resnet"]) == 2
    assert "is no run, which would name a set: say --dataset NAME" in capsys.readouterr().err
    assert main(["evaluate", model, "--arm", "bissl", "--dataset", "textures"]) == 2
    assert "names an arm of a run, and" in capsys.readouterr().err


def test_a_run_whose_backbone_is_not_there_yet_says_so(
    small_data: Path, tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "which stage left the backbone of baseline, and no stage of it has ended" in capsys.readouterr().err


def test_a_run_that_has_not_ended_has_the_backbones_of_stages_that_have(run: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "run"
    shutil.copytree(run, unfinished)
    assert RunFolder(unfinished).backbone_stage("baseline") == "pretext-baseline"  # as the results say
    (unfinished / "results.json").unlink()
    assert (unfinished / "finetune-baseline-0" / "DONE").exists()
    assert RunFolder(unfinished).backbone_stage("baseline") == "pretext-baseline"
    shutil.copytree(unfinished / "pretext-baseline", unfinished / "baseline-again")
    with pytest.raises(UserError, match="and baseline-again, pretext-baseline hold weights: give one of them"):
        RunFolder(unfinished).backbone_stage("baseline")


def test_a_comparison_is_no_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    (tmp_path / "plan.json").write_text("{}")
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "is a comparison of several runs: give one of its folders" in capsys.readouterr().err


def test_protocols_that_a_runs_set_cannot_serve_are_refused_before_the_first_stage(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *train_arguments(small_data, tmp_path, "--protocols", "knn,fewshot")]) == 2
    assert "--protocol fewshot: 5-way 1-shot needs 5 classes" in capsys.readouterr().err
    assert not (tmp_path / "run" / "pretext-warmup").exists()


def test_protocol_scores_of_a_run_are_a_stage_of_their_own(run: Path) -> None:
    done = json.loads((run / "protocols-baseline" / "key.json").read_text())
    assert set(done["settings"]["protocols"]) == {"knn"}
    assert set(done["inputs"]) == {"backbone", "train", "test"}


def test_every_score_of_the_papers_settings_has_a_row_of_its_own() -> None:
    known = {metric.key for metric in METRICS}
    keys = {"linear_top1", "linear_top5", "linear_map", "knn_top1"}
    keys |= {f"semi_{100 * s:g}_{top}" for s in protocols.PAPERS.semi.shares for top in ("top1", "top5")}
    for name in ("fewshot", "crossdomain"):
        keys |= {f"{name}_{n}w{k}s" for n, k in protocols.PAPERS.of(name).tasks}  # type: ignore[arg-type]
    assert keys <= known
