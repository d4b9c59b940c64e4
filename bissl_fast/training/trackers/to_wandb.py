"""A run in Weights & Biases: one of theirs for each of ours, its stages as prefixes of the metrics."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bissl_fast.errors import UserError
from bissl_fast.training.trackers.tracker import About, Status, numbers

EXIT_CODES: Mapping[Status, int] = {"finished": 0, "failed": 1, "killed": 255}
"""What their own hooks report of a process that ends like that."""

SECONDS = 20.0
"""To wait for the server before it counts as not there."""


class WandbRun:
    """As :class:`Tracker`.

    Every stage counts its own steps: theirs, one count for a whole run that must never fall, is left alone. Offline
    (`WANDB_MODE=offline`) nothing can be gone on with: what has been sent is unknown, and each process leaves a run of
    its own that holds everything.
    """

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, about: About, earlier: str | None) -> str:
        """As :class:`Tracker`.

        Raises:
            UserError: if nobody is logged in.
        """
        import wandb

        if self._run is not None:  # of an attempt that failed
            self._run.finish(exit_code=EXIT_CODES["killed"], quiet=True)
        mode = wandb.setup().settings.mode
        if mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
            raise UserError("nobody is logged in: `wandb login` does that once, WANDB_MODE=offline does without")
        self._run = wandb.init(
            project=about.where.project or os.environ.get("WANDB_PROJECT", "bissl-fast"),
            name=about.name,
            group=about.group,
            dir=os.environ.get("WANDB_DIR", str(about.folder)),
            config=dict(about.settings),
            id=earlier if mode in ("online", "shared") else None,
            resume="allow" if earlier and mode in ("online", "shared") else None,
            reinit="create_new",  # and no run that this process may have open
            settings=wandb.Settings(console="off", silent=True, init_timeout=SECONDS),
        )
        self._known: dict[str, Any] = dict(self._run.summary) if self._run.resumed else {}
        self._defined: set[str] = set()
        return str(self._run.id)

    @property
    def place(self) -> str:
        """Its page, or the command that sends it."""
        offline = f"offline; `wandb sync {Path(self._run.dir).parent}` sends it" if self._run.offline else ""
        return offline or str(self._run.url)

    def told(self, stage: str) -> int:
        """As :class:`Tracker`: what the server had when the run was gone on with."""
        return int(self._known.get(f"{stage}/step", 0))

    def log(self, stage: str, records: Sequence[Mapping[str, Any]]) -> None:
        """As :class:`Tracker`."""
        if stage not in self._defined:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._defined.add(stage)
        for record in records:
            values = {**numbers(record), "step": record["step"]}
            self._run.log({f"{stage}/{name}": value for name, value in values.items()})

    def end(self, status: Status, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """As :class:`Tracker`."""
        import wandb

        self._run.summary.update(dict(summary))
        if files:
            kept = wandb.Artifact(f"report-{self._run.id}", type="report")
            for file in files:
                kept.add_file(str(file))
            self._run.log_artifact(kept)
        self._run.finish(exit_code=EXIT_CODES[status])
        self._run = None
