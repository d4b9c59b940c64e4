"""Whole runs under torchrun: killed, started again, stopped, and taken over by another number of ranks."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bissl_fast.training.files import load_weights
from bissl_fast.training.log import read_metrics
from tests.methods.conftest import train_arguments
from tests.methods.test_a_killed_run_ends_with_the_same_bits import outcome

SMALL = """
--name run --backbone test_resnet --images.size 16 --images.cache-size 20 --threads 1 --device cpu
--pretrain.batch-size 16 --pretrain.epochs 8 --pretrain.warmup-epochs 1 --loop.checkpoint-seconds 0
""".split()  # noqa: SIM905

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def launched(ranks: int, command: str, arguments: list[str], restarts: int = 0) -> "subprocess.Popen[str]":
    """A command on ranks of this machine; one has no launcher."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", str(restarts)]
    several = [*torchrun, "--nproc-per-node", str(ranks)] if ranks > 1 else []
    words = [sys.executable, *several, "-m", "bissl_fast.cli", command, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finished(process: "subprocess.Popen[str]") -> str:
    told, _ = process.communicate(timeout=500)
    assert process.returncode == 0, told
    return told


def await_file(path: Path, process: "subprocess.Popen[str]", newer: bool = False) -> None:
    """Until it is there, or written anew."""
    before = path.stat().st_mtime_ns if newer else -1
    end = time.monotonic() + 300
    while not (path.exists() and path.stat().st_size) or path.stat().st_mtime_ns <= before:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"nobody wrote {path}"
        time.sleep(0.01)


def worker(torchrun: int, rank: int) -> int:
    """The process of a rank, of all that torchrun has started."""
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    mine = f"RANK={rank}".encode()
    return next(int(child) for child in children if mine in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"))


def test_ranks_killed_in_three_stages_are_started_again_and_end_with_the_same_bits(
    small_data: Path, tmp_path: Path
) -> None:
    finished(launched(2, "train", train_arguments(small_data, tmp_path / "unbroken")))
    process = launched(2, "train", train_arguments(small_data, tmp_path / "killed"), restarts=3)
    for stage, rank in (("pretext-warmup", 1), ("bissl", 0), ("finetune-bissl-0", 1)):
        await_file(tmp_path / "killed" / "run" / stage / "metrics.jsonl", process)
        os.kill(worker(process.pid, rank), signal.SIGKILL)
    told = finished(process)
    assert [int(rank) for rank in re.findall(r"^bissl-fast: rank (\d) of 2 is gone", told, re.M)] == [1, 0, 1]
    assert outcome(tmp_path / "killed" / "run") == outcome(tmp_path / "unbroken" / "run")


def test_another_number_of_ranks_goes_on_with_the_same_batches(small_data: Path, tmp_path: Path) -> None:
    def arguments(name: str) -> list[str]:
        sets = ["--dataset", f"folder:{small_data / 'labelled'}", "--pretext-dataset", f"folder:{small_data / 'loose'}"]
        return [*sets, "--cache-dir", str(small_data / "cache"), "--output", str(tmp_path / name), *SMALL]

    finished(launched(1, "pretrain", arguments("one")))
    told = ""
    for ranks in (2, 1):
        process = launched(ranks, "pretrain", arguments("mixed"))
        await_file(tmp_path / "mixed" / "run" / "pretext" / "checkpoint.pt", process, newer=bool(told))
        process.send_signal(signal.SIGTERM)
        told += process.communicate(timeout=100)[0]
    told += finished(launched(2, "pretrain", arguments("mixed")))
    assert len(re.findall(r"^bissl-fast: pretext stopped on request after step \d+ of 24", told, re.M)) == 2
    assert len(re.findall(r"^pretext: goes on after step \d+ of 24", told, re.M)) == 2
    one, mixed = (tmp_path / name / "run" / "pretext" for name in ("one", "mixed"))
    logs = [read_metrics(stage / "metrics.jsonl") for stage in (one, mixed)]
    assert [record["step"] for record in logs[1]] == list(range(1, 25))
    assert [record["loss"] for record in logs[1]] == pytest.approx([record["loss"] for record in logs[0]], rel=1e-3)
    weights = [load_weights(stage / "weights.safetensors") for stage in (one, mixed)]
    apart = sum(float((weights[0][name].double() - weights[1][name].double()).norm()) for name in weights[0])
    assert apart < 1e-3 * sum(float(tensor.double().norm()) for tensor in weights[0].values())
