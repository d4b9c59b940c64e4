"""What is tried with damaged files: for each reader a small whole tree, the files to damage, and the call that reads.

A reader holds its promise if it gives what it was asked for or raises `UserError`, of single images
`UnreadableImageError`, within seconds and without memory out of all proportion.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bissl_fast.data.sets.readers.decode import UnreadableImageError
from bissl_fast.errors import UserError
from tests.fuzz.mutate import mutated

EXPECTED = (UserError, UnreadableImageError)


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: that it is told by.
        plant: writes a whole tree into a folder.
        read: the tree in that folder.
        files: patterns of the files that are damaged.
        by_file: whether it reads one of these, and not the folder.
        share: of the inputs, beside 1 of those that read quickly.
    """

    name: str
    plant: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    by_file: bool = False
    share: float = 1.0


class Planted:
    """A target's tree on disk, one file of which is damaged at a time.

    Args:
        target: the reader.
        folder: an empty place for the tree.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        target.plant(folder)
        found = sorted({path for pattern in target.files for path in folder.glob(pattern) if path.is_file()})
        assert found, f"{target.name} has no file like {target.files}"
        self.whole = {path: path.read_bytes() for path in found}
        for path in found if target.by_file else [folder]:
            target.read(path)

    def damage(self, draw: random.Random) -> tuple[Path, bytes]:
        """A file and what it is to hold; now and then that of another file."""
        path = draw.choice(list(self.whole))
        origin = path if draw.random() < 0.95 else draw.choice(list(self.whole))
        return path, mutated(self.whole[origin], draw)

    def read(self, path: Path, content: bytes) -> bool:
        """Read the tree with that file damaged, and mend it; whether it was read.

        Raises:
            Exception: whatever the reader raises and has no right to.
        """
        path.write_bytes(content)
        try:
            self.target.read(path if self.target.by_file else self.folder)
        except EXPECTED as error:
            _require_sentence(error)
            return False
        finally:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.whole[path])
        return True


def _require_sentence(error: BaseException) -> None:
    assert str(error).strip(), "an error without a word"
    assert len(str(error)) < 100_000, f"a sentence of {len(str(error)):,} characters"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError | RecursionError):
            raise cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def every() -> list[Target]:
    """All of them, in a fixed order."""
    from tests.fuzz import data_targets, run_targets  # which import this file

    return [*data_targets.targets(), *run_targets.targets()]


def named(names: Iterable[str]) -> list[Target]:
    """Those of some names, or all where there is none."""
    wanted = set(names)
    return [target for target in every() if not wanted or target.name in wanted]
