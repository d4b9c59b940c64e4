"""`bissl-fast predict`: a CSV of all images below a folder, and a reason for every file that is not in it."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bissl_fast
from bissl_fast.cli import main
from bissl_fast.cli.predict import to_standard_output
from bissl_fast.export.predicting import Predictions, predict
from tests.export.runs import CLASSES, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images at two depths, seven broken ones and a text."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (folder / "b").mkdir()
    for name in ("z.png", "b/2.png", "a, b.png", "b/10.png", "été.png"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / name)
    for number in range(7):
        (folder / f"broken{number}.jpg").write_bytes(b"broken")
    (folder / "notes.txt").touch()
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_classes_and_probabilities_are_those_of_the_module(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "classes.csv"
    assert main(["predict", str(run), str(photos), "--top", "3", "--output", str(output), "--batch-size", "2"]) == 0
    found = rows(output.read_text(encoding="utf-8"))
    model = bissl_fast.load(run, stage="finetuned")
    images = ["a, b.png", "b/10.png", "b/2.png", "z.png", "été.png"]
    assert [row["path"] for row in found] == [name for name in images for _ in range(3)]
    for index, name in enumerate(images):
        with torch.no_grad():
            probabilities = model(model.transform(photos / name)[None]).softmax(1)[0]
        told = found[3 * index : 3 * index + 3]
        assert [row["class"] for row in told] == [CLASSES[k] for k in probabilities.argsort(descending=True)]
        shown = [float(row["probability"]) for row in told]
        np.testing.assert_allclose(shown, probabilities.sort(descending=True).values, atol=2e-6)
    told_by = capsys.readouterr()
    assert told_by.out == ""
    for number in range(7):  # each of them, and why
        assert f"skipped: broken{number}.jpg: cannot identify image file" in told_by.err
    assert "notes.txt" in told_by.err


def test_standard_output_holds_the_table_alone(
    run: Path, photos: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["predict", str(run), str(photos)]) == 0
    captured = capfdbinary.readouterr()
    found = rows(captured.out.decode())
    assert [row["path"] for row in found] == ["a, b.png", "b/10.png", "b/2.png", "z.png", "été.png"]
    assert all(float(row["probability"]) >= 1 / 3 for row in found)
    assert b"broken0.jpg" in captured.err


def test_a_pipe_that_closes_early_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        to_standard_output(b"path,class,probability\n")


def test_several_classes_have_probabilities_of_their_own(photos: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    settings = {"settings": {"multilabel_loss": "bce"}}
    (run / "finetune-bissl-1" / "key.json").write_text(json.dumps(settings))
    model = bissl_fast.load(run, stage="finetuned")
    found = predict(model, photos, top=9)
    with torch.no_grad():
        expected = model(model.transform(photos / "z.png")[None]).sigmoid()[0]
    told = {name: probability for path, name, probability in found.rows if path == "z.png"}
    np.testing.assert_allclose([told[name] for name in CLASSES], expected, atol=1e-6)


def test_equal_probabilities_stand_in_the_order_of_the_classes(run: Path, photos: Path) -> None:
    model = bissl_fast.load(run, stage="finetuned")
    torch.nn.init.zeros_(model.network.head.weight)
    torch.nn.init.zeros_(model.network.head.bias)
    assert [name for _, name, _ in predict(model, photos, top=3).rows[:3]] == list(CLASSES)


def test_names_that_are_no_utf8_keep_their_bytes_and_commas_are_quoted() -> None:
    made = Predictions((("a\udcff.png", "moss, wet", 0.25),), 1, (), ())
    assert made.csv() == b'path,class,probability\na\xff.png,"moss, wet",0.250000\n'


def test_no_path_is_a_formula_to_a_spreadsheet_and_each_still_names_its_file() -> None:
    names = ("=1+1.png", "@a.png", "-b/c.png", "+d.png", "\tg.png", "\rh.png", "e=f.png")
    table = Predictions(tuple((n, "moss", 1.0) for n in names), 7, (), ()).csv().decode()
    rows = list(csv.reader(io.StringIO(table, newline="")))
    found = [path for path, *_ in rows[1:]]
    assert found == ["./=1+1.png", "./@a.png", "./-b/c.png", "./+d.png", "./\tg.png", "./\rh.png", "e=f.png"]
    assert [os.path.normpath(path) for path in found] == list(names)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--top", "0"], "--top must be at least 1, found 0"),
        (["--stage", "bissl"], "is a backbone without a classifier: choose --stage finetuned"),
        (["--output", "/dev/null/classes.csv"], "/dev/null could not be written"),
        (["--output", "/dev"], "a folder stands where a file is wanted"),
    ],
)
def test_what_cannot_be_predicted_is_a_sentence(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert main(["predict", str(run), str(photos), *more]) == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_without_a_readable_image_is_a_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    assert main(["predict", str(run), str(tmp_path)]) == 2
    assert "None of the 1 images" in capsys.readouterr().err
    assert main(["predict", str(run), str(tmp_path / "nowhere")]) == 2
    assert "There is no folder" in capsys.readouterr().err
