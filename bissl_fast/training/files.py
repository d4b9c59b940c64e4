"""Files that are whole or absent; left alone where this process does not write (`training/ranks/lead.py`)."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from bissl_fast.errors import UserError
from bissl_fast.training.ranks.lead import writes

GONE = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)
"""Of disks that fail or vanish."""

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
    errno.ELOOP: "a link stands in its place: remove it or choose another folder with --output",
    errno.EEXIST: "a file stands where a folder is wanted: choose another folder with --output",
    **dict.fromkeys(GONE, "its disk no longer answers: see that it is connected and mounted"),
}

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, *GONE}


def unwritable(path: Path, error: OSError) -> UserError:
    """The sentence for a path that cannot be written."""
    reason = _ADVICE.get(error.errno or 0, str(error))
    return UserError(
        f"{path} could not be written, {reason}, then run the same command again; what was written before is whole."
    )


@contextlib.contextmanager
def disk_told(folder: Path) -> Iterator[None]:
    """Make a sentence of a disk that is full, read-only or gone, wherever work in a folder meets it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise unwritable(Path(os.fsdecode(error.filename)) if error.filename else folder, error) from None


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
        file = open(path, "a", opener=_through_no_link)  # noqa: SIM115
    except OSError as error:
        raise unwritable(path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _through_no_link(path: str, flags: int) -> int:
    """Open a file of a name that others can foresee: in a folder that they may write, a link may lead anywhere."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_atomic(path: Path, *content: bytes | memoryview, before: Sequence[Path] = ()) -> None:
    """Replace a file in one step: after a crash it holds the old content or the new, never a part.

    Args:
        path: of the file.
        content: parts that follow each other.
        before: names that contents of before move on to, the youngest first; the last falls out.

    Raises:
        UserError: if the disk is full or the folder read-only; the old file is then untouched.
    """
    if not writes():
        return
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb", opener=_through_no_link) as file:
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        for younger, older in reversed(list(zip((path, *before), before, strict=False))):
            if younger.exists():
                os.replace(younger, older)
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one that helps
            partial.unlink(missing_ok=True)
        raise unwritable(path, error) from None


def sync_folder(folder: Path) -> None:
    """Wait until what was renamed in a folder would outlast a power failure, on file systems that can promise it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write plain data as readable JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write named arrays as .npz, atomically; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


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
