"""`bissl-fast bench data` measures what is there, says what is not, and keeps its numbers; no time is asserted."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from bissl_fast.cli import main
from bissl_fast.data.sets import textures
from bissl_fast.data.views.presets import vicreg_views
from bissl_fast.measuring import feeding, views
from bissl_fast.ops import backend
from tests.data import trees

HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(textures, "COUNTS", {"unlabelled": 23, "train": 12, "val": 12, "test": 12})
    monkeypatch.setattr(views, "COPIED_BYTES", 1 << 16)
    monkeypatch.setattr(views, "TURNS", 1)
    monkeypatch.setattr(feeding, "TURNS", 1)
    monkeypatch.setenv("BISSL_FAST_CACHE", str(tmp_path / "cache"))


def bench(*options: str) -> int:
    return main(["bench", "data", "--device", "cpu", "--seconds", "0.01", *options])


def test_three_tables_are_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "data.md"
    assert bench("--size", "16", "--cache-size", "80", "--batch-size", "4", "--output", str(output)) == 0
    printed = capsys.readouterr().out
    record = json.loads(output.with_suffix(".json").read_text())
    rows = {row["pipeline"]: row for row in record["rates"]["rows"]}
    expected = {"fused, C++, float32", "fused, C++, bfloat16", "torch, the definition"}
    assert set(rows) == expected | ({"DALI, CPU"} if HAS_DALI else set())
    for row in rows.values():
        assert row["views_per_second"] == pytest.approx(2 * 4 / row["seconds"])
        assert row["nanoseconds_per_pixel"] == pytest.approx(1e9 * row["seconds"] / (2 * 4 * 16 * 16))
        share = row["bytes_per_second"] / record["rates"]["copy_bytes_per_second"]
        assert row["copy_share"] == pytest.approx(share)
        # Written: 2 views x 4 images x 3 channels; read: at most the images, whole, for each view.
        written = 2 * 4 * 3 * 16 * 16 * (2 if "bfloat16" in row["pipeline"] else 4)
        moved = row["bytes_per_second"] * row["seconds"]
        assert written < moved < written + 2 * 4 * 3 * 80 * 80
    assert record["step"]["fed_seconds"] >= record["step"]["waiting_seconds"] > 0
    assert (record["step"]["preset"], record["step"]["batch_size"]) == ("quick", 23)
    assert 0 < record["cache"]["images"] <= 23
    assert record["cache"]["size"] == 64
    text = output.read_text()
    for words in ("of a copy's rate", "waiting in it", "reading alone", "enlarged from 64 px", "arithmetic"):
        assert words in text
    assert "fed by the loader" in printed
    assert [path.name for path in (tmp_path / "cache").iterdir() if "measuring" in path.name] == []


def test_a_pipeline_that_is_not_there_is_left_out_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "bissl_fast.data.pipelines.dali_graph", raising=False)
    trees.class_folders(tmp_path / "set", {"a": 5, "b": 5})
    with backend("reference"):
        assert bench("--dataset", f"folder:{tmp_path / 'set'}", "--size", "16", "--batch-size", "4") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "torch, the" in printed
    assert "The fused kernel is left out" in printed
    assert "DALI is left out. The dali pipeline needs NVIDIA DALI" in printed
    assert "fused, C++" not in printed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--dataset", "texture"], "There is no data set 'texture'. Did you mean 'textures'?"),
        (["--dataset", "dtd"], "no --data-root was given"),
        (["--batch-size", "0"], "--batch-size must be at least 1, found 0"),
        (["--batch-size", "24"], "lower the batch size to at most 23"),
        (["--size", "7"], "--size must be between 8 and 1024 pixels, found 7"),
        (["--size", "1025"], "--size must be between 8 and 1024 pixels, found 1025"),
        (["--cache-size", "5000"], "--cache-size must be between 8 and 4096 pixels"),
        (["--seconds", "0"], "--seconds must be positive"),
        (["--seconds", "nan"], "--seconds must be finite and positive"),
        (["--threads", "-1"], "--threads must be between 0 and"),
        (["--device", "tpu9"], "device 'tpu9' cannot be used"),
    ],
)
def test_bad_input_ends_in_one_sentence(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*options) == 2
    error = capsys.readouterr().err
    assert error.startswith("bissl-fast: ")
    assert sentence in error
    assert error.count("\n") == 1


def test_small_images_are_enlarged_and_large_ones_left_alone() -> None:
    from bissl_fast.data.sets.catalogue import load_pretext

    images = load_pretext("textures", None, 112)
    large = views.enlarged(images, 112, count=5)
    assert (large.images.shape, large.name) == ((5, 112, 112, 3), "textures/unlabelled, enlarged from 64 px")
    assert abs(float(large.images[0].mean()) - float(images.images[0].mean())) < 2
    assert views.enlarged(images, 64) is images


def test_all_pipelines_render_the_same_views() -> None:
    import torch

    from bissl_fast.data.pipelines.order import BatchOrder
    from bissl_fast.data.sets.catalogue import load_pretext

    images = load_pretext("textures", None, 112)
    order, pair = BatchOrder(len(images), 6, seed=0), vicreg_views(24)
    with views.pipelines(images, pair, order, torch.device("cpu"), 2) as (calls, _):
        definition = calls["torch, the definition"](1)
        for name, call in calls.items():
            for found, expected in zip(call(1), definition, strict=True):
                assert found.shape == (6, 3, 24, 24)
                # Two levels of 255 for DALI, and bfloat16 has 8 bits of a value of up to 2.7.
                assert (found.float() - expected).abs().max() < 2.1 / 255 / 0.224 + 2.7 / 256, name
