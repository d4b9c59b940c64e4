"""`bissl-fast export`: what the card says loads the export, into its own library, with the run's own outputs."""

import json
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bissl_fast
from bissl_fast.cli import main
from bissl_fast.export.card import code
from bissl_fast.export.to_torchvision import renamed, torchvision_network
from bissl_fast.models import build_backbone
from tests.export.runs import CLASSES, write_run

FORMATS = {"timm": "test_resnet", "hf": "test_resnet", "torchvision": "resnet18", "onnx": "test_resnet"}
FEATURES = {"test_resnet": 96, "resnet18": 512}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


def exported(run: Path, kind: str, output: Path, *more: str) -> str:
    """The card of an export."""
    assert main(["export", str(run), "--format", kind, "--output", str(output), *more]) == 0
    return (output / "README.md").read_text()


def outputs(card: str, folder: Path, images: torch.Tensor) -> torch.Tensor:
    """What the card's own lines make of images."""
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {"images": images.numpy() if "onnx" in lines else images}
    before = os.getcwd()
    os.chdir(folder)
    try:
        with torch.no_grad():
            exec(compile(lines, "README.md", "exec"), names)
    finally:
        os.chdir(before)
    return torch.as_tensor(names["outputs"])


def expected(run: Path, images: torch.Tensor, **chosen: Any) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = bissl_fast.load(run, **chosen)(images)
    return made


@pytest.mark.parametrize("stage", ["backbone", "finetuned"])
@pytest.mark.parametrize("kind", FORMATS)
def test_the_lines_of_the_card_give_the_runs_own_outputs(tmp_path: Path, kind: str, stage: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    run = write_run(tmp_path / "run", FORMATS[kind])
    card = exported(run, kind, tmp_path / "out", "--stage", stage)
    for count in (1, 5):  # of any number of images
        images = torch.randn(count, 3, 16, 16)
        found = outputs(card, tmp_path / "out", images)
        assert found.shape == (count, len(CLASSES) if stage == "finetuned" else FEATURES[FORMATS[kind]])
        torch.testing.assert_close(found, expected(run, images, stage=stage), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["timm", "hf"])
def test_networks_made_for_a_size_or_other_channels_load_too(tmp_path: Path, kind: str) -> None:
    for name, channels, size in (("test_resnet", 1, 16), ("test_vit_relpos", 3, 32)):
        run = write_run(tmp_path / f"run-{name}", name, size, channels)
        card = exported(run, kind, tmp_path / name)
        images = torch.randn(2, channels, size, size)
        torch.testing.assert_close(outputs(card, tmp_path / name, images), expected(run, images), rtol=1e-4, atol=1e-4)


def test_conv4_is_written_as_onnx_and_refused_by_libraries_that_lack_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", "conv4", 16)
    for kind, sentence in {"timm": "conv4 is no network of timm's", "torchvision": "torchvision has no conv4"}.items():
        assert main(["export", str(run), "--format", kind]) == 2
        assert sentence in capsys.readouterr().err
    assert not (run / "export" / "bissl-timm").exists()
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    card, images = exported(run, "onnx", tmp_path / "out"), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(outputs(card, tmp_path / "out", images), expected(run, images), rtol=1e-4, atol=1e-4)


def test_hf_holds_what_timm_asks_for(tiny: Path, tmp_path: Path) -> None:
    exported(tiny, "hf", tmp_path / "out", "--stage", "finetuned")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("test_resnet", 3, 96)
    assert config["label_names"] == list(CLASSES)
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16]
    assert config["pretrained_cfg"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    import timm

    changed = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=7)  # a new head
    assert changed.get_classifier().out_features == 7
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in changed.state_dict().items() if "fc" not in name)


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_base_patch16_224", "efficientnet_b0", "densenet121"])
def test_every_tensor_has_a_place_in_torchvisions_network(name: str) -> None:
    import timm

    other = {"vit_base_patch16_224": "vit_b_16"}.get(name, name)
    with torch.device("meta"):
        ours, (theirs, _) = timm.create_model(name, num_classes=5), torchvision_network(other, 5, {})
        found = renamed(ours.state_dict(), theirs.state_dict(), other)
    assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert len(found) == len(ours.state_dict())


def test_a_network_that_gives_other_outputs_or_has_other_tensors_is_not_kept(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bissl_fast.export.to_torchvision.OTHER_NAMES", {"test_resnet": "resnet18"})
    assert main(["export", str(tiny), "--format", "torchvision"]) == 2
    assert "torchvision's resnet18 is built otherwise than timm's; left over are conv1.0." in capsys.readouterr().err
    other = build_backbone("test_resnet", 8).state_dict()
    monkeypatch.setattr("bissl_fast.export.plain_networks.backbone_tensors", lambda model: other)
    assert main(["export", str(tiny), "--format", "timm"]) == 2
    assert "test_resnet gives other outputs in timm (by " in capsys.readouterr().err
    assert not (tiny / "export" / "bissl-timm").exists()
    assert not list((tiny / "export").glob(".*"))


def test_without_the_extra_onnx_says_what_lacks(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert main(["export", str(tiny), "--format", "onnx"]) == 2
    assert "(onnxscript is not here): install them with `pip install 'bissl-fast[onnx]'`" in capsys.readouterr().err


def test_the_card_tells_data_licence_results_and_recipe_and_no_place_on_the_machine(tmp_path: Path) -> None:
    folder = tmp_path / "photos of mine"
    folder.mkdir()
    more = ["--dataset", f"folder:{folder}", "--pretext-dataset", "textures", "--cache-dir", str(tmp_path / "cache")]
    card = exported(write_run(tmp_path / "run", "test_resnet", 16, 3, *more), "timm", tmp_path / "out")
    assert str(tmp_path) not in card
    for part in (
        "# test_resnet, BiSSL on the folder `photos of mine`",
        "- Pretext task: procedural textures, embedded. Its images are made by bissl-fast, under its licence, Apache-2",
        "- Downstream task: the folder `photos of mine`. The licence of its images is not known.",
        "| Top-1 | **51.0 ± 1.4** | 48.0 ± 1.4 | +3.0 |",
        "photos of mine, 3 classes",
        "top-1 accuracy 51.0 ± 12.7 (Student's t, 2 fine-tuning seeds)",
        "dataset: folder:photos of mine",
        "task: simclr",
        "minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)",
    ):
        assert part in card, part


def test_a_set_whose_page_tells_no_licence_is_said_to_have_none_that_is_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "test_resnet", 16, 3, "--dataset", "flowers")
    card = exported(run, "timm", tmp_path / "out")
    assert "Oxford 102 Flowers (https://www.robots.ox.ac.uk/~vgg/data/flowers/102/). The licence of its images" in card
    assert "- Pretext task: STL-10" in card


def test_the_card_of_a_run_that_few_shot_tasks_judge_has_their_intervals(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "test_resnet", 16, 3, "--dataset", "omniglot-fewshot")
    arms = {"bissl": {"scores": {"fewshot_5w1s": [61.0]}, "intervals": {"fewshot_5w1s": 0.4}, "stages": ["bissl"]}}
    results = {"dataset": "omniglot-fewshot", "judged_by": "few-shot tasks", "classes": 20, "arms": arms}
    (run / "results.json").write_text(json.dumps(results))
    card = exported(run, "timm", tmp_path / "out")
    assert "5-way 1-shot accuracy 61.0 ± 0.4 (over episodes)" in card
    assert "- Pretext task: Omniglot" in card
    assert "Its images are under the MIT licence" in card


def test_an_export_is_whole_and_replaces_only_exports(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    exported(tiny, "hf", output)
    exported(tiny, "timm", output)
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "model.safetensors"]
    before = (output / "README.md").read_bytes()

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bissl_fast.export.exporting.write_atomic", full)
    assert main(["export", str(tiny), "--format", "hf", "--output", str(output)]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert ((output / "README.md").read_bytes(), list(tmp_path.iterdir())) == (before, [output])
    (output / "notes.txt").touch()
    assert main(["export", str(tiny), "--format", "hf", "--output", str(output)]) == 2
    assert "holds notes.txt, which no export has written" in capsys.readouterr().err


def test_the_default_folder_lies_in_the_run(tiny: Path) -> None:
    assert main(["export", str(tiny), "--format", "timm", "--arm", "baseline"]) == 0
    assert (tiny / "export" / "pretext-baseline-timm" / "model.safetensors").is_file()


def test_no_name_leaves_its_place_in_the_card() -> None:
    assert code("moss, wet") == "`moss, wet`"
    assert code("a`</code><script>\n# b``c") == "``` a`</code><script> # b``c ```"
