"""Disks that are full, read-only or gone, in the middle of a stage: refused system calls, file size limits, and file
systems that really are so, where this process may mount them."""

import builtins
import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.training.checkpoint import read_checkpoint
from bissl_fast.training.files import disk_told, exclusive, write_atomic
from bissl_fast.training.loop import LoopSettings
from bissl_fast.training.stage import run_stage
from tests.training.test_a_broken_loop_goes_on_as_if_it_had_not_been import CPU, EVERY_STEP, Wanderer, loop

LARGE = 20_000
"""Weights of a checkpoint of 80 kB."""

REASONS = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EIO: "its disk no longer answers",
}


def fails_in_step(folder: Path, action: Callable[[], Any], sentence: str, settings: LoopSettings = EVERY_STEP) -> None:
    """A stage whose fourth step does something to the disk ends in a sentence."""
    task = Wanderer(LARGE)
    task.at[3] = lambda: action() and None
    with pytest.raises(
        UserError, match=f"{folder.name}.* could not be written, {sentence}.*run the same command again"
    ):
        loop(task, folder, settings)


def ends_with_the_same_bits(folder: Path, whole: Path) -> None:
    assert torch.equal(loop(Wanderer(LARGE), folder).weight, loop(Wanderer(LARGE), whole).weight)


def refusing(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> Callable[[], None]:
    """Let a system call fail from now on."""

    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError(number, os.strerror(number))

    opened = open

    def refuse_writing(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        return refuse() if "w" in mode else opened(file, mode, *arguments, **named)

    if call == "open":
        return lambda: monkeypatch.setattr(builtins, "open", refuse_writing)
    return lambda: monkeypatch.setattr(os, call, refuse)


@pytest.mark.parametrize(
    ("call", "number"),
    [("open", errno.EROFS), ("fsync", errno.ENOSPC), ("fsync", errno.EDQUOT), ("replace", errno.EIO)],
)
def test_a_call_that_fails_leaves_the_checkpoint_before_and_the_stage_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    fails_in_step(tmp_path / "run", refusing(monkeypatch, call, number), REASONS[number])
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt", CPU)["done"] == 3
    assert not list((tmp_path / "run").glob("*.partial"))
    ends_with_the_same_bits(tmp_path / "run", tmp_path / "whole")


@pytest.fixture
def file_sizes() -> Iterator[Callable[[int], None]]:
    """Sets the size that a file may have, as a full disk does, for this test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 50_000], ids=["not a byte", "the log, no checkpoint", "half a checkpoint"])
def test_files_that_may_not_grow_cost_no_checkpoint(
    tmp_path: Path, file_sizes: Callable[[int], None], size: int
) -> None:
    fails_in_step(tmp_path / "run", lambda: file_sizes(size), "the file would exceed the size allowed")
    file_sizes(resource.RLIM_INFINITY)
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt", CPU)["done"] == 3
    ends_with_the_same_bits(tmp_path / "run", tmp_path / "whole")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=400k", "none", str(place))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this process may not mount file systems")
    yield place
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


def test_a_full_disk_is_told_and_with_room_the_stage_goes_on(disk: Path, tmp_path: Path) -> None:
    def fill() -> None:
        with pytest.raises(OSError, match="No space left"):
            (disk / "others").write_bytes(bytes(400_000))

    fails_in_step(disk / "run", fill, "the disk is full")
    (disk / "others").unlink()
    ends_with_the_same_bits(disk / "run", tmp_path / "whole")


def test_a_disk_that_turns_read_only_is_told_and_the_stage_goes_on_when_it_is_not(disk: Path, tmp_path: Path) -> None:
    task = Wanderer(LARGE)
    task.at[3] = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        loop(task, disk / "run")
    mount("-o", "remount,ro", str(disk))
    with pytest.raises(UserError, match=r"metrics\.jsonl could not be written, the file system is read-only"):
        loop(Wanderer(LARGE), disk / "run")
    mount("-o", "remount,rw", str(disk))
    ends_with_the_same_bits(disk / "run", tmp_path / "whole")


def test_a_disk_that_vanishes_is_told_by_the_path_that_is_gone(disk: Path) -> None:
    def vanish() -> None:
        subprocess.run(["umount", "-l", str(disk)], check=True)

    fails_in_step(disk / "run", vanish, "its folder is gone")


def test_a_stage_whose_result_cannot_be_written_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def body(folder: Path) -> None:
        (folder / "weights.safetensors").write_text("w")
        refusing(monkeypatch, "fsync", errno.ENOSPC)()

    with pytest.raises(UserError, match="DONE could not be written, the disk is full"):
        run_stage(tmp_path / "run" / "pretext", {}, {}, body, console=Console(quiet=True))
    assert not (tmp_path / "run" / "pretext" / "DONE").exists()


def test_what_fails_unforeseen_still_names_its_file_and_other_errors_pass(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=f"{tmp_path / 'figure'} could not be written, the disk is full"),
        disk_told(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space", str(tmp_path / "figure"))
    with pytest.raises(UserError, match=f"{tmp_path} could not be written, its disk no longer"), disk_told(tmp_path):
        raise OSError(errno.EIO, "I/O")
    with pytest.raises(OSError, match="a bug"), disk_told(tmp_path):
        raise OSError(errno.EBADF, "a bug")


@pytest.mark.parametrize("name", ["weights.safetensors.partial", ".lock"])
def test_nothing_is_written_through_a_link_that_another_user_has_laid(name: str, tmp_path: Path) -> None:
    other = tmp_path / "theirs"
    other.write_bytes(b"of another folder")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / name).symlink_to(other)
    with pytest.raises(UserError, match="could not be written, a link"), exclusive(shared):
        write_atomic(shared / "weights.safetensors", b"ours")
    assert other.read_bytes() == b"of another folder"
    (shared / name).unlink(missing_ok=True)
    with exclusive(shared):
        write_atomic(shared / "weights.safetensors", b"ours")
    assert (shared / "weights.safetensors").read_bytes() == b"ours"
