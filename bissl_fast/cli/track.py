"""`bissl-fast track`."""

from pathlib import Path

import tyro
from rich.console import Console

from bissl_fast.cli.arguments import spread
from bissl_fast.methods.checks import require
from bissl_fast.methods.tracking import track as tell
from bissl_fast.training.trackers.tracker import TRACKERS, TrackerName, TrackingSettings


def track_command(arguments: list[str]) -> None:
    """Tell trackers of a run."""

    def track(
        run: tyro.conf.Positional[Path],
        to: tuple[TrackerName, ...],
        project: str | None = None,
        uri: str | None = None,
    ) -> None:
        """Tell Weights & Biases or MLflow of a run that was made without them, or what they lack of one.

        Args:
            run: its folder, e.g. runs/textures-quick-0.
            to: who is told, one or more with commas.
            project: as --tracking.project of `bissl-fast train`.
            uri: as --tracking.uri.
        """
        require(bool(to), "to", "none", f"any of {', '.join(TRACKERS)}")
        tell(run, to, TrackingSettings(project, uri), Console())

    words = [part for argument in arguments for part in spread(argument, TRACKERS)]
    tyro.cli(track, prog="bissl-fast track", args=words)
