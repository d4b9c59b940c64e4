"""How ranks find each other: those of one start alone, though their store may hold the words of an earlier one."""

import json
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from bissl_fast.errors import UserError
from bissl_fast.plain import parse_json
from bissl_fast.training.ranks.launcher import Launch
from bissl_fast.training.ranks.roll import Roll, named

LATE = 5.0
"""Seconds by which the others wait longer than rank 0, which knows best who is missing."""


def joined(launch: Launch, seconds: float) -> tuple[Roll, Any]:
    """The roll of all ranks, and a store for their group, once each has come.

    A store that torchrun keeps outlives the processes that it starts again, and what they wrote there would be taken
    for the words of their successors. So rank 0 calls under a name of its own, each rank answers that call under a name
    of its own, and what rank 0 has heard is the group: its part of the store belongs to this start alone.

    Args:
        launch: of this process.
        seconds: to wait.

    Raises:
        UserError: if a rank does not come in time.
        SystemExit: if rank 0 has told why.
    """
    end = time.monotonic() + seconds
    keeps = launch.rank == 0 and not launch.agent
    if not keeps:
        _await_port(launch, end, seconds)
    store = _connected(launch, keeps, seconds)
    try:
        start = _called(launch, store, end, seconds) if launch.rank == 0 else _answered(launch, store, end, seconds)
        roll = Roll(PrefixStore(f"{start}/roll", _connected(launch, False, 20.0)), launch.rank, launch.size)
        roll.start(lambda: time.monotonic() < end + LATE)
    except RuntimeError as error:
        raise UserError(
            f"rank {launch.rank} of {launch.size}: {launch.keeper} has gone before all ranks had come "
            f"({str(error).splitlines()[0]})."
        ) from None
    return roll, PrefixStore(f"{start}/group", store)


def _called(launch: Launch, store: Any, end: float, seconds: float) -> str:
    """Rank 0's part: call, and tell the others who has answered."""
    start = uuid.uuid4().hex
    store.set("call", start)
    absent = set(range(1, launch.size))
    while absent and time.monotonic() < end:
        absent = {rank for rank in absent if not store.check([f"{start}/{rank}"])}
        time.sleep(0.02)
    names = {str(rank): store.get(f"{start}/{rank}").decode() for rank in range(1, launch.size) if rank not in absent}
    store.set(f"{start}/all", json.dumps({} if absent else names))
    if absent:
        time.sleep(2.0)  # for those who have come, and read this in the store that may end with this process
        raise UserError(
            f"{named(absent)} of {launch.size} did not come within {seconds:.0f} s; see why, or wait longer with "
            "--distributed.timeout."
        )
    return start


def _answered(launch: Launch, store: Any, end: float, seconds: float) -> str:
    """The part of another rank: answer whatever call stands there, until one has counted this rank in."""
    own, call, late = uuid.uuid4().hex, "", False
    while time.monotonic() < end + LATE:
        if store.check(["call"]):
            heard = store.get("call").decode()
            if heard != call:
                call = heard
                late = store.check([f"{call}/all"])
                if not late:
                    store.set(f"{call}/{launch.rank}", own)
            elif not late and store.check([f"{call}/all"]):
                names = parse_json(store.get(f"{call}/all"))
                if not names:
                    raise SystemExit(2)
                if names.get(str(launch.rank)) == own:
                    return call
                late = True
        time.sleep(0.02)
    why = "all ranks are there without it: RANK must differ for each process" if late else "rank 0 has not called"
    raise UserError(f"rank {launch.rank} of {launch.size} waited for {seconds:.0f} s: {why}.")


def _await_port(launch: Launch, end: float, seconds: float) -> None:
    """Wait, where signals are heard, until the store may be asked."""
    reason = ""
    while time.monotonic() < end:
        try:
            socket.create_connection((launch.address, launch.port), timeout=2.0).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.1)
    raise UserError(
        f"rank {launch.rank} of {launch.size}: nobody answers at {launch.address}:{launch.port} within {seconds:.0f} s "
        f"({reason}); {launch.keeper} opens it: see that it runs and that MASTER_ADDR and MASTER_PORT name its machine."
    )


def _connected(launch: Launch, keeps: bool, seconds: float) -> Any:
    """A connection to the store, from a thread of its own: where no store answers, signals would not be heard."""
    found: list[Any] = []

    def connect() -> None:
        timeout = timedelta(seconds=seconds)
        try:
            found.append(TCPStore(launch.address, launch.port, None, keeps, timeout, wait_for_workers=False))
        except (RuntimeError, ValueError) as error:
            found.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    end = time.monotonic() + seconds + LATE
    while thread.is_alive() and time.monotonic() < end:
        thread.join(0.05)
    store = found[0] if found else TimeoutError("what answers is no store")
    if isinstance(store, Exception):
        verb = "opened" if keeps else "asked"
        raise UserError(
            f"rank {launch.rank} of {launch.size}: the store at {launch.address}:{launch.port} cannot be {verb} "
            f"({str(store).splitlines()[0]}); choose another MASTER_PORT."
        )
    return store


def of_each(store: Any, name: str, rank: int, size: int, value: str) -> Sequence[str]:
    """What each rank tells under a name, rank after rank.

    Args:
        store: of the group.
        name: that nothing else in the store has.
        rank: of this process.
        size: R, how many ranks there are.
        value: this rank's.
    """
    store.set(f"{name}/{rank}", value)
    return [store.get(f"{name}/{other}").decode() for other in range(size)]
