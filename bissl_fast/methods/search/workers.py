"""Further processes on this machine that help with a search, and end with the one that started them."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from bissl_fast.training.files import unwritable
from bissl_fast.training.ranks.launcher import as_one

WELL = (0, 130, -signal.SIGTERM)
"""How a worker ends: with the search, or on request, which may come before it has begun."""


@contextmanager
def workers(run: Path, arm: str, count: int, folder: Path) -> Iterator[Callable[[Callable[[str], None]], None]]:
    """``count`` − 1 processes of ``bissl-fast sweep``, which share the threads with this one.

    Args:
        run: the run's folder.
        arm: whose search they help with.
        count: of processes, this one among them.
        folder: where what they print is kept.

    Yields:
        What ends them and tells of those that had failed.
    """
    threads = torch.get_num_threads()
    each = max(1, threads // count)
    command = [sys.executable, "-m", "bissl_fast.cli", "sweep", str(run), "--arms", arm, "--threads", str(each)]
    command += ["--tied"]
    with ExitStack() as stack:
        started = [_start(command, folder / f"worker-{number}.txt", stack) for number in range(1, count)]
        torch.set_num_threads(threads if count == 1 else each)
        stack.callback(torch.set_num_threads, threads)

        def tell(say: Callable[[str], None]) -> None:
            for number, process in enumerate(started, 1):
                _end(process)
                if process.wait() not in WELL:
                    printed = folder / f"worker-{number}.txt"
                    say(f"worker {number} of the search ended with status {process.returncode}: {printed} says why")

        yield tell


def _start(command: list[str], printed: Path, stack: ExitStack) -> "subprocess.Popen[bytes]":
    try:
        file = stack.enter_context(printed.open("wb"))
    except OSError as error:
        raise unwritable(printed, error) from None
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=as_one())
    stack.callback(process.wait)
    stack.callback(_end, process)
    return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Close what a process is tied to."""
    assert process.stdin is not None
    process.stdin.close()
