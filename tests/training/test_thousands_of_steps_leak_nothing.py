"""Memory, open files and logs of a long loop: bounded, whatever the number of steps."""

import ctypes
import gc
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from bissl_fast.training.loop import LoopSettings, run_loop

EVERY_STEP = LoopSettings(checkpoint_seconds=0)


class MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc's malloc.h, 2.33 and later."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


def resident() -> int:
    """Bytes of memory that this process holds now, free ones of its heap among them."""
    found = re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def in_use() -> int:
    """Bytes that tensors and other large objects take now, whatever the heap has free from earlier tests."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallocInfo
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


class Watched:
    """A network of 160 kB whose steps note what the process holds; with a leak of so many bytes per step, if wanted."""

    images_per_step, log_every = 1, 10

    def __init__(self, steps: int, leak: int = 0) -> None:
        self.steps, self.leak, self.kept = steps, leak, []  # type: ignore[var-annotated]
        self.network = nn.Linear(200, 200)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 1e-4, momentum=0.9)
        self.resident: list[int] = []
        self.in_use: list[int] = []
        self.blocks: list[int] = []
        self.files: list[int] = []

    def step(self, index: int) -> dict[str, Any]:
        self.optimizer.zero_grad()
        loss = self.network(torch.randn(8, 200)).square().mean()
        loss.backward()
        self.optimizer.step()
        self.kept.append(b"x" * self.leak)
        if (index + 1) % (self.steps // 10) == 0:
            self.in_use.append(in_use())
            self.resident.append(resident())
            self.blocks.append(sys.getallocatedblocks())
            self.files.append(len(os.listdir("/proc/self/fd")))
        return {"loss": loss.detach(), "list": loss.detach().expand(3)}

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        raise AssertionError


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after each step would wait for the disk most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def looped(folder: Path, steps: int, leak: int = 0) -> Watched:
    task = Watched(steps, leak)
    run_loop(task, folder, torch.device("cpu"), 0, EVERY_STEP, Console(quiet=True))
    return task


needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")


@needs_glibc
@pytest.mark.parametrize("steps", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_memory_and_open_files_stay_as_they_were_after_a_fifth_of_the_steps(tmp_path: Path, steps: int) -> None:
    task = looped(tmp_path, steps)
    assert len(task.in_use) == 10
    assert max(task.in_use) - task.in_use[1] < 3e5  # of one checkpoint, and there was one after each step
    assert max(task.resident) - task.resident[1] < 4e6
    assert max(task.blocks) - task.blocks[1] < 3000
    assert len(set(task.files)) == 1
    assert sorted(file.name for file in tmp_path.glob("checkpoint*")) == ["checkpoint-1.pt", "checkpoint.pt"]
    log = (tmp_path / "metrics.jsonl").read_bytes()
    assert log.count(b"\n") == steps // 10
    assert len(log) < 200 * steps // 10
    assert sum(file.stat().st_size for file in (tmp_path / "tensorboard").iterdir()) < 200 * steps // 10 + 1000


@needs_glibc
@pytest.mark.slow
def test_a_leak_of_ten_kilobytes_per_step_would_be_seen(tmp_path: Path) -> None:
    task = looped(tmp_path, 100, leak=10**4)
    assert max(task.in_use) - task.in_use[1] > 6e5
