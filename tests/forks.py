"""Processes that are forked from one that has imported everything: imports take longer than what most tests do."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "bissl_fast.cli.reproduce",
        "bissl_fast.cli.train",
        "bissl_fast.evaluation.report.run",
        *("timm", "sklearn.manifold", "torch.utils.tensorboard"),  # what these import as they go
    ]
)


def forked(function: Callable[..., Any], *args: Any) -> BaseProcess:
    """A process of its own, not yet started, that calls ``function(*args)``; it ends with this one at the latest."""
    return FORKS.Process(target=function, args=args, daemon=True)


class Command:
    """A command of ``bissl-fast`` in a process of its own.

    Args:
        arguments: what follows ``bissl-fast``.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._told = tempfile.NamedTemporaryFile("r", suffix=".txt")  # noqa: SIM115  as long as this lives
        self._process = forked(_command, list(arguments), self._told.name)
        self._process.start()

    def status(self) -> int | None:
        """Its exit status, a signal's number below zero, and None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self, timeout: float = 240) -> str:
        """Wait until it has ended; what it has told."""
        self._process.join(timeout)
        assert self.status() is not None, f"it runs after {timeout} s: {self.told()}"
        return self.told()

    def told(self) -> str:
        """What it has written so far."""
        return Path(self._told.name).read_text()


def _command(arguments: list[str], told: str) -> None:
    from bissl_fast.cli import main

    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    descriptor = os.open(told, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main(arguments))
