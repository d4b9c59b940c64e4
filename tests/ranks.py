"""Processes that are ranks of one gloo group, and wait for what tests want run on all of them."""

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bissl_fast.ops import Ranks
from tests.forks import FORKS, forked

SIZE = 2
WAIT = 250.0
"""Seconds until a rank that says nothing is given up."""


class Processes:
    """Runs functions on every rank; started with the first, and again after one that failed.

    Args:
        folder: where the ranks find each other.
        size: how many there are.
        wait: seconds until a rank that says nothing is given up.
        backend: of the group; with NCCL each rank has a GPU of its own.
    """

    def __init__(self, folder: Path, size: int = SIZE, wait: float = WAIT, backend: str = "gloo") -> None:
        self._folder, self._size, self._wait, self._backend, self._starts = folder, size, wait, backend, 0
        self._workers: list[tuple[Any, Any]] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What ``function(ranks, *args)``, a function of a module, returns on each rank: tensors, or tables of them.

        Raises:
            RuntimeError: with the trace of a rank that raised, or stood still.
        """
        if not self._workers:
            self._start()
        for _, pipe in self._workers:
            pipe.send_bytes(pickle.dumps((function, args)))  # by value, as no memory is shared
        found, failed = [], []
        for rank, (process, pipe) in enumerate(self._workers):
            answered = pipe.poll(self._wait if not failed else 1.0)
            try:
                answer = pickle.loads(pipe.recv_bytes()) if answered else "it stood still"
            except (EOFError, OSError):
                answer = f"it ended, exit code {process.exitcode}"
            done, answer = answer if isinstance(answer, tuple) else (False, answer)
            (found if done else failed).append(answer if done else f"rank {rank}: {answer}")
        if failed:
            self.stop()
            raise RuntimeError("\n".join(failed))
        return found

    def stop(self) -> None:
        for process, pipe in self._workers:
            pipe.close()
            process.kill()
            process.join()
        self._workers = []

    def _start(self) -> None:
        self._starts += 1
        for rank in range(self._size):
            ours, theirs = FORKS.Pipe()
            store = str(self._folder / f"store-{self._starts}")
            process = forked(serve, rank, self._size, store, theirs, self._backend)
            process.start()
            self._workers.append((process, ours))


def serve(rank: int, size: int, store: str, pipe: Any, backend: str) -> None:
    """A rank's life: one function after another until the pipe ends."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if "nccl" in backend:
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, rank=rank, world_size=size, store=dist.FileStore(store, size))
    ranks = Ranks.present() or Ranks(0, 1, dist.group.WORLD.group_name)  # one GPU still calls every collective
    while True:
        try:
            given = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            function, args = pickle.loads(given)
            answer = (True, function(ranks, *args))
        except Exception:
            answer = (False, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
