"""Ranks under torchrun, of one machine and of two, killed and started again; and without the torchrun that they had."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bissl_fast.training.log import read_metrics

ROOT = Path(__file__).parents[2]
LENGTH = ["--steps", "60", "--seconds", "0.05", "--at", "9", "--checkpoint-seconds", "0"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def torchrun(folder: Path, *options: str) -> "subprocess.Popen[str]":
    """It, with the toy."""
    words = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "tests.training.toy_ranks", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*words, *LENGTH], cwd=ROOT, env=environment, text=True, **pipes)


def worker(parent: "subprocess.Popen[str]") -> int:
    """The first process that a torchrun has started."""
    return int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()[0])


def await_step(folder: Path) -> None:
    end = time.monotonic() + 200
    while not (folder / "reached-0").exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def totals(folder: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["total"]) for record in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    folder = tmp_path_factory.mktemp("unbroken")
    process = torchrun(folder, "--standalone", "--nproc-per-node", "2")
    assert process.communicate(timeout=200)[0] is None
    return totals(folder)


def test_ranks_of_two_torchruns_are_started_again_together(tmp_path: Path, unbroken: list[tuple[int, float]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        there = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--max-restarts", "1"]
    nodes = [torchrun(tmp_path, *options, "--rdzv-endpoint", there, "--rdzv-id", "toy") for _ in range(2)]
    await_step(tmp_path)
    os.kill(worker(nodes[1]), signal.SIGKILL)
    told = [node.communicate(timeout=200)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert sum(text.count("of 2 is gone, without a sign for") for text in told) == 1
    assert totals(tmp_path) == unbroken


def test_ranks_end_without_the_torchrun_that_started_them(tmp_path: Path) -> None:
    process = torchrun(tmp_path, "--standalone", "--nproc-per-node", "2")
    await_step(tmp_path)
    process.kill()
    told = process.communicate(timeout=100)[1]  # which comes back when the ranks have ended, too
    assert told.count("bissl-fast: torchrun on localhost is gone") == 2
    assert (tmp_path / "checkpoint.pt").exists()
