"""Metrics of a stage as JSON lines and TensorBoard events."""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from bissl_fast.plain import parse_json
from bissl_fast.training.files import unwritable

Record = dict[str, Any]


class Metrics:
    """``metrics.jsonl`` and TensorBoard events of one stage, continued from a checkpoint without gap or repetition.

    Args:
        folder: the stage's folder.
        offset: length of ``metrics.jsonl`` at the checkpoint, bytes; what was written after it is cut off.
        step: step of the checkpoint, 0 if there is none; what TensorBoard has of later steps is purged.
    """

    def __init__(self, folder: Path, offset: int = 0, step: int = 0) -> None:
        # TensorBoard looks for this name, and does without an installed TensorFlow: it takes seconds to load, and
        # crashes where torchvision is loaded after it.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        try:
            self._file = open(self._path, "ab")  # noqa: SIM115
            self._file.truncate(min(offset, self._file.tell()))  # a file that lost its end is not filled up with zeros
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise unwritable(self._path, error) from None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line; numbers also go to TensorBoard."""
        try:
            self._file.write((json.dumps({"step": step, **values}) + "\n").encode())
            self._file.flush()
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            raise unwritable(self._path, error) from None

    def sync(self) -> None:
        """Let what was written outlast a power failure, as the checkpoint that counts on it does."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self._path, error) from None

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def close(self) -> None:
        """Let go of the files. A disk that fails only now is met by what the stage writes next."""
        for file in (self._file, self._board):
            with suppress(OSError):
                file.close()


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
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            by_step[record["step"]] = record
    return [by_step[step] for step in sorted(by_step)]
