"""The command line as a person meets it: help, exit statuses, no traceback."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bissl_fast.cli import main
from bissl_fast.cli.train import parse_config
from bissl_fast.methods.config import METHODS, save_config
from bissl_fast.methods.presets import preset_config
from bissl_fast.version import __version__

COMMANDS = ("train", "compare", "ablate", "pretrain", "embed", "evaluate", "predict", "export", "data", "bench")
COMMANDS += ("report", "track", "doctor", "plan", "reproduce", "sweep")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {command} " in output for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tain"], "there is no command 'tain'"),
        (["train", "--bissl.proximity", "-1"], "--bissl.proximity (λ) must be positive, found -1.0"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["train", "--dataset", ""], "There is no data set ''"),
        (["train", "--pretext-dataset", ""], "There is no data set ''"),
        (["train", "--images.size", "1000000"], "--images.size must be between 8 and 4096 pixels, found 1000000"),
        (["train", "--images.first.blur", "2"], "The view setting blur is 2.0; it must be a probability between 0 and"),
        (["train", "--images.first.mean", "nan", "0", "0"], "The view setting mean is (nan, 0.0, 0.0); it must be fin"),
        (["train", "--backbone", "resnet_18"], "timm knows no backbone called 'resnet_18'; did you mean"),
        (["train", "--pretext", "mocov9"], "--pretext must be one of simclr, moco, byol,"),
        (["pretrain", "--pretext", "mocov9"], "--pretext must be one of simclr, moco, byol,"),
        (["pretrain", "--pretext", ""], "--pretext must be one of simclr, moco, byol,"),
        (["pretrain", "--pretext", "moco", "--pretext.queue", "63"], "--pretext.queue must hold the 64 keys of a step"),
        (["train", "--pretext", "wmse", "--pretext.slice-size", "128"], "must be a multiple of 128, as --pretext wmse"),
        (
            ["train", "--pretext", "wmse", "--pretext.slice-size", "8"],
            "--pretext.slice-size must be at least 64, twice",
        ),
        (["pretrain", "--pretext", "wmse", "--pretrain.batch-size", "96"], "must be a multiple of 64, as --pretext wm"),
        (["train", "--pretext", "dino", "--images.local-size", "4"], "--images.local-size must be between 8 and 4096"),
        (["train", "--pretext", "swav", "--pretext.prototypes", "1"], "--pretext.prototypes must be at least 2"),
        (["compare", "--methods", "bissl"], "compare needs two or more --methods, found bissl alone"),
        (["compare", "--seeds", "0"], "--seeds must be at least 1, found 0"),
        (["compare", "--budget", "-1"], "--budget must be a positive number of epochs, found -1.0"),
        (["compare", "--budget", "nan"], "--budget must be finite and a positive number of epochs, found nan"),
        (["compare", "--dataset", "nothing"], "There is no data set 'nothing'"),
        (["compare", "--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["reproduce", "table1", "--datasets", "textures"], "--datasets must be of table1: stl10, flowers, cars,"),
        (
            ["reproduce", "table1", "--scale", "2"],
            "--scale must be above 0 and at most 1, the paper's lengths, found 2.0",
        ),
        (["reproduce", "figure2", "--epochs", "many"], "--epochs takes numbers with commas between them, as 200,400"),
        (["reproduce", "figure3", "--preset", "quick"], "--preset is the paper's here: choose sets with --datasets"),
        (["reproduce", "figure3", "--methods", "gessl,baseline"], "reproduce compares bissl with baseline, as the pap"),
        (["ablate", "everything"], "there is no study 'everything'; `bissl-fast ablate --list` tells bissl-solver,"),
        (["ablate", "bissl-solver", "--dataset", "nothing"], "There is no data set 'nothing'"),
        (["train", "--methods", "bissl,bissl"], f"--methods must be one or more of {', '.join(METHODS)}, each once"),
        (["train", "--methods", "bissl", "bissl"], f"--methods must be one or more of {', '.join(METHODS)}, each once"),
        (["pretrain", "--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["pretrain", "--pretrain.epochs", "0"], "--pretrain.epochs 0 leaves a random backbone"),
        (
            ["train", "--export", "tflite"],
            "--export must be one or more of timm, torchvision, onnx, hf, found 'tflite'",
        ),
        (["train", "--export", "hf,timm", "--backbone", "conv4"], "conv4 is no network of timm's"),
        (["train", "--export", "torchvision", "--backbone", "vit_tiny_patch16_224"], "torchvision has no vit_tiny"),
        (["train", "--preset", "fast"], "--preset must be paper, official or quick, found 'fast'"),
        (["embed", "run", "nowhere"], "nowhere: give the path of a folder of images.\n"),
        (["embed", "run", ".", "--output", "/dev/null/f.npz"], "/dev/null could not be written"),
        (["embed", "run", ".", "--output", "/dev"], "/dev could not be written, a folder stands where a file"),
        (["bench", "nt-xent", "--output", "/dev"], "/dev could not be written, a folder stands where a file"),
        (["report", "nowhere"], "is not a run folder"),
        (["report", "nowhere", "--output", "page.html"], "--output is for the page of several runs"),
        (["export", "nowhere", "--format", "hf"], "nowhere is not a run folder"),
        (["predict", "nowhere", "."], "nowhere is not a run folder"),
        (["bench", "everything"], "there is no benchmark 'everything'"),
        (["bench", "nt-xent", "--sizes", "big"], "expected pairs x width"),
        (["bench", "nt-xent", "--rounds", "0"], "--rounds must be at least 1"),
        (["bench", "nt-xent", "--output", "/dev/null/table.md"], "/dev/null could not be written"),
        (["bench", "products", "--output", "table.json"], "--output names the Markdown"),
        (["bench", "products", "--rounds", "0"], "--rounds must be at least 1"),
        (["bench", "products", "--device", "tpu9"], "device 'tpu9' cannot be used"),
        (["bench", "nt-xent", "--device", "tpu9"], "device 'tpu9' cannot be used"),
    ],
)
def test_what_cannot_be_used_ends_in_one_sentence_and_status_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("bissl-fast: ")
    assert sentence in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--methods", "gradient-descent"], "gradient-descent"),
        (["train", "--methods", "bissl,gradient-descent"], "gradient-descent"),
        (["train", "--pretext", "byol", "--pretext.queue", "64"], "--pretext.queue"),
        (["pretrain", "--pretext", "simclr", "--pretext.predictor", "64"], "--pretext.predictor"),
        (["pretrain", "--bissl.alternations", "3"], "--bissl.alternations"),
    ],
)
def test_options_that_another_task_or_command_has_are_named(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert named in captured.err + captured.out
    assert "Traceback" not in captured.err


def test_an_option_of_train_without_its_value_is_answered_under_the_commands_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for option in ("--preset", "--dataset", "--config"):
        with pytest.raises(SystemExit):
            main(["train", option])
        error = capsys.readouterr().err
        assert error.startswith("usage: bissl-fast train [OPTIONS]     (bissl-fast train --help tells more)\n")
        assert f"argument {option}: expected one argument" in error


def test_doctor_tells_versions_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert all(word in output for word in ("torch", "timm", "threads", "backend reference", "backend cpp"))
    assert all(word in output for word in ("batch norm", "NT-Xent", "convolutions", "bfloat16", "float16"))


def test_help_of_train_shows_the_values_of_the_chosen_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--preset", "paper", "--dataset", "pets", "--help"])
    output = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "per alternation [N_L]. (default: 20)" in output
    assert "(default: 0.0235)" in output  # Table 2, Pets


def test_no_option_and_no_line_of_a_config_shows_a_size_that_has_no_effect(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert re.findall(r"--images\.[\w.]*\bsize\b", capsys.readouterr().out) == ["--images.size"]
    images = yaml.safe_load(save_config(preset_config("quick", "textures")))["images"]
    assert images.pop("size") == 32
    assert [name for name, view in images.items() if isinstance(view, dict) and "size" in view] == []


def test_options_lie_over_the_preset_and_the_config_file_replaces_it(tmp_path: Path) -> None:
    config = parse_config(["--preset", "official", "--dataset", "dtd", "--bissl.lower-steps", "7"])
    assert (config.preset, config.bissl.lower_steps, config.bissl.learning_rate) == ("official", 7, 1.0)
    (tmp_path / "config.yaml").write_text(save_config(config))
    again = parse_config(["--config", str(tmp_path / "config.yaml"), "--seed", "3", "--name", "my--preset"])
    assert (again.preset, again.bissl.lower_steps, again.seed) == ("official", 7, 3)
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--preset", "quick"]) == 2


def test_a_config_means_the_same_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_config(["--dataset", "folder:images", "--output", "out", "--data-root", "sets"]).located()
    assert config.dataset == f"folder:{tmp_path / 'images'}"
    assert (config.output, config.data_root) == (tmp_path / "out", tmp_path / "sets")
    assert config.run_folder.parent == tmp_path / "out"
    elsewhere = parse_config(["--dataset", "folder:elsewhere/images"]).located()
    assert elsewhere.run_folder.name != config.run_folder.name


@pytest.mark.parametrize(
    ("command", "work"),
    [
        ("train --export onnx", "bissl_fast.methods.train.train"),
        ("pretrain", "bissl_fast.methods.train.pretrain"),
        ("compare", "bissl_fast.experiments.comparison.compare"),
        ("ablate bissl-damping", "bissl_fast.experiments.comparison.compare"),
    ],
)
def test_ctrl_c_names_the_command_that_was_given_whatever_the_folder_holds(
    command: str, work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, interrupted)
    arguments = [*command.split(), "--pretrain.epochs", "3", "--name", "a name", "--output", str(tmp_path)]
    (tmp_path / "a name").mkdir()
    (tmp_path / "a name" / "config.yaml").write_text("of: other settings")
    assert main(arguments) == 130
    assert capsys.readouterr().err.endswith(f"Go on with: {shlex.join(['bissl-fast', *arguments])}\n")


def test_a_reader_that_has_seen_enough_ends_a_command_in_silence() -> None:
    command = [sys.executable, "-m", "bissl_fast.cli", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")
