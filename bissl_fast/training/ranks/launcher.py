"""What a launcher such as torchrun tells a process about the ranks that it is one of. Imports nothing heavy."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from bissl_fast.errors import UserError

TOGETHER = ("train", "pretrain", "compare", "ablate")
"""Commands that many ranks work at together."""


@dataclass(frozen=True)
class Launch:
    """What the launcher has told this process.

    Attributes:
        rank: of this process, from 0.
        size: R, how many there are.
        local_rank: of this process among those of its machine, if that is told.
        address: of the store: rank 0's machine, or where torchrun keeps it.
        port: likewise.
        agent: whether torchrun keeps the store; else rank 0 does.
    """

    rank: int
    size: int
    local_rank: int | None
    address: str
    port: int
    agent: bool

    @staticmethod
    def read() -> "Launch":
        """From the environment.

        Raises:
            UserError: if a variable is missing or cannot be meant.
        """
        size = _number("WORLD_SIZE", 1)
        rank = _number("RANK", 0, size - 1)
        address = os.environ.get("MASTER_ADDR", "")
        if not address:
            raise UserError(
                f"WORLD_SIZE={size} asks for many ranks, but MASTER_ADDR, the host name of rank 0, is not set; start "
                "with torchrun, which sets it, or unset WORLD_SIZE for one process."
            )
        local = _number("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else None
        if "LOCAL_WORLD_SIZE" in os.environ:
            _number("LOCAL_WORLD_SIZE", 1, size)
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return Launch(rank, size, local, address, _number("MASTER_PORT", 1, 65535), agent)

    @property
    def keeper(self) -> str:
        """Of the store, in words."""
        return f"torchrun on {self.address}" if self.agent else f"rank 0 of {self.size}"


def many() -> bool:
    """Whether the environment asks for more than one rank, or for what is no number."""
    return os.environ.get("WORLD_SIZE", "").strip() not in ("", "1")


def as_one() -> dict[str, str]:
    """The environment of a process that a rank starts, and that is no rank itself."""
    return {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}


def restart_words() -> list[str]:
    """The command that this one was started with, but for its arguments.

    Example:
        >>> restart_words()
        ['bissl-fast']
    """
    if not many():
        return ["bissl-fast"]
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    shape = ["--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])]
    return ["torchrun", *(["--nnodes", nodes] if nodes != "1" else []), *shape, "-m", "bissl_fast.cli"]


def _number(name: str, least: int, most: int | None = None) -> int:
    value = os.environ.get(name, "")
    text = f"{least} or more" if most is None else f"a number from {least} to {most}"
    if not value.strip().isdecimal() or int(value) < least or (most is not None and int(value) > most):
        found = f"is {value!r}" if value else "is not set"
        raise UserError(
            f"the environment variable {name} {found}, expected {text}; start with torchrun, which sets it, or unset "
            "WORLD_SIZE for one process."
        )
    return int(value)


def alone(command: str, asks: bool, run: Callable[[], int]) -> int:
    """Help is printed once, by rank 0; the work of one process is refused once.

    Args:
        command: its name.
        asks: whether it only asks how commands are used.
        run: prints that; returns the exit status.

    Raises:
        UserError: on rank 0, if it asks for more.
    """
    launch = Launch.read()
    if launch.rank:
        return 0 if asks else 2
    if asks:
        return run()
    raise UserError(
        f"{command} is the work of one process, found {launch.size} ranks; start it without torchrun, or unset "
        f"WORLD_SIZE. Ranks share the work of {', '.join(TOGETHER)}."
    )
