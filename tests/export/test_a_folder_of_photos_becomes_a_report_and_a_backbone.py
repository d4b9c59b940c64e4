"""From a user's folder, as it is, to a report and a backbone for another library, in one command."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import bissl_fast
from bissl_fast.cli import main
from tests.methods.conftest import SMALL

CLASSES = ("<img src=x onerror=alert(1)><script>", "moss", "stone`s")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """JPEGs of three classes and odd sizes, one of them broken."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    for level, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            height, width = rng.integers(17, 60, 2)
            pixels = rng.integers(70 * level, 70 * level + 90, (height, width, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.jpg")
    (folder / "moss" / "broken.jpg").write_bytes((folder / "moss" / "0.jpg").read_bytes()[:200])
    return folder


def test_one_command_goes_from_a_folder_to_a_report_and_an_exported_backbone(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [
        "--dataset",
        f"folder:{photos}",
        "--pretext-dataset",
        f"folder:{photos}",
        "--cache-dir",
        str(tmp_path / "c"),
    ]
    command = ["train", *sets, "--output", str(tmp_path), "--name", "run", *SMALL, "--export", "hf"]
    assert main(command) == 0
    run = tmp_path / "run"
    told = capsys.readouterr().out
    assert "broken.jpg" in told
    assert told.endswith(f"Go on with `bissl-fast predict {run} IMAGES` or `bissl-fast export {run} --format timm`.\n")
    assert "BiSSL" in (run / "report.html").read_text()
    images = torch.randn(2, 3, 16, 16)
    backbone = timm.create_model(f"local-dir:{run / 'export' / 'bissl-hf'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), bissl_fast.load(run)(images), rtol=1e-4, atol=1e-5)
    assert main(["predict", str(run), str(photos), "--output", str(tmp_path / "classes.csv")]) == 0
    assert "skipped: moss/broken.jpg: " in capsys.readouterr().err
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert {row["class"] for row in rows} <= set(CLASSES)
    assert json.loads((run / "finetune-bissl-0" / "classes.json").read_text()) == list(CLASSES)
    card = (run / "export" / "bissl-hf" / "README.md").read_text()
    for shown in (
        (run / "report.html").read_text(),
        (run / "table.md").read_text(),
        card.replace(f"`{CLASSES[0]}`", ""),
    ):
        assert "<script" not in shown
        assert "onerror=" not in shown or "&lt;img src=x onerror=" in shown
