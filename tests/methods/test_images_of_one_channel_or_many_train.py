"""`--images.channels`: from files to report, with views and a first convolution that fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from bissl_fast.cli import main
from bissl_fast.data.views.presets import eval_view, finetune_view, paper_views
from bissl_fast.errors import UserError
from bissl_fast.evaluation.report.run import write_report
from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.config import TrainConfig, load_config, save_config
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.settings import ImageSettings
from bissl_fast.methods.stages.downstream import FineTuneSettings
from bissl_fast.methods.stages.head import HeadSettings
from bissl_fast.methods.stages.pretrain import PretrainSettings
from bissl_fast.methods.train import Training, train
from bissl_fast.models import build_backbone
from tests.methods.conftest import pretext_stage

COLOURED = "have colours, of which the luma is taken"
FIRST = "backbone.conv1.0.weight"  # of the small network


def stacks(root: Path, channels: int) -> Path:
    random = np.random.default_rng(0)
    for level in range(3):
        folder = root / f"class{level}"
        folder.mkdir(parents=True)
        for index in range(16):
            np.save(folder / f"{index}.npy", random.integers(0, 80 * level + 90, (channels, 24, 24), dtype=np.uint8))
    return root


def settings(data: str, output: Path, images: ImageSettings) -> TrainConfig:
    base = preset_config("quick", data)
    return replace(
        base,
        pretext_dataset=data,
        cache_dir=output / "cache",
        output=output,
        name="run",
        backbone="test_resnet",
        images=images,
        pretrain=PretrainSettings(epochs=1, batch_size=16, warmup_epochs=0),
        head=HeadSettings(epochs=1),
        bissl=BiSSLSettings(alternations=1, lower_steps=1, upper_steps=1, solver_iterations=1, stored_batches=1),
        bilevel=replace(base.bilevel, mode="reverse"),
        finetune=FineTuneSettings(epochs=1, batch_size=8, seeds=1),
    )


@pytest.mark.parametrize(
    ("channels", "caption"),
    [(1, ""), (2, "Of the 2 channels the first is drawn."), (5, "Of the 5 channels the first three are drawn")],
)
def test_a_run_goes_from_files_to_its_report(
    tmp_path: Path, channels: int, caption: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"folder:{stacks(tmp_path / 'set', channels)}"
    images = ImageSettings(size=16, cache_size=20, channels=channels)
    run = train(settings(data, tmp_path, images), Console(width=300))
    plural = "s" * (channels > 1)
    assert (
        f"views of {channels} channel{plural} leave out saturation, hue, gray, which need RGB"
        in capsys.readouterr().out
    )
    weights = load_file(run / "finetune-bissl-0" / "weights.safetensors")
    assert weights[FIRST].shape[1] == channels
    with np.load(run / "test" / "views.npz") as arrays:
        shown = arrays["images"]
    assert shown.shape == (8, 3, 16, 16, 3)
    assert (shown == shown[..., :1]).all() == (channels < 3)
    assert load_config(run / "config.yaml", TrainConfig).images == images
    page = write_report(run).read_text()
    assert ("channels the first" in page) == bool(caption)
    assert caption in page


def test_pictures_in_colour_train_as_gray(small_data: Path, tmp_path: Path) -> None:
    images = ImageSettings(size=16, cache_size=20, channels=1)
    training = Training(settings(f"folder:{small_data / 'labelled'}", tmp_path, images), Console(quiet=True))
    assert training.context.data.unlabelled.images.shape == (60, 20, 20, 1)
    weights = load_file(pretext_stage(training, "pretext-warmup", 2).folder / "weights.safetensors")
    assert weights[FIRST].shape[1] == 1


def test_a_run_in_gray_starts_from_weights_of_colours_and_embeds_in_gray(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(build_backbone("test_resnet", 3).state_dict(), tmp_path / "rgb.safetensors")
    images = ImageSettings(size=16, cache_size=20, channels=1)
    config = settings(f"folder:{small_data / 'labelled'}", tmp_path, images)
    training = Training(replace(config, weights=str(tmp_path / "rgb.safetensors")), Console(width=300))
    assert "from 3 channels to those of the images: conv1.0.weight" in capsys.readouterr().out
    (training.context.folder / "config.yaml").write_text(save_config(config))
    stage = pretext_stage(training, "bissl", 1).folder
    assert main(["embed", str(stage), str(small_data / "loose"), "--output", str(tmp_path / "run.npz")]) == 0
    rgb = ["embed", str(tmp_path / "rgb.safetensors"), str(small_data / "loose"), "--backbone", "test_resnet"]
    assert main([*rgb, "--channels", "1", "--size", "16", "--output", str(tmp_path / "rgb.npz")]) == 0
    assert COLOURED in " ".join(capsys.readouterr().out.split())
    for name in ("run", "rgb"):
        with np.load(tmp_path / f"{name}.npz") as arrays:
            assert arrays["features"].shape[0] == 48
            assert np.isfinite(arrays["features"]).all()


def test_three_channels_change_nothing_that_a_stage_is_keyed_by() -> None:
    images = ImageSettings()
    assert images.pretext_views() == paper_views(96)
    assert (images.finetune_view, images.evaluation_view) == (finetune_view(96), eval_view(96))


def test_mean_and_std_are_given_once_for_all_views_or_averaged() -> None:
    images = ImageSettings(channels=2, mean=(0.1, 0.2), std=(0.3, 0.4))
    views = (*images.pretext_views(), images.finetune_view, images.evaluation_view)
    assert {view.mean for view in views} == {(0.1, 0.2)}
    assert {view.std for view in views} == {(0.3, 0.4)}
    assert {(view.hue, view.saturation, view.gray) for view in views} == {(0, 0, 0)}
    assert ImageSettings(channels=1).evaluation_view.mean == pytest.approx((0.449,))


def test_a_config_keeps_channels_and_what_was_written_before_has_three(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = TrainConfig(images=ImageSettings(channels=2, mean=(0.1, 0.2)))
    path.write_text(save_config(config))
    assert load_config(path, TrainConfig) == config
    lines = save_config(TrainConfig()).splitlines()
    path.write_text("\n".join(line for line in lines if line not in ("  channels: 3", "  mean: null", "  std: null")))
    assert "channels" not in path.read_text()
    assert load_config(path, TrainConfig) == TrainConfig()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"channels": 0}, "--images.channels must be between 1 and 4096, found 0"),
        ({"channels": 2, "mean": (0.5,)}, "--images.mean must be as many numbers as --images.channels, which is 2"),
        ({"std": ()}, "--images.std must be as many numbers as --images.channels, which is 3"),
        ({"std": (0.1, 0.0, 0.1)}, "std is .*; it must be positive for every channel"),
        ({"mean": (0.1, float("nan"), 0.1)}, "mean is .*; it must be finite"),
        ({"channels": 2, "pipeline": "dali"}, "--images.pipeline must be auto, torch or resident .* found dali"),
    ],
)
def test_channels_that_cannot_be_meant_end_in_a_sentence(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ImageSettings(**values)  # type: ignore[arg-type]


def test_without_a_pretext_set_of_the_channels_a_sentence_asks_for_one(tmp_path: Path) -> None:
    config = settings(f"folder:{stacks(tmp_path / 'set', 5)}", tmp_path, ImageSettings(channels=5))
    with pytest.raises(
        UserError, match="images of 5 channels for the pretext task: pass --pretext-dataset folder:PATH"
    ):
        Training(replace(config, pretext_dataset=None), Console(quiet=True))
    with pytest.raises(UserError, match="3 channels, which serve as 3 or 1, not as 5"):
        Training(replace(config, pretext_dataset="textures"), Console(quiet=True))
