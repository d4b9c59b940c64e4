"""Stages: work that is keyed by what determines it, done once and never twice."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bissl_fast.ops.collectives import Ranks
from bissl_fast.plain import parse_json
from bissl_fast.training import checkpoint
from bissl_fast.training.clock import Clock
from bissl_fast.training.console import say
from bissl_fast.training.files import digest, make_folder, unwritable, write_json
from bissl_fast.training.ranks.agreement import led
from bissl_fast.training.ranks.lead import is_lead

FORMAT = 2
"""Raised when a stage computes something else from the same settings."""


@dataclass(frozen=True)
class StageOutput:
    """A finished stage.

    Attributes:
        folder: where its files lie.
        hash: of the files that later stages read; their input hash.
    """

    folder: Path
    hash: str


def run_stage(
    folder: Path,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    body: Callable[[Path], None],
    outputs: tuple[str, ...] = ("weights.safetensors",),
    console: Console | None = None,
    ranks: Ranks | None = None,
    alone: bool = False,
) -> StageOutput:
    """Run ``body(folder)`` unless the folder already holds its result for the same settings and inputs.

    A stage that was broken off goes on in its folder. A folder that belongs to other settings is moved to
    ``superseded``, not deleted. A finished stage with the same key, in a sibling run or superseded here, is copied.
    Of several ranks, which call this together, the first decides whether there is anything to do.

    Args:
        folder: ``runs/<name>/<stage>``.
        settings: everything but the inputs that determines the result: dataclasses and plain values.
        inputs: content hashes of data sets and earlier stages.
        body: writes the files named in ``outputs``.
        outputs: what later stages read.
        console: where a skipped stage is told.
        ranks: processes that work at the stage together, in a folder that all of them see.
        alone: the first of them does the work, and the others wait.

    Raises:
        UserError: if the folder cannot be written.
    """
    console = console or Console()
    key, fields = stage_key(folder.name, settings, inputs)
    found = led(lambda: _ready(folder, key, fields, console), ranks)
    if not found:
        if is_lead(ranks) or not alone:
            _timed(body, folder)
        found = led(lambda: _kept(folder, key, outputs), ranks)
    return StageOutput(folder, found)


def _ready(folder: Path, key: str, fields: Mapping[str, Any], console: Console) -> str:
    """Hash of the outputs if they are there or can be copied; empty once the folder is ready for the work."""
    if found := _finished(folder, key):
        say(console, f"{folder.name}: done before, skipped", "dim")
        return found
    _set_aside(folder, key, console)
    for earlier in _elsewhere(folder, key):
        if found := _finished(earlier, key):
            say(console, f"{folder.name}: copied from {earlier}, which has the same settings and inputs", "dim")
            _copy(earlier, folder)
            return found
    make_folder(folder)
    write_json(folder / "key.json", {"key": key, **fields})
    return ""


def _timed(body: Callable[[Path], None], folder: Path) -> None:
    clock = Clock(folder)
    try:
        body(folder)
    finally:
        clock.keep()


def _kept(folder: Path, key: str, outputs: tuple[str, ...]) -> str:
    """Mark a stage as finished; returns the hash of its outputs."""
    hashes = {name: digest(folder / name) for name in outputs}
    write_json(folder / "DONE", {"key": key, "outputs": hashes})
    for file in folder.glob(checkpoint.FILES):
        file.unlink(missing_ok=True)
    found = _finished(folder, key)
    assert found is not None, f"{folder} did not keep {outputs}"
    return found


def stage_key(name: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """What a stage is kept by, and the plain values that it is the hash of; arguments as of :func:`run_stage`."""
    fields = {"stage": name, "format": FORMAT, "settings": _plain(settings), "inputs": dict(inputs)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest(), fields


def finished_stage(folder: Path) -> StageOutput | None:
    """The stage that a folder holds, if it is finished and whole, whatever its settings."""
    try:
        key = parse_json((folder / "DONE").read_bytes())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = _finished(folder, key)
    return None if found is None else StageOutput(folder, found)


def _plain(value: Any) -> Any:
    """Settings as JSON values: dataclasses become objects, paths text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **_plain(asdict(value))}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _finished(folder: Path, key: str) -> str | None:
    """Hash of the outputs if the folder holds them whole for this key."""
    try:
        done = parse_json((folder / "DONE").read_bytes())
        whole = done["key"] == key and all(digest(folder / name) == sha for name, sha in done["outputs"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return hashlib.sha256(json.dumps(done["outputs"], sort_keys=True).encode()).hexdigest() if whole else None


def _elsewhere(folder: Path, key: str) -> Iterator[Path]:
    """Where the same stage may have been finished: in sibling runs, or here before the settings were changed."""
    yield from sorted(folder.parent.parent.glob(f"*/{folder.name}"))
    yield from sorted(folder.parent.parent.glob(f"*/superseded/{_kept_name(folder, key)}"))


def _kept_name(folder: Path, key: str) -> str:
    return f"{folder.name}-{key[:8]}"


def _set_aside(folder: Path, key: str, console: Console) -> None:
    """Move a folder that was begun with another key out of the way; tell where a finished result was damaged."""
    if not folder.exists():
        return
    other = _begun(folder)
    if other == key and (folder / "DONE").exists():
        say(console, f"{folder.name}: {_damaged(folder)} in {folder} is not as it was written: done again", "yellow")
    if other == key or (other is None and not any(folder.glob(checkpoint.FILES)) and not (folder / "DONE").exists()):
        return
    kept = folder.parent / "superseded" / _kept_name(folder, other or "unknown")
    make_folder(kept.parent)
    try:
        if other is not None and _finished(kept, other):
            shutil.rmtree(folder)  # begun again with settings whose result is kept already
        else:
            shutil.rmtree(kept, ignore_errors=True)
            folder.rename(kept)
    except OSError as error:
        raise unwritable(folder, error) from None
    why = _reason(kept)
    say(console, f"{folder.name}: {why}; the earlier result is kept in {kept}", "yellow")


def _reason(folder: Path) -> str:
    """Why the result in a folder is of no use now."""
    try:
        number = parse_json((folder / "key.json").read_bytes())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its key.json is missing or damaged" if _begun(folder) is None else "settings or inputs changed"
    if number != FORMAT:
        return f"this bissl-fast computes it otherwise (stage format {FORMAT}) than the one that made it ({number})"
    return "settings or inputs changed"


def _begun(folder: Path) -> str | None:
    """The key that a folder was begun with; ``None`` where that cannot be read, as in one whose making was killed."""
    try:
        key = parse_json((folder / "key.json").read_bytes())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return key if isinstance(key, str) and re.fullmatch("[0-9a-f]{64}", key) else None  # it becomes part of a name


def _damaged(folder: Path) -> str:
    """Which file of a finished stage is not as it was written."""
    try:
        hashes = parse_json((folder / "DONE").read_bytes())["outputs"]
        return next(str(name) for name, sha in hashes.items() if not _holds(folder / name, sha))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return "DONE"


def _holds(file: Path, sha: str) -> bool:
    try:
        return digest(file) == sha
    except OSError:
        return False


def _copy(source: Path, folder: Path) -> None:
    """Copy a finished stage in one step, over whatever had been begun here."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        for old in (partial, folder):
            if old.exists():
                shutil.rmtree(old)
        shutil.copytree(source, partial)
        partial.rename(folder)
    except OSError as error:
        raise unwritable(folder, error) from None
