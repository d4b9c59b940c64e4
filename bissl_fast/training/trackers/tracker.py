"""What a tracker must be able to do, and what it is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from bissl_fast.errors import UserError

TrackerName = Literal["wandb", "mlflow"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)

Status = Literal["finished", "failed", "killed"]
"""How a run has ended: by itself, by an error, or because it was asked to stop."""


@dataclass(frozen=True)
class TrackingSettings:
    """Where trackers keep a run. None of it changes a result.

    Attributes:
        project: of Weights & Biases, experiment of MLflow; left out: what WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME say,
            else bissl-fast.
        uri: of MLflow's server or store, http://HOST:5000 or sqlite:///PATH; left out: what MLFLOW_TRACKING_URI says,
            else mlflow.db here.
    """

    project: str | None = None
    uri: str | None = None


@dataclass(frozen=True)
class About:
    """What a tracker is told of a run as it begins.

    Attributes:
        name: of the run.
        folder: of the run.
        settings: nested plain values.
        where: the tracker keeps it.
        group: that it is one of, a comparison.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    where: TrackingSettings = TrackingSettings()
    group: str | None = None


class Tracker(Protocol):
    """One run in somebody else's store. Its methods may raise whatever they like: whoever calls them tells it."""

    def open(self, about: About, earlier: str | None) -> str:
        """Go on with an earlier run if there is one and that can be done, else begin one.

        Args:
            about: the run.
            earlier: id of the run that was told of the same settings before.

        Returns:
            The id of what is now told.
        """

    @property
    def place(self) -> str:
        """Where a user finds it."""

    def told(self, stage: str) -> int:
        """The last step of a stage that it holds; 0 if none."""

    def log(self, stage: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Take records of a stage, each with a `step` above :meth:`told`, in their order."""

    def end(self, status: Status, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Close it, with results and files to keep."""


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The values of a record that a tracker draws, without its step.

    Example:
        >>> numbers({"step": 3, "loss": 0.5, "residuals": [1.0, 0.1], "curvature": None})
        {'loss': 0.5}
    """
    return {
        name: value
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def require_installed(names: Sequence[TrackerName]) -> None:
    """Raises UserError: for a tracker whose package is not there."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"--track {name} needs the package {name}, which is not installed: pip install 'bissl-fast[{name}]'."
            )
