"""`bissl-fast embed`: features, names and labels of the images below a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from bissl_fast.cli import main
from bissl_fast.cli.train import parse_config
from bissl_fast.data.pipelines.loader import sequential_batches
from bissl_fast.data.sets.cache import load
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.sets.readers.folder import folder_names
from bissl_fast.data.views.presets import eval_view
from bissl_fast.errors import UserError
from bissl_fast.evaluation.features import extract_features
from bissl_fast.methods.config import save_config
from bissl_fast.methods.embed import Embedder, embedder
from bissl_fast.models import build_backbone
from tests.methods.conftest import train_arguments


def write_run(folder: Path, small_data: Path, *more: str) -> Path:
    """As much of a run as embedding reads."""
    (folder / "bissl").mkdir(parents=True)
    (folder / "config.yaml").write_text(save_config(parse_config(train_arguments(small_data, folder, *more))))
    tensors = build_backbone("test_resnet", 3).state_dict()
    save_file({f"backbone.{name}": value for name, value in tensors.items()}, folder / "bissl" / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), small_data)


def embed(model: Path | str, folder: Path, output: Path, *more: str) -> dict[str, np.ndarray]:
    assert main(["embed", str(model), str(folder), "--output", str(output), *more]) == 0
    with np.load(output) as content:
        return dict(content)


def test_features_are_those_that_a_run_extracts(run: Path, small_data: Path, tmp_path: Path) -> None:
    folder = small_data / "labelled"
    found = embed(run, folder, tmp_path / "new" / "features.npz", "--labels", "folders", "--batch-size", "7")
    config = parse_config(train_arguments(small_data, run))
    images = load(folder_names(folder), config.images.cache_size, tmp_path, progress=False)
    backbone = build_backbone("test_resnet", 3)
    expected, labels = extract_features(backbone, sequential_batches(images, config.images.evaluation_view, 60, "cpu"))
    np.testing.assert_allclose(found["features"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["labels"], labels)
    assert found["features"].dtype == np.float32
    assert found["classes"].tolist() == ["class0", "class1", "class2"]
    assert found["names"].tolist() == [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.png"))]


def test_whole_images_are_cropped_as_a_run_crops_them(small_data: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", small_data, "--images.whole", "--images.downstream-cache-size", "24")
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for index, (height, width) in enumerate([(20, 40), (30, 20), (24, 24), (60, 25), (21, 50)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{index}.png")
    found = embed(run, folder, tmp_path / "a.npz", "--batch-size", "2")
    source = folder_names(folder).whole
    assert source is not None
    images = load(source(), 24, tmp_path, progress=False)
    view = parse_config(train_arguments(small_data, run)).images.evaluation_view
    expected, _ = extract_features(build_backbone("test_resnet", 3), sequential_batches(images, view, 5, "cpu"))
    np.testing.assert_allclose(found["features"], expected, rtol=1e-5, atol=1e-6)


def test_what_is_left_out_and_what_is_turned_is_told(
    run: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, exif = tmp_path / "photos", Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    folder.mkdir()
    Image.new("RGB", (30, 20)).save(folder / "turned.jpg", exif=exif)
    (folder / "notes.txt").write_text("none")
    embed(run, folder, tmp_path / "a.npz")
    output = " ".join(capsys.readouterr().out.split())
    assert "1 of what lies in" in output
    assert "notes.txt" in output
    assert "1 of 1 images of photos/unlabelled" in output
    assert "turned.jpg" in output


def test_the_same_weights_give_the_same_features_however_they_are_named(
    run: Path, small_data: Path, tmp_path: Path
) -> None:
    folder = small_data / "loose"
    found = embed(run, folder, tmp_path / "a.npz")
    assert found.keys() == {"features", "names"}
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes((run / "bissl" / "weights.safetensors").read_bytes())
    for model, more in ((run / "bissl", ()), (lone, ("--backbone", "test_resnet", "--size", "16"))):
        other = embed(model, folder, tmp_path / "b.npz", *more)
        if model != lone:  # which is shown images of another decoded size
            np.testing.assert_array_equal(other["features"], found["features"])
        assert other["features"].shape == found["features"].shape


def test_timms_weights_see_pixels_as_they_were_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = build_backbone("test_resnet", 1).state_dict()
    monkeypatch.setattr("bissl_fast.models.weights.timm_tensors", lambda _, name: tensors)
    view = embedder("timm:test_resnet", None, 64, print).view
    assert (view.size, view.mean, view.std) == (64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_config_that_is_no_runs_is_left_alone(run: Path, small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("trainer: another")
    (tmp_path / "files").mkdir()
    lone = tmp_path / "files" / "lone.safetensors"
    lone.write_bytes((run / "bissl" / "weights.safetensors").read_bytes())
    assert embed(lone, small_data / "loose", tmp_path / "a.npz", "--backbone", "test_resnet")["names"].size == 48


def test_labels_of_a_table_and_unreadable_images(
    run: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (images / name).write_bytes((small_data / "loose" / "000.png").read_bytes())
    (images / "b.png").write_bytes(b"broken")
    (tmp_path / "t.csv").write_text("c.png,x\nb.png,y\na.png,z\n")
    found = embed(run, images, tmp_path / "f.npz", "--labels", str(tmp_path / "t.csv"))
    assert found["names"].tolist() == ["a.png", "c.png"]
    assert [found["classes"][label] for label in found["labels"]] == ["z", "x"]
    np.testing.assert_array_equal(*found["features"])
    told = capsys.readouterr().out
    assert "1 of 3 images of images could not be read and are left out: b.png: cannot identify image file" in told


def test_all_that_is_left_out_turned_or_scaled_is_counted(
    run: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.open(small_data / "loose" / "000.png").convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=turned)
    clear = image.convert("RGBA")
    clear.putalpha(9)
    clear.save(tmp_path / "clear.png")
    for white in (1000, 4000, 60_000):
        Image.fromarray(np.full((16, 16), white, np.uint16)).save(tmp_path / f"{white}.png")
    for number in range(8):
        (tmp_path / f"broken{number}.png").write_bytes(b"broken")
    (tmp_path / "notes.txt").touch()
    embed(run, tmp_path, tmp_path / "f.npz")
    told = capsys.readouterr().out
    for part in ("turned.jpg", "clear.png", "1000.png", "4000.png", "60000.png", "notes.txt", "8 of 13", "and 3 more"):
        assert part in told


@pytest.mark.parametrize(
    ("model", "more", "sentence"),
    [
        ("nowhere", [], "nowhere is not there: give a file of weights"),
        ("run", ["--backbone", "resnet18"], "does not fit the backbone resnet18"),
        ("timm:vit_tiny_patch16_224", [], "(1, 197, 192) for (1, 37, 192). Give the --backbone, and the size"),
        ("timm:vit_tiny_patch16_224", ["--size", "8"], "the backbone cannot take images of 8 px"),
        ("run", ["--size", "5"], "--size must be between 8 and 4096"),
        ("run", ["--batch-size", "0"], "--batch-size must be at least 1"),
        ("run", ["--device", "tpu9"], "device 'tpu9' cannot be used"),
        ("run", ["--labels", "nowhere.csv"], "nowhere.csv cannot be read"),
    ],
)
def test_what_cannot_be_embedded_is_a_sentence(
    run: Path,
    small_data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    more: list[str],
    sentence: str,
) -> None:
    spec = str(run) if model == "run" else model
    monkeypatch.setattr("bissl_fast.models.weights.timm_tensors", lambda _, name: build_backbone(name, 1).state_dict())
    assert main(["embed", spec, str(small_data / "loose"), *more]) == 2
    assert sentence in capsys.readouterr().err
    assert main(["embed", str(run), "/nowhere"]) == 2
    assert "There is no folder /nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("error", [AssertionError(), IndexError("out of range"), ZeroDivisionError("by zero")])
def test_whatever_a_backbone_raises_ends_in_a_sentence(error: Exception) -> None:
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error

    images = ImageSet("photos", np.zeros((2, 16, 16, 3), np.uint8), None, (), "")
    reason = str(error) or "AssertionError without a word"
    with pytest.raises(UserError, match=rf"cannot take images of 16 px \({reason}\): set --size"):
        Embedder(Failing(), eval_view(16), eval_view(16), 16, False).features(images, torch.device("cpu"))
