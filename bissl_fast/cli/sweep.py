"""`bissl-fast sweep`: help with the searches of a run, or tell how far they are."""

import os
import shlex
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from bissl_fast.training.interruption import Interrupted, interruptible


def sweep_command(arguments: list[str]) -> None:
    """Parse, find the run's searches, and make trials of them or tell of them."""

    def sweep(
        run: tyro.conf.Positional[Path],
        arms: str = "",
        list: bool = False,
        threads: int | None = None,
        device: str | None = None,
        data_root: Path | None = None,
        cache_dir: Path | None = None,
        tied: bool = False,
    ) -> None:
        """Make trials of the searches of a run, beside `bissl-fast train` or without it, until all are finished.

        Any number of processes may do so at once; a trial is made by one of them alone, and one whose process died is
        made by another. On other machines RUN is the same folder or a copy of it, and --search.storage of the run
        names a PostgreSQL server.

        Args:
            run: folder of `bissl-fast train`, `compare` or `ablate`, begun with --search.trials.
            arms: whose searches, with commas; left out: all.
            list: only tell how far they are, and what would be chosen now.
            threads: of this process; left out: as the run.
            device: of this machine; left out: as the run.
            data_root: of this machine, likewise.
            cache_dir: of this machine, likewise.
            tied: end with the process that writes to standard input.
        """
        from bissl_fast.methods.sweep import searching, state_of
        from bissl_fast.methods.sweep import sweep as make

        configs, console = searching(run), Console()
        if list:
            console.print(state_of(configs).to_rich())
            return
        if tied:
            threading.Thread(target=_end_with_input, daemon=True).start()
        asked = {"threads": threads, "device": device, "data_root": data_root, "cache_dir": cache_dir}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        try:
            with interruptible():
                for config in configs:
                    make(replace(config, **given).located(), [arm for arm in arms.split(",") if arm], console)
        except Interrupted as error:
            again = shlex.join(["bissl-fast", "sweep", *arguments])
            raise Interrupted(f"{error} Go on with: {again}") from None
        console.print(state_of(configs).to_rich())

    tyro.cli(sweep, prog="bissl-fast sweep", args=arguments)


def _end_with_input() -> None:
    """Ask this process to end when its standard input does."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
