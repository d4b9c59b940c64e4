"""Checkpoints that were cut off, changed or emptied on the disk, of this version, of others and of none."""

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.training import checkpoint
from bissl_fast.training.checkpoint import Checkpoints, read_checkpoint
from bissl_fast.training.loop import LoopSettings, run_loop
from tests.training.test_a_broken_loop_goes_on_as_if_it_had_not_been import CPU, EVERY_STEP, Wanderer, logged, loop

FILES = ("checkpoint.pt", "checkpoint-1.pt")

Harm = Callable[[bytes], bytes]


def flipped(position: float) -> Harm:
    def flip(content: bytes) -> bytes:
        index = min(len(content) - 1, int(position * len(content)))
        return content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]

    return flip


HARMS = {
    "emptied": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "cut off in its first line": lambda content: content[:9],
    "one bit of the weights": flipped(0.5),
    "one bit of the first line": flipped(0.0),
    "its last bit": flipped(1.0),
    "filled with zeros": lambda content: bytes(len(content)),
    "another file": lambda content: b"not a checkpoint\n",
}


def broken_off(folder: Path, step: int, settings: LoopSettings = EVERY_STEP) -> None:
    """A stage that has died in a step, with checkpoints of those before."""
    task = Wanderer()
    task.at[step] = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        loop(task, folder, settings)


def harm(path: Path, how: Harm) -> None:
    path.write_bytes(how(path.read_bytes()))


def resumed(folder: Path, task: Wanderer | None = None) -> tuple[Wanderer, str]:
    """The stage brought to its end, and what it told."""
    told, task = io.StringIO(), task or Wanderer()
    run_loop(task, folder, CPU, 5, EVERY_STEP, Console(file=told))
    return task, told.getvalue()


@pytest.mark.parametrize("name", HARMS)
def test_the_one_before_a_damaged_one_serves_and_the_last_bits_are_the_same(tmp_path: Path, name: str) -> None:
    whole = loop(Wanderer(), tmp_path / "whole")
    broken_off(tmp_path / "run", 5)
    assert [read_checkpoint(tmp_path / "run" / file, CPU)["done"] for file in FILES] == [5, 4]
    harm(tmp_path / "run" / "checkpoint.pt", HARMS[name])
    task, told = resumed(tmp_path / "run")
    assert re.search(r"checkpoint\.pt is damaged: it.*; checkpoint-1\.pt, .*serves in its place", told)
    assert "goes on after step 4 of 7" in told
    assert torch.equal(task.weight, whole.weight)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


@pytest.mark.parametrize("name", ["emptied", "one bit of the weights"])
def test_with_all_of_them_damaged_the_stage_starts_again(tmp_path: Path, name: str) -> None:
    whole = loop(Wanderer(), tmp_path / "whole")
    broken_off(tmp_path / "run", 5)
    for file in FILES:
        harm(tmp_path / "run" / file, HARMS[name])
    task, told = resumed(tmp_path / "run")
    assert "no other is left, and the stage starts again from its first step" in told
    assert "goes on after" not in told
    assert torch.equal(task.weight, whole.weight)


def test_as_many_are_kept_as_are_asked_for_and_the_youngest_is_told_by_its_name(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", 6, LoopSettings(checkpoint_seconds=0, checkpoints=3))
    kept = {file.name: read_checkpoint(file, CPU)["done"] for file in (tmp_path / "run").glob("checkpoint*")}
    assert kept == {"checkpoint.pt": 6, "checkpoint-1.pt": 5, "checkpoint-2.pt": 4}
    with pytest.raises(UserError, match="checkpoints must be at least 1"):
        LoopSettings(checkpoints=0)


def test_of_many_the_youngest_whole_one_serves(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, kept=12, console=Console(file=io.StringIO()))
    for step in range(12):
        checkpoints.save({"done": step})
    for file in FILES:
        harm(tmp_path / file, HARMS["emptied"])
    newest = checkpoints.newest(CPU)
    assert newest is not None
    assert newest["done"] == 9  # of checkpoint-2, and not of checkpoint-10


def test_a_rank_that_does_not_write_leaves_a_damaged_one_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(tmp_path, 5)
    harm(tmp_path / "checkpoint.pt", HARMS["emptied"])
    monkeypatch.setattr(checkpoint, "writes", lambda: False)
    newest = Checkpoints(tmp_path, console=Console(file=io.StringIO())).newest(CPU)
    assert newest is not None
    assert newest["done"] == 4
    assert (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("renames", [0, 1], ids=["before the first", "between the two"])
def test_a_crash_between_renames_leaves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    whole = loop(Wanderer(), tmp_path / "whole")
    task, replace = Wanderer(), os.replace

    def die_after(left: list[int]) -> None:
        def dying(old: Any, new: Any) -> None:
            if str(new).endswith(".pt"):
                if not left:
                    raise KeyboardInterrupt
                left.pop()
            replace(old, new)

        monkeypatch.setattr(os, "replace", dying)

    task.at[3] = lambda: die_after([0] * renames)
    with pytest.raises(KeyboardInterrupt):
        loop(task, tmp_path / "run")
    monkeypatch.undo()
    resumed_task, told = resumed(tmp_path / "run")
    assert "goes on after step 3 of 7" in told
    assert torch.equal(resumed_task.weight, whole.weight)


def test_a_checkpoint_of_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    whole = loop(Wanderer(), tmp_path / "whole")
    broken_off(tmp_path / "run", 3)
    (tmp_path / "run" / "checkpoint-1.pt").unlink()
    content = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(content[content.index(b"\n") + 1 :])
    task, told = resumed(tmp_path / "run")
    assert "goes on after step 3 of 7" in told
    assert torch.equal(task.weight, whole.weight)


def test_a_checkpoint_of_another_format_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 7)
    monkeypatch.setattr(checkpoint, "__version__", "3.4")
    broken_off(tmp_path / "run", 3)
    monkeypatch.undo()
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match=r"has checkpoint format 7, written by bissl-fast 3\.4; this one"):
        resumed(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_log_that_lost_its_end_is_not_filled_up_with_zeros(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", 5)
    harm(tmp_path / "run" / "metrics.jsonl", HARMS["emptied"])
    resumed(tmp_path / "run")
    assert b"\0" not in (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert [line["step"] for line in logged(tmp_path / "run")] == [6, 7]


@pytest.mark.parametrize("checked", [True, False])
def test_a_checkpoint_executes_nothing(tmp_path: Path, checked: bool) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    if checked:
        Checkpoints(tmp_path).save({"task": Trap()})
        with pytest.raises(UserError, match="does not read it"):
            resumed(tmp_path)
    else:
        torch.save({"task": Trap()}, tmp_path / "checkpoint.pt")
        assert "not a readable checkpoint" in resumed(tmp_path)[1]
    assert not (tmp_path / "executed").exists()


def test_memory_that_is_full_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(tmp_path / "run", 3)

    def full(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(RuntimeError, match="allocate"):
        resumed(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint-damaged.pt").exists()
