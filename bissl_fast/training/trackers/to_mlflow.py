"""A run in MLflow: one of theirs for each of ours, its stages as prefixes of the metrics."""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bissl_fast.training.trackers.tracker import About, Status, numbers

STATUS: Mapping[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}

MOST_PARAMETERS, MOST_METRICS = 100, 1000
"""That a request may hold."""

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""With a server that does not answer, unless the user has said otherwise: it is asked again later."""


class MlflowRun:
    """As :class:`Tracker`.

    It goes through MLflow's client alone: what its module-level functions begin counts as FINISHED where an error has
    ended the process.
    """

    def open(self, about: About, earlier: str | None) -> str:
        """As :class:`Tracker`."""
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for talkative in ("mlflow", "alembic"):  # about every table of a new store
            logging.getLogger(talkative).setLevel(logging.WARNING)
        self._client = MlflowClient(about.where.uri)
        if earlier is None or not self._goes_on(earlier):
            self._begin(about)
        return self._id

    @property
    def place(self) -> str:
        """Id and store, without a password that may be in its address."""
        store = re.sub("//[^/@]*@", "//", self._client.tracking_uri)
        return f"run {self._id} in {store}"

    def told(self, stage: str) -> int:
        """As :class:`Tracker`, by the rate, which every record has."""
        history = self._client.get_metric_history(self._id, f"{stage}/images_per_second")
        return max((point.step for point in history), default=0)

    def log(self, stage: str, records: Sequence[Mapping[str, Any]]) -> None:
        """As :class:`Tracker`. Its store takes each record whole or not at all."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        widest = max(len(numbers(record)) for record in records)
        for some in _parts(records, MOST_METRICS // max(1, widest)):
            points = [
                Metric(f"{stage}/{name}", float(value), now, record["step"])
                for record in some
                for name, value in numbers(record).items()
            ]
            self._client.log_batch(self._id, metrics=points)

    def end(self, status: Status, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """As :class:`Tracker`. What it has been told before is not told again."""
        known = self._client.get_run(self._id).data.metrics
        for name, value in summary.items():
            if known.get(name) != value:
                self._client.log_metric(self._id, name, value)
        for file in files:
            self._client.log_artifact(self._id, str(file))
        self._client.set_terminated(self._id, STATUS[status])

    def _goes_on(self, earlier: str) -> bool:
        """Whether the store still has that run, which then counts as running."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(earlier)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        if found.info.lifecycle_stage != "active":  # its user has deleted it
            return False
        self._id = earlier
        self._client.update_run(earlier, status="RUNNING")
        return True

    def _begin(self, about: About) -> None:
        from mlflow.entities import Param

        name = about.where.project or os.environ.get("MLFLOW_EXPERIMENT_NAME", "bissl-fast")
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        tags = {} if about.group is None else {"group": about.group}
        self._id = self._client.create_run(experiment, run_name=about.name, tags=tags).info.run_id
        parameters = [Param(key, str(value)) for key, value in flat(about.settings)]
        for some in _parts(parameters, MOST_PARAMETERS):
            self._client.log_batch(self._id, params=some)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their dotted names, as on the command line.

    Example:
        >>> list(flat({"seed": 0, "head": {"epochs": 5}}))
        [('seed', 0), ('head.epochs', 5)]
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parts(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
