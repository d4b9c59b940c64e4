"""Stages are keyed by settings and inputs."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.training.files import exclusive
from bissl_fast.training.stage import StageOutput, run_stage

QUIET = Console(quiet=True)


def writer(calls: list[Path], content: str = "w") -> Callable[[Path], None]:
    def body(folder: Path) -> None:
        calls.append(folder)
        (folder / "weights.safetensors").write_text(content)
        (folder / "checkpoint.pt").write_text("no longer needed")

    return body


def stage(folder: Path, calls: list[Path], rate: float = 1.0, data: str = "abc", content: str = "w") -> StageOutput:
    return run_stage(folder, {"rate": rate}, {"images": data}, writer(calls, content), console=QUIET)


def test_a_finished_stage_is_skipped_and_its_checkpoint_removed(tmp_path: Path) -> None:
    calls: list[Path] = []
    folder = tmp_path / "run" / "pretext"
    first = stage(folder, calls)
    assert stage(folder, calls) == first
    assert calls == [folder]
    assert not (folder / "checkpoint.pt").exists()
    assert (folder / "DONE").exists()


@pytest.mark.parametrize("change", [{"rate": 2.0}, {"data": "def"}], ids=["a setting", "an input"])
def test_a_changed_setting_or_input_repeats_the_stage_and_keeps_the_old_result(
    tmp_path: Path, change: dict[str, float | str]
) -> None:
    calls: list[Path] = []
    folder = tmp_path / "run" / "pretext"
    stage(folder, calls, content="old")
    stage(folder, calls, content="new", **change)  # type: ignore[arg-type]
    assert len(calls) == 2
    assert (folder / "weights.safetensors").read_text() == "new"
    (kept,) = (tmp_path / "run" / "superseded").iterdir()
    assert (kept / "weights.safetensors").read_text() == "old"


def test_going_back_to_earlier_settings_takes_their_kept_result(tmp_path: Path) -> None:
    calls: list[Path] = []
    folder = tmp_path / "run" / "pretext"
    for rate in (1.0, 2.0, 1.0, 2.0):
        stage(folder, calls, rate=rate, content=str(rate))
        assert (folder / "weights.safetensors").read_text() == str(rate)
    assert len(calls) == 2


def test_a_finished_result_is_never_replaced_by_an_unfinished_one(tmp_path: Path) -> None:
    calls: list[Path] = []
    folder = tmp_path / "run" / "pretext"
    stage(folder, calls, rate=1.0, content="finished")
    stage(folder, calls, rate=2.0)
    key = (next((tmp_path / "run" / "superseded").iterdir()) / "key.json").read_text()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "key.json").write_text(key)  # begun again with the first settings and broken off
    stage(folder, calls, rate=3.0)
    stage(folder, calls, rate=1.0)
    assert len(calls) == 3
    assert (folder / "weights.safetensors").read_text() == "finished"


def test_the_output_hash_follows_the_content_of_the_outputs(tmp_path: Path) -> None:
    one = stage(tmp_path / "a" / "pretext", [], rate=1.0, content="same")
    two = stage(tmp_path / "a" / "other", [], rate=2.0, content="same")
    three = stage(tmp_path / "a" / "third", [], rate=3.0, content="different")
    assert one.hash == two.hash != three.hash


def test_a_stage_finished_in_a_sibling_run_is_copied(tmp_path: Path) -> None:
    calls: list[Path] = []
    first = stage(tmp_path / "run-1" / "pretext", calls)
    second = stage(tmp_path / "run-2" / "pretext", calls)
    assert len(calls) == 1
    assert second.hash == first.hash
    assert (second.folder / "weights.safetensors").read_text() == "w"


def test_a_stage_broken_off_goes_on_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "pretext"

    def broken(folder: Path) -> None:
        (folder / "checkpoint.pt").write_text("half way")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run_stage(folder, {"rate": 1.0}, {"images": "abc"}, broken, console=QUIET)
    assert not (folder / "DONE").exists()
    found: list[str] = []

    def resumed(folder: Path) -> None:
        found.append((folder / "checkpoint.pt").read_text())
        (folder / "weights.safetensors").write_text("w")

    run_stage(folder, {"rate": 1.0}, {"images": "abc"}, resumed, console=QUIET)
    assert found == ["half way"]


def test_a_run_folder_serves_one_process_at_a_time(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(UserError, match="another bissl-fast is at work"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where a folder is wanted")
    with pytest.raises(UserError, match="could not be written"):
        stage(tmp_path / "run" / "pretext", [])


@pytest.mark.parametrize("name", ["weights.safetensors", "DONE"])
def test_a_result_that_was_damaged_is_named_and_made_again(tmp_path: Path, name: str) -> None:
    calls: list[Path] = []
    folder, told = tmp_path / "run" / "pretext", io.StringIO()
    stage(folder, calls)
    (folder / name).write_text("cut of")
    run_stage(folder, {"rate": 1.0}, {"images": "abc"}, writer(calls), console=Console(file=told))
    assert f"{name} in {folder} is not as it was written: done again" in told.getvalue()
    assert len(calls) == 2


@pytest.mark.parametrize("done", ["[]", "3", '{"key": 3}', "{}", "[" * 100_000, '{"key": "KEY", "outputs": [1]}'])
def test_a_stage_whose_mark_is_damaged_is_done_again(tmp_path: Path, done: str) -> None:
    calls: list[Path] = []
    folder = tmp_path / "run" / "pretext"
    stage(folder, calls)
    key = json.loads((folder / "key.json").read_text())["key"]
    (folder / "DONE").write_text(done.replace("KEY", key))
    stage(folder, calls)
    assert len(calls) == 2


@pytest.mark.parametrize("key", ['"/../../../elsewhere"', "3", "null", "[1]", '{"a": 1}'])
def test_a_key_that_is_none_names_no_folder(tmp_path: Path, key: str) -> None:
    calls: list[Path] = []
    folder = tmp_path / "run" / "pretext"
    stage(folder, calls)
    (folder / "key.json").write_text(f'{{"key": {key}}}')
    stage(folder, calls, rate=2.0)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == [
        "pretext",
        "pretext-unknown",
        "run",
        "superseded",
    ]


@pytest.mark.parametrize("left", [[], ["key.json.partial"]], ids=["nothing", "half a key"])
def test_a_folder_whose_making_was_killed_is_gone_on_with_in_silence(tmp_path: Path, left: list[str]) -> None:
    folder, told = tmp_path / "run" / "pretext", io.StringIO()
    folder.mkdir(parents=True)
    for name in left:
        (folder / name).write_text("{")
    run_stage(folder, {"rate": 1.0}, {"images": "abc"}, writer([]), console=Console(file=told))
    assert not told.getvalue()


def test_a_half_done_stage_whose_key_is_damaged_is_kept_and_made_again(tmp_path: Path) -> None:
    folder, told = tmp_path / "run" / "pretext", io.StringIO()
    folder.mkdir(parents=True)
    (folder / "key.json").write_text('{"key": 12')
    (folder / "checkpoint.pt").write_text("half way")
    run_stage(folder, {"rate": 1.0}, {"images": "abc"}, writer([]), console=Console(file=told))
    assert "its key.json is missing or damaged" in told.getvalue()
    assert (tmp_path / "run" / "superseded" / "pretext-unknown" / "checkpoint.pt").read_text() == "half way"
