"""The start and the end of a command on many ranks: one process each, started by torchrun or anything like it."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from itertools import pairwise
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from bissl_fast.errors import UserError
from bissl_fast.training.interruption import Interrupted, Interruption, interruptible
from bissl_fast.training.ranks.joining import joined, of_each
from bissl_fast.training.ranks.launcher import Launch
from bissl_fast.training.ranks.roll import MISSED, Farewell, Roll, named
from bissl_fast.training.ranks.watch import CALL, Ended, Watch, asked_around, farewell, lost_by, told

ECHO = 2.0
"""Seconds in which torchrun passes on the Ctrl-C that the terminal has sent to its ranks already."""

FAREWELL = 12.0
"""Seconds that a rank which has ended waits for others to hear of it."""


def over_ranks(arguments: Sequence[str], run: Callable[[], int]) -> int:
    """Run a command as one of many ranks; returns the exit status.

    Ranks above 0 print nothing and write nothing. A sentence that ends them all is told once, by rank 0 if it is there,
    with the number of the rank that met it unless all did. A rank that is killed or no longer answers ends the others
    within a minute.

    Args:
        arguments: behind its name.
        run: what every rank does; returns the exit status.

    Raises:
        UserError: before the ranks have found each other.
    """
    launch = Launch.read()
    with ExitStack() as stack:
        tell = _teller(launch.rank)
        if launch.rank:
            for redirect in (redirect_stdout, redirect_stderr):
                stack.enter_context(redirect(_nowhere(stack)))
        stack.enter_context(_handlers())
        roll, store = _join(launch, _seconds(arguments))
        watch = Watch(roll, launch.keeper, tell)
        watch.start()
        error: BaseException | None = None
        status = 0
        try:
            try:
                with interruptible():
                    _make_group(launch, store, arguments)
                    status = run()
            finally:
                watch.rest()
                for number in (signal.SIGINT, signal.SIGTERM, CALL):
                    signal.signal(number, signal.SIG_IGN)
        except BaseException as found:
            error = found
        try:
            return _concluded(launch, watch, status, error)
        finally:
            roll.stop()
            _destroy_group()


def _teller(rank: int) -> Callable[[str], None]:
    stderr = sys.stderr

    def tell(text: str) -> None:
        print(f"bissl-fast: {text}", file=stderr, flush=True)

    return tell


def _nowhere(stack: ExitStack) -> Any:
    return stack.enter_context(open(os.devnull, "w"))


@contextmanager
def _handlers() -> Iterator[None]:
    """Signals of a rank: Ctrl-C once though it may come twice, and the watch's call."""
    last = [-ECHO]

    def stop(number: int, frame: FrameType | None) -> None:
        Interruption.heard += 1
        if time.monotonic() - last[0] >= ECHO:
            last[0] = time.monotonic()
            raise KeyboardInterrupt

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended

    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, CALL)}
    signal.signal(signal.SIGINT, stop)
    signal.signal(CALL, end)
    Interruption.echo = ECHO
    try:
        yield
    finally:
        Interruption.echo = 0.0
        for number, handler in kept.items():
            signal.signal(number, handler)


def _seconds(arguments: Sequence[str], otherwise: float = 600.0) -> float:
    """How long ranks wait for each other: --distributed.timeout, which is asked for before it is parsed."""
    for argument, value in pairwise([*arguments, ""]):
        name, sign, same = argument.partition("=")
        if name == "--distributed.timeout":
            with suppress(ValueError):
                return max(1.0, float(same if sign else value))
    return otherwise


def _join(launch: Launch, seconds: float) -> tuple[Roll, Any]:
    try:
        with interruptible():
            return joined(launch, seconds)
    except Interrupted:
        if launch.rank == 0:
            raise
        raise SystemExit(130) from None  # rank 0 says so


def _make_group(launch: Launch, store: Any, arguments: Sequence[str]) -> None:
    """Threads, device and process group of this rank, shared with the others of its machine.

    Raises:
        UserError: if there are more ranks than GPUs.
    """
    cuda = torch.cuda.is_available() and "--device=cpu" not in arguments
    cuda = cuda and ("--device", "cpu") not in pairwise(arguments)
    cores = sorted(os.sched_getaffinity(0))
    here = f"{socket.gethostname()}/{cores}"
    places = of_each(store, "place", launch.rank, launch.size, here)
    beside = [rank for rank, place in enumerate(places) if place == here]
    host = [place for place in places if place.partition("/")[0] == socket.gethostname()]
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(len(host)))  # as torchrun does
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # which torchrun sets where nobody has
        torch.set_num_threads(max(1, len(cores) // len(beside)))
    if cuda:
        local = beside.index(launch.rank) if launch.local_rank is None else launch.local_rank
        take_gpu(launch, store, local)
    timeout = timedelta(seconds=_seconds(arguments))
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=timeout)


def take_gpu(launch: Launch, store: Any, local: int) -> None:
    """Let this rank's GPU be the current one: the only one that it is shown, or that of its number on its machine.

    Args:
        launch: of this process.
        store: where all ranks tell theirs.
        local: number of this rank on its machine.

    Raises:
        UserError: on every rank, if two would share one.
    """
    count = torch.cuda.device_count()
    index = 0 if count == 1 else min(local, count - 1)
    gpu = f"{socket.gethostname()}/{torch.cuda.get_device_properties(index).uuid}"
    taken = of_each(store, "gpu", launch.rank, launch.size, gpu)
    twice = [[rank for rank in range(launch.size) if taken[rank] == gpu] for gpu in dict.fromkeys(taken)]
    if shared := next((ranks for ranks in twice if len(ranks) > 1), None):
        raise UserError(
            f"{named(shared)} would share a GPU: there are {launch.size} ranks for {len(set(taken))}; start one for "
            "each, or choose --device cpu."
        )
    torch.cuda.set_device(index)


def _concluded(launch: Launch, watch: Watch, status: int, error: BaseException | None) -> int:
    """Tell how this rank ends, and why; returns its exit status, or raises what is a bug."""
    roll = watch.roll
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    own_words = error is None or isinstance(error, UserError | SystemExit)
    found = None if own_words else watch.verdict
    lost = "" if found or stopped or isinstance(error, SystemExit) else lost_by(error)
    if stopped:
        roll.leave(_farewell(status, error))
    if lost or stopped:
        found = asked_around(roll, launch.keeper, lost)
    if found is not None:
        roll.leave(farewell(found))
        told(roll, found, watch.tell)
        return found.status
    own = _farewell(status, error)
    roll.leave(own)
    _speak(roll, own, error, watch.tell)
    if error is not None and not isinstance(error, UserError | SystemExit | KeyboardInterrupt):
        raise error
    return own.status


def _farewell(status: int, error: BaseException | None) -> Farewell:
    if error is None:
        return Farewell("done", status)
    if isinstance(error, KeyboardInterrupt | Interrupted):
        text = str(error) or "stopped; start all ranks again to go on from the last checkpoint."
        return Farewell("stopped", 130, text)
    if isinstance(error, UserError):
        return Farewell("failed", 2, str(error))
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1 if error.code else 0
        return Farewell("failed" if code else "done", code, f"it ended with exit status {code}.")
    told_by = f"{type(error).__name__}: {error}".splitlines()[0]
    return Farewell("failed", 1, f"an error of the program, whose traceback is in that rank's output: {told_by}")


def _speak(roll: Roll, own: Farewell, error: BaseException | None, tell: Callable[[str], None]) -> None:
    """Tell the last words of this rank, unless rank 0 tells the same or tells them; wait until others have heard."""
    sentence = isinstance(error, UserError | KeyboardInterrupt)
    if roll.rank == 0:
        if sentence:
            tell(own.text)
        seconds = 5 * FAREWELL if own.how == "done" else FAREWELL
        _until(roll, lambda: len(roll.left) == roll.size - 1 or bool(roll.gone(MISSED)), seconds)
        return
    if own.how == "done":
        _until(roll, lambda: True, roll.seconds)
        return
    known = _until(roll, lambda: roll.answered or _same(own, roll.left.get(0)), FAREWELL)
    if sentence and not known:
        tell(f"rank {roll.rank}: {own.text}")


def _same(own: Farewell, other: Farewell | None) -> bool:
    return other is not None and other.how == own.how and (own.how == "stopped" or other.text == own.text)


def _until(roll: Roll, true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not roll.broken:
        if true() and roll.sent:
            return True
        time.sleep(0.05)
    return False


def _destroy_group() -> None:
    if dist.is_initialized():
        with suppress(Exception):  # of a group whose other ranks are gone
            dist.destroy_process_group()
