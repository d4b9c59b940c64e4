"""Ranks that are started by anything: one that fails, stands still or is gone ends all, in a sentence that names it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)

TOY = [sys.executable, "-m", "tests.training.toy_ranks"]


class Started:
    """Processes that are ranks of one group, without a launcher that would watch over them."""

    def __init__(self, folder: Path, size: int, *options: str) -> None:
        self.folder, self.size = folder, size
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(size)}
        self.processes = [
            subprocess.Popen(
                [*TOY, str(folder), *options],
                cwd=ROOT,
                env={**os.environ, **where, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """A signal, once all have taken some steps."""
        end = time.monotonic() + 200
        while not all((self.folder / f"reached-{rank}").exists() for rank in range(self.size)):
            assert time.monotonic() < end, self.ends()
            time.sleep(0.02)
        for rank in ranks:
            self.processes[rank].send_signal(number)

    def ends(self, of: tuple[int, ...] = ()) -> tuple[list[int], list[str]]:
        """Exit statuses, and what was told, of all ranks or some."""
        chosen = [self.processes[rank] for rank in of or range(self.size)]
        try:
            told = [process.communicate(timeout=200)[1] for process in chosen]
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in chosen], told


def test_a_killed_rank_ends_the_others_in_one_sentence_that_names_it(tmp_path: Path) -> None:
    ranks = Started(tmp_path, 2)
    ranks.send(signal.SIGKILL, 1)
    statuses, (told, nothing) = ranks.ends()
    assert statuses == [2, -signal.SIGKILL]
    assert told.startswith("bissl-fast: rank 1 of 2 is gone")
    assert told.count("\n") == 1
    assert nothing == ""


@pytest.mark.slow
def test_what_one_rank_meets_is_told_once_with_its_number(tmp_path: Path) -> None:
    ranks = Started(tmp_path, 2, "--error", "sentence", "--ranks", "1")
    statuses, told = ranks.ends()
    assert (statuses, told) == ([2, 2], ["bissl-fast: rank 1: the toy broke; mend it.\n", ""])


@pytest.mark.slow
def test_what_all_ranks_meet_is_told_once(tmp_path: Path) -> None:
    statuses, told = Started(tmp_path, 3, "--error", "sentence", "--ranks", "0,1,2").ends()
    assert (statuses, told) == ([2, 2, 2], ["bissl-fast: the toy broke; mend it.\n", "", ""])


@pytest.mark.slow
def test_a_bug_of_one_rank_keeps_its_traceback_and_ends_all(tmp_path: Path) -> None:
    statuses, (told, trace) = Started(tmp_path, 2, "--error", "bug", "--ranks", "1").ends()
    assert statuses == [1, 1]
    assert told.startswith("bissl-fast: rank 1: an error of the program")
    assert told.count("\n") == 1
    assert "Traceback" in trace
    assert "KeyError: 'toy'" in trace


@pytest.mark.slow
def test_without_the_keeper_of_the_store_every_rank_names_it(tmp_path: Path) -> None:
    ranks = Started(tmp_path, 3)
    ranks.send(signal.SIGKILL, 0)
    statuses, (_, *told) = ranks.ends()
    assert statuses == [-signal.SIGKILL, 2, 2]
    assert all(text.startswith("bissl-fast: rank 0 of 3 is gone") and text.count("\n") == 1 for text in told)


@pytest.mark.slow
def test_a_rank_that_exits_by_itself_is_gone(tmp_path: Path) -> None:
    statuses, told = Started(tmp_path, 3, "--error", "exit", "--ranks", "2").ends()
    assert statuses == [2, 2, 7]
    assert told[0].startswith("bissl-fast: rank 2 of 3 is gone")
    assert told[1:] == ["", ""]


@pytest.mark.slow
def test_a_rank_that_stands_still_is_gone_for_the_others(tmp_path: Path) -> None:
    ranks = Started(tmp_path, 3)
    ranks.send(signal.SIGSTOP, 2)
    statuses, (told, nothing) = ranks.ends((0, 1))
    assert statuses == [2, 2]
    assert told.startswith("bissl-fast: rank 2 of 3 is gone")
    assert nothing == ""


@pytest.mark.slow
def test_a_rank_that_does_not_come_to_a_collective_is_named(tmp_path: Path) -> None:
    ranks = Started(tmp_path, 3, "--error", "stuck", "--ranks", "1", "--distributed.timeout", "20")
    statuses, told = ranks.ends()
    assert statuses == [2, 2, 2]
    assert re.match(r"bissl-fast: the ranks have lost each other .*: rank 1 is there, but did not come", told[0])
    assert told[1:] == ["", ""]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path: Path) -> None:
    ranks = Started(tmp_path, 3)
    ranks.send(signal.SIGTERM, 1)
    statuses, (told, *others) = ranks.ends()
    assert statuses == [130, 130, 130]
    assert re.match(r"bissl-fast: \S+ stopped on request after step \d+", told)
    assert told.count("\n") == 1
    assert others == ["", ""]
    assert (tmp_path / "checkpoint.pt").exists()


@pytest.mark.slow
def test_signals_are_heard_while_a_collective_blocks(tmp_path: Path) -> None:
    ranks = Started(tmp_path, 2, "--error", "stuck", "--ranks", "1", "--at", "9")
    end = time.monotonic() + 200
    while not list(tmp_path.glob("metrics.jsonl")) and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(3.0)
    ranks.processes[0].send_signal(signal.SIGTERM)
    statuses, (told, _) = ranks.ends((0, 1))
    assert statuses[0] == 130
    assert told.startswith("bissl-fast: stopped on request, while it waited for other ranks.")
