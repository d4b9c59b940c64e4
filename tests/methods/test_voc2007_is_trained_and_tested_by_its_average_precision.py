"""The whole pipeline on a small multi-label set in VOC2007's own layout."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import bissl_fast
from bissl_fast.cli.report import print_results
from bissl_fast.cli.train import parse_config
from bissl_fast.data.pipelines.loader import sequential_batches
from bissl_fast.data.sets.catalogue import list_labelled
from bissl_fast.data.sets.readers.voc import CLASSES
from bissl_fast.errors import UserError
from bissl_fast.evaluation.answers import Rankings
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.export.predicting import predict
from bissl_fast.methods.train import Training, train
from bissl_fast.models import Network, build_backbone, build_classifier
from tests.data import published
from tests.methods.conftest import SMALL, head_stage, pretext_stage, train_arguments


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 24 images per split, the last 4 of two classes."""
    root = tmp_path_factory.mktemp("voc")
    published.voc2007(root, CLASSES, per_split=24)
    for split in ("train", "val", "test"):
        path = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / f"person_{split}.txt"
        rows = [line.split() for line in path.read_text().splitlines()]
        path.write_text("".join(f"{name} {1 if int(name[1:]) >= 20 else value}\n" for name, value in rows))
    return root


@pytest.fixture(scope="module")
def run(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    folder = train(parse_config(arguments(voc, output, "--finetune.seeds", "2")), Console(quiet=True))
    print_results(folder, Console(quiet=True))
    return folder


def arguments(voc: Path, output: Path, *more: str) -> list[str]:
    named = ["--dataset", "voc2007", "--pretext-dataset", "voc2007", "--data-root", str(voc), "--name", "run"]
    return [*named, "--cache-dir", str(voc / "cache"), "--output", str(output), *SMALL, *more]


def test_the_best_model_of_every_seed_is_tested_by_its_mean_average_precision(voc: Path, run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert (results["dataset"], results["classes"]) == ("voc2007", 20)
    assert {name: list(arm["scores"]) for name, arm in results["arms"].items()} == {
        "bissl": ["map"],
        "baseline": ["map"],
    }
    training = Training(parse_config(arguments(voc, run.parent)), Console(quiet=True))
    for arm in ("bissl", "baseline"):
        for seed in range(2):
            network = Network(
                build_backbone("test_resnet", 0), build_classifier(training.context.features, 20, 0)
            ).eval()
            network.load_state_dict(load_file(run / f"finetune-{arm}-{seed}" / "weights.safetensors"))
            epochs = RunFolder(run).metrics(f"finetune-{arm}-{seed}")
            best = max(record["val_map"] for record in epochs)
            assert scored(network, training, training.context.data.splits.val) == pytest.approx(best, rel=1e-6)
            tested = scored(network, training, training.context.data.splits.test)
            assert tested == pytest.approx(results["arms"][arm]["scores"]["map"][seed], rel=1e-6)


def scored(network: Network, training: Training, images: Any) -> float:
    view = training.config.images.evaluation_view
    with torch.inference_mode():
        outputs = [network(batch.views[0]) for batch in sequential_batches(images, view, 24, "cpu")]
    return Rankings(torch.cat(outputs).numpy(), images.labels).mean("ignored")


def test_both_conventions_for_difficult_objects_are_told_by_class_and_one_of_them_judges(voc: Path, run: Path) -> None:
    details = json.loads((run / "test" / "details.json").read_text())
    scores = json.loads((run / "results.json").read_text())["arms"]
    assert tuple(details["classes"]) == CLASSES
    for arm, told in details["arms"].items():
        assert told["map"]["ignored"] == pytest.approx(scores[arm]["scores"]["map"])
        for way in ("ignored", "present"):
            assert np.array(told["per_class"][way]).shape == (2, 20)
            assert np.mean(told["per_class"][way], axis=1) == pytest.approx(told["map"][way])
    report = (run / "report.html").read_text()
    assert "(difficult objects ignored) and " in report
    assert "test AP (%)" in report
    assert "calibration error" not in report


def test_predictions_for_the_test_images_have_the_average_precision_of_the_results(
    voc: Path, run: Path, tmp_path: Path
) -> None:
    model = bissl_fast.load(run / "finetune-bissl-1")
    assert (model.classes, model.multilabel) == (CLASSES, True)
    test = list_labelled("voc2007", voc).test
    for file in test.files:
        shutil.copy(file, tmp_path)
    told = {(path, name): probability for path, name, probability in predict(model, tmp_path, top=20).rows}
    found = np.array([[told[file.name, name] for name in CLASSES] for file in test.files])
    scores = json.loads((run / "results.json").read_text())["arms"]["bissl"]["scores"]["map"]
    assert Rankings(found, test.labels).mean("ignored") == pytest.approx(scores[1], rel=1e-6)


def test_table_and_report_speak_of_precision_and_draw_images_of_one_class(run: Path) -> None:
    table = (run / "table.md").read_text()
    assert table.startswith("| Test precision (%) | BiSSL | Only FT |")
    assert re.search(r"\| mAP \| .* ± .* \|", table)
    assert "11-point mAP" in table
    assert "Top-1" not in table
    assert 'class="missing"' not in (run / "report.html").read_text()
    labels = RunFolder(run).arrays("test/features.npz", ("labels",))[0]
    assert labels.shape == (24, 20)
    assert ((labels == 1).sum(1) == 1).sum() == 20


@pytest.mark.parametrize("stage", ["head-warmup", "bissl", "finetune-bissl-0"])
def test_the_loss_is_part_of_the_key_of_every_stage_that_takes_it(run: Path, stage: str) -> None:
    assert json.loads((run / stage / "key.json").read_text())["settings"]["multilabel_loss"] == "bce"


def test_how_difficult_objects_count_is_part_of_the_key_of_every_stage_that_scores(voc: Path, run: Path) -> None:
    keys = {stage: json.loads((run / stage / "key.json").read_text())["settings"] for stage in RunFolder(run).stages()}
    assert {stage for stage, key in keys.items() if key.get("difficult") == "ignored"} == {
        "test",
        *(f"finetune-{arm}-{k}" for arm in ("bissl", "baseline") for k in range(2)),
    }
    assert json.loads((run / "results.json").read_text())["difficult"] == "ignored"


def test_another_loss_is_another_head(voc: Path, run: Path, tmp_path: Path) -> None:
    config = parse_config(arguments(voc, tmp_path, "--finetune.multilabel-loss", "cross-entropy"))
    training = Training(config, Console(quiet=True))
    head = head_stage(training, pretext_stage(training, "pretext-warmup", 2))
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (head.folder, run / "head-warmup"))
    assert not torch.equal(ours["weight"], theirs["weight"])


def test_a_set_of_one_class_per_image_is_keyed_as_if_there_were_no_choice(small_data: Path, tmp_path: Path) -> None:
    keys = []
    for loss in ("bce", "cross-entropy"):
        config = parse_config(train_arguments(small_data, tmp_path, "--finetune.multilabel-loss", loss))
        training = Training(config, Console(quiet=True))
        folder = head_stage(training, pretext_stage(training, "pretext-warmup", 1)).folder
        keys.append(json.loads((folder / "key.json").read_text()))
    assert keys[0] == keys[1]
    assert set(keys[0]["settings"]) == {"seed", "backbone", "precision", "head", "sgd", "batch_size", "view"}


def test_a_class_that_no_test_image_shows_is_told_before_training(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published.voc2007(tmp_path, CLASSES, per_split=19)
    config = parse_config(arguments(voc, tmp_path / "runs"))
    Training(replace(config, data_root=tmp_path), Console(width=200))
    assert "voc2007/test: mAP leaves out what no image shows: tvmonitor" in capsys.readouterr().out


def test_a_test_split_that_shows_no_class_is_refused_before_training(voc: Path, tmp_path: Path) -> None:
    folder = published.voc2007(tmp_path, CLASSES, per_split=20)
    for path in (folder / "ImageSets" / "Main").glob("*_test.txt"):
        path.write_text(re.sub(r" +1\n", " -1\n", path.read_text()))
    config = parse_config(arguments(voc, tmp_path / "runs"))
    with pytest.raises(UserError, match="No image of voc2007/test shows any of its 20 classes"):
        Training(replace(config, data_root=tmp_path), Console(quiet=True))
    assert np.array_equal([*(tmp_path / "runs").glob("*")], [])
