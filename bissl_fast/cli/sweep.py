"""`bissl-fast sweep`: help with the searches of a run, or tell how far they are."""

import os
import signal
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from bissl_fast.cli.arguments import resumable

DESCRIPTION = """Make trials of the searches of a run, beside `bissl-fast train` or without it, until all are finished.

Any number of processes may do so at once; a trial is made by one of them alone, and one whose process died is made by
another. On other machines RUN is the same folder or a copy of it, and --search.storage of the run names a PostgreSQL
server.
"""


@dataclass(frozen=True)
class SweepArguments:
    """What is asked for.

    Attributes:
        run: folder of `bissl-fast train`, `compare` or `ablate`, begun with --search.trials.
        arms: whose searches, with commas; left out: all.
        list: only tell how far they are, and what would be chosen now.
        threads: of this process; left out: as the run.
        device: of this machine; left out: as the run.
        data_root: of this machine, likewise.
        cache_dir: of this machine, likewise.
        tied: end with the process that writes to standard input.
    """

    run: tyro.conf.Positional[Path]
    arms: str = ""
    list: bool = False
    threads: int | None = None
    device: str | None = None
    data_root: Path | None = None
    cache_dir: Path | None = None
    tied: bool = False

    @property
    def changed(self) -> dict[str, Any]:
        """Settings of the run that are others here."""
        asked = {name: getattr(self, name) for name in ("threads", "device", "data_root", "cache_dir")}
        return {name: value for name, value in asked.items() if value is not None}


def sweep_command(arguments: list[str]) -> None:
    """Parse, find the run's searches, and make trials of them or tell of them."""
    asked = tyro.cli(SweepArguments, prog="bissl-fast sweep", description=DESCRIPTION, args=arguments)
    from bissl_fast.methods.search.sweep import searching, state_of, sweep

    configs, console = searching(asked.run), Console()
    if not asked.list:
        if asked.tied:
            threading.Thread(target=_end_with_input, daemon=True).start()
        arms = [arm for arm in asked.arms.split(",") if arm]
        with resumable("sweep", *arguments):
            for config in configs:
                sweep(replace(config, **asked.changed).located(), arms, console)
    console.print(state_of(configs).to_rich())


def _end_with_input() -> None:
    """Ask this process to end when its standard input does."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
