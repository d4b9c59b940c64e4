"""Reading a run folder, finished or not. Whatever is absent or unreadable is a sentence, not a crash."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from bissl_fast.errors import UserError

Record = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, as `bissl-fast train` lays them out.

    Raises:
        UserError: if `path` holds no run.
    """

    path: Path

    def __post_init__(self) -> None:
        if not (self.path / "config.yaml").is_file() and not self.stages():
            raise UserError(
                f"{self.path} is not a run folder (no config.yaml and no stage with metrics.jsonl): "
                "give the folder that `bissl-fast train` wrote."
            )

    def stages(self) -> list[str]:
        """Names of the stages that have begun, in the order of the pipeline."""
        begun = [path.parent.name for path in self.path.glob("*/metrics.jsonl")]
        begun += [path.parent.name for path in self.path.glob("*/DONE")]
        return sorted(set(begun), key=_pipeline_order)

    def metrics(self, stage: str) -> list[Record]:
        """Records of one stage by step; empty if the stage has not begun."""
        return read_metrics(self.path / stage / "metrics.jsonl")

    def seeds(self, prefix: str) -> list[list[Record]]:
        """Records of the stages `<prefix>-0`, `<prefix>-1`, …, one list for each that has a record.

        Stages beyond the number of seeds in config.yaml are left from an earlier run with more of them.
        """
        wanted = self._seed_count()
        numbered = ((stage, stage.removeprefix(f"{prefix}-")) for stage in self.stages())
        stages = [stage for stage, number in numbered if number.isdigit() and (wanted is None or int(number) < wanted)]
        return [records for stage in stages if (records := self.metrics(stage))]

    def _seed_count(self) -> int | None:
        try:
            return int(yaml.safe_load(self.text("config.yaml"))["finetune"]["seeds"])
        except (UserError, yaml.YAMLError, KeyError, TypeError, ValueError):
            return None

    def text(self, name: str) -> str:
        """Content of a text file.

        Raises:
            UserError: if it is not there or cannot be read.
        """
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{name} has not been written yet.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name} cannot be read: {error}.") from None

    def json(self, name: str) -> Record:
        """Content of a JSON file that holds one object.

        Raises:
            UserError: if it is not there, cannot be read or is not a JSON object.
        """
        try:
            content = json.loads(self.text(name))
        except json.JSONDecodeError as error:
            raise UserError(f"{name} is not valid JSON ({error}).") from None
        if not isinstance(content, dict):
            raise UserError(f"{name} holds a {type(content).__name__} where an object was expected.")
        return content

    def arrays(self, name: str, keys: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
        """The arrays `keys` of an .npz file; nothing pickled is ever loaded.

        Raises:
            UserError: if the file is not there, is damaged or lacks one of the arrays.
        """
        try:
            with np.load(self.path / name, allow_pickle=False) as content:
                return tuple(content[key] for key in keys)
        except FileNotFoundError:
            raise UserError(f"{name} has not been written yet.") from None
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{name} cannot be read: {error}.") from None


def read_metrics(path: Path) -> list[Record]:
    """Read a metrics.jsonl.

    A killed writer leaves at most one truncated line, at the end or where the resumed run went on: lines that
    are not a JSON object with an integer `step` are skipped. Of a step that was logged twice, the later
    record counts.

    Args:
        path: the file; it may be absent.

    Returns:
        The records in the order of their steps; empty where there is no file.
    """
    if not path.is_file():
        return []
    by_step: dict[int, Record] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            by_step[record["step"]] = record
    return [by_step[step] for step in sorted(by_step)]


def _pipeline_order(stage: str) -> tuple[int, int, str]:
    order = (
        "pretext-warmup",
        "head-warmup",
        "bissl",
        "pretext-baseline",
        "finetune-bissl",
        "finetune-baseline",
    )
    name, _, seed = stage.rpartition("-")
    if seed.isdigit():
        return (order.index(name) if name in order else len(order), int(seed), name)
    return (order.index(stage) if stage in order else len(order), 0, stage)
