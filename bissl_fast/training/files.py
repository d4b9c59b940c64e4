"""Files that are either whole or absent."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from bissl_fast.errors import UserError

_ADVICE = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the disk quota is used up: make room",
    errno.EROFS: "the file system is read-only: choose another folder with --output",
    errno.EACCES: "it may not be written: change its permissions or choose another folder with --output",
    errno.EPERM: "it may not be written: change its permissions or choose another folder with --output",
    errno.EFBIG: "the file would exceed the size allowed: raise the limit",
    errno.ENOENT: "its folder is gone: choose where to write with --output",
    errno.ENOTDIR: "a file stands where a folder is wanted: choose another folder with --output",
    errno.EISDIR: "a folder stands where a file is wanted: name the file with --output",
    errno.EEXIST: "a file stands where a folder is wanted: choose another folder with --output",
}


def unwritable(path: Path, error: OSError) -> UserError:
    """The sentence for a path that cannot be written."""
    reason = _ADVICE.get(error.errno or 0, str(error))
    return UserError(
        f"{path} could not be written, {reason}, then run the same command again; what was written before is whole."
    )


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        UserError: if that is not allowed.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None


def make_folder_of(file: Path) -> None:
    """Create the folder of a file that is written at the end of some work, which would be lost otherwise.

    Raises:
        UserError: if that is not allowed, or a folder stands in the file's place.
    """
    if file.is_dir():
        raise unwritable(file, IsADirectoryError(errno.EISDIR, "is a folder"))
    make_folder(file.parent)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the hold ends with the process, however that ends.

    Raises:
        UserError: if another process holds it.
    """
    with locked(folder / ".lock") as held:
        if not held:
            raise UserError(f"another bissl-fast is at work in {folder}; wait for it, or choose another --name.")
        yield


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file for this process if no other holds it; the hold ends with the process, however that ends.

    Args:
        path: of the file, which is made and stays.

    Yields:
        Whether it is held.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        file = open(path, "w")  # noqa: SIM115
    except OSError as error:
        raise unwritable(path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file in one step: after a crash it holds the old content or the new, never a part.

    Raises:
        UserError: if the disk is full or the folder read-only; the old file is then untouched.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one that helps
            partial.unlink(missing_ok=True)
        raise unwritable(path, error) from None


def write_json(path: Path, value: Any) -> None:
    """Write plain data as readable JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write named arrays as .npz, atomically; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote. Nothing in the file is executed.

    Raises:
        UserError: if the file is not a checkpoint.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises a different type for each way in which a file can be broken
        raise UserError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); delete it to start its stage over."
        ) from None
    return state


def save_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write named tensors as safetensors; equal tensors give equal bytes."""
    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    write_atomic(path, save_safetensors(plain))


def load_weights(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors whose name starts with ``prefix``, without it.

    Raises:
        UserError: if the file cannot be read or holds no such tensor.
    """
    try:
        tensors = load_safetensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} holds no readable weights ({error}); delete its folder to make it again.") from None
    chosen = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not chosen:
        raise UserError(f"{path} holds no tensor named {prefix!r}…; it holds {', '.join(sorted(tensors)[:3])}, ….")
    return chosen


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
