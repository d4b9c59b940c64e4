"""Unpacking an archive that a stranger may have made: nothing is written outside the folder, and not without end."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from bissl_fast.errors import UserError

OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.EMFILE}
"""What goes wrong with the folder; all else goes wrong with the archive."""


def unpack(archive: Path, root: Path, limit: int) -> None:
    """Unpack a `.zip` or (compressed) `.tar` into a folder: all of it, or nothing.

    Everything is written to a folder beside the final place first and moved when it is complete. Data sets have no need
    of links or devices, so an archive with one is refused, as is a path that is absolute or climbs with `..`.

    Args:
        archive: The archive; its content tells its kind.
        root: Folder to unpack to; files of the same names are replaced.
        limit: Most bytes that the files may have together.

    Raises:
        UserError: The archive is damaged, too large, or holds what it should not.
        OSError: The folder cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    scratch = root / f".unpacking-{archive.name}"
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed call left
    scratch.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, scratch, limit)
        else:
            _unpack_tar(archive, scratch, limit)
        for made in scratch.iterdir():
            place = root / made.name
            if made.is_dir() and place.is_dir():
                shutil.copytree(made, place, copy_function=os.replace, dirs_exist_ok=True)
            else:
                made.replace(place)
    except UserError:
        raise
    except Exception as error:  # a damaged archive can make its reader raise anything
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise
        reason = str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
        raise UserError(f"{archive} is cut off or damaged ({reason}): remove it and download it again.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack_tar(archive: Path, folder: Path, limit: int) -> None:
    total = 0
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # a second guard, where this Python has it
        for member in tar:
            kind = (
                "" if member.isreg() or member.isdir() else "a link" if member.islnk() or member.issym() else "a device"
            )
            total += member.size
            _check(archive, member.name, kind, total, limit)
            tar.extract(member, folder)


def _unpack_zip(archive: Path, folder: Path, limit: int) -> None:
    total = 0
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            mode = member.external_attr >> 16  # Unix permissions, where the archive has them
            total += member.file_size  # no more than this is unpacked, whatever the packed data hold
            _check(archive, member.filename, "a link" if stat.S_ISLNK(mode) else "", total, limit)
        content.extractall(folder)


def _check(archive: Path, name: str, kind: str, total: int, limit: int) -> None:
    """Refuse a member by its name, its kind, or the size of all so far."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    problem = ""
    if posix.is_absolute() or windows.is_absolute() or windows.drive:
        problem = f"holds the absolute path '{name}'"
    elif ".." in posix.parts or ".." in windows.parts:
        problem = f"holds the path '{name}', which leaves its folder"
    elif kind:
        problem = f"holds {kind}, '{name}'"
    elif total > limit:
        problem = f"unpacks to more than the {limit / 1e9:,.1f} GB that the set can have"
    if problem:
        raise UserError(f"{archive} {problem}: nothing was unpacked; remove it and get the set from its official page.")
