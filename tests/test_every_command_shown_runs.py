"""Each line of a ``bash`` block in README, CONTRIBUTING and docs/ is run, in a folder that holds what it names.

All of them run to their end, made small by further options, but for

- ``train``, ``pretrain``, ``compare`` and ``ablate``, which end where their first stage would begin: settings are
  read, data opened, arms prepared and products tried. The stages are those of the runs that go through here;
- ``bench``, ``reproduce``, ``plan``, ``sweep`` and ``python -m benchmarks.…``, which take minutes to weeks: options are
  read;
- pretrained weights of timm's, for which random ones stand in, since there is no network;
- ``make``, ``scripts/`` and what sets up a shell, which no test can run within itself: targets and files are there.
"""

import importlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import tyro

from bissl_fast.cli import COMMANDS, main
from bissl_fast.data.sets import textures
from bissl_fast.methods.run import Run
from tests.experiments.comparisons import SMALLER as SHORTER
from tests.methods.conftest import SMALL
from tests.shown import PAGES, ROOT, commands, write_world

BEGUN = ("train", "pretrain", "compare", "ablate")
IMAGES = SMALL[: SMALL.index("--pretrain.epochs")]
EVALUATED = (
    "linear.epochs",
    "semi.epochs",
    "finetune.epochs",
    "finetune.seeds",
    "fewshot.episodes",
    "crossdomain.episodes",
)
TRAINING = [
    *SMALL,
    *SHORTER,
    *("--bissl.stored-batches=1", "--gessl.tasks=1", "--gessl.batch-size=4", "--abrl.batch-size=8"),
]
SMALLER = {
    "train": TRAINING,
    "compare": TRAINING,
    "ablate": TRAINING,
    "pretrain": [*IMAGES, "--pretrain.epochs", "1", "--pretrain.warmup-epochs", "0.5"],
    "evaluate": [f"--{name}=2" for name in EVALUATED],
    "sigma": ["--tasks", "2"],
    "one-step": ["--tasks", "2"],
}
TRAIN = "bissl-fast train --dataset folder:photos/labelled --pretext-dataset folder:photos/all --name photos"
PRETRAIN = next(line for line in commands("bissl-fast pretrain") if line.endswith("--name omniglot"))
RANKS = [re.sub(r"^torchrun .* -m bissl_fast\.cli", "bissl-fast", line) for line in commands("torchrun")]
LINES = [*commands("bissl-fast"), *RANKS]
BEGINNING = [line for line in LINES if line.split()[1] in BEGUN and not line.endswith(("--help", "--list"))]
READ = commands("bissl-fast bench", "bissl-fast reproduce", "bissl-fast plan", "bissl-fast sweep")
ENDING = [line for line in LINES if line not in (*BEGINNING, *READ)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder, which is the working directory."""
    folder, before = tmp_path_factory.mktemp("world"), Path.cwd()
    write_world(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("BISSL_FAST_CACHE", str(folder / "cache"))
        patch.setattr(textures, "COUNTS", {"unlabelled": 128, "train": 48, "val": 24, "test": 240})  # whole: 8 s
        os.chdir(folder)
        yield folder
    os.chdir(before)


def run(line: str) -> None:
    """A command as it stands, in this process, with what makes it small in front of its own options."""
    _, command, *rest = shlex.split(line.partition(" > ")[0])
    study = [rest.pop(0)] if command == "ablate" else []
    plain = "--help" in rest or study == ["--list"]
    try:
        status = main([command, *study, *([] if plain else SMALLER.get(command, [])), *rest])
    except SystemExit as ended:  # of help
        status = ended.code or 0
    assert status == 0, line


class Begins(Exception):
    """A first stage."""


@pytest.mark.parametrize("line", BEGINNING)
def test_training_gets_to_its_first_stage(line: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begins(*_: Any) -> None:
        raise Begins

    monkeypatch.setattr(Run, "stage", begins)
    with pytest.raises(Begins):
        run(line)


def test_what_follows_training_runs_on_a_trained_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **options | {"pretrained": False}))
    shutil.rmtree("runs", ignore_errors=True)  # what has begun
    run(TRAIN)
    for name in ("demo", "a", "b", "c"):
        shutil.copytree("runs/photos", f"runs/{name}")
    run(PRETRAIN)
    for line in ENDING:
        run(line)
    made = ("predictions.csv", "features.npz", "both.html", "runs/runs.html", "runs/demo/export/bissl-hf/README.md")
    assert all(map(os.path.exists, made))


@pytest.mark.parametrize("line", READ)
def test_the_options_of_what_takes_long_are_read(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Read(Exception):
        """All options."""

    parse = tyro.cli

    def read(what: Any, **options: Any) -> None:
        parse(what, **options)
        raise Read

    monkeypatch.setattr(tyro, "cli", read)
    with pytest.raises(Read):
        run(line)


@pytest.mark.parametrize("line", commands("python -m"))
def test_the_options_of_a_file_of_benchmarks_are_its_own(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, name, *rest = shlex.split(line)
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(name).main()
    told = capsys.readouterr().out
    assert all(word in told for word in rest if word.startswith("--"))


def test_targets_and_scripts_are_there() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert {line.split()[1] for line in commands("make")} <= set(targets)
    assert all(os.access(ROOT / line.split()[0], os.X_OK) for line in commands("scripts/"))
    assert all((ROOT / line.split()[1]).exists() for line in commands("python scripts/"))


def test_no_line_and_no_command_within_a_sentence_is_of_another_kind() -> None:
    kinds = ("bissl-fast", "torchrun", "python", "make", "scripts/")
    other = {line.split()[0] for line in set(commands("")) - set(commands(*kinds))}
    assert other == {"source", "pip", "tensorboard"}
    named = {name for page in PAGES for name in re.findall(r"`bissl-fast ([a-z][a-z-]*)", page.read_text())}
    assert named <= set(COMMANDS)
