"""Downloads: torchvision's where it has a class for a set, else an archive that is resumed and checked."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from bissl_fast.data.sets.unpack import unpack
from bissl_fast.errors import UserError
from bissl_fast.version import __version__

_TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Torchvision:
    """A class of torchvision that downloads a set.

    Args:
        name: Name of the class.
        arguments: What it needs besides the root.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def get(self, root: Path) -> None:
        """Download and unpack below `root`; errors are torchvision's."""
        from torchvision import datasets

        getattr(datasets, self.name)(root, download=True, **self.arguments)


@dataclass(frozen=True)
class Archive:
    """An archive for which torchvision has no class, or no checksum.

    Args:
        url: Where it lies.
        md5: Its MD5, hexadecimal.
        limit: Most bytes that it may hold unpacked.
        into: Folder below the data root in which it is unpacked.
    """

    url: str
    md5: str
    limit: int
    into: str = "."

    def get(self, root: Path) -> None:
        """Download, check and unpack below `root`, and remove the archive.

        Raises:
            UserError: The download stopped or is not what it should be; what can be kept is kept for the next call.
            OSError: Something cannot be written.
        """
        path = root / self.url.rpartition("/")[2]
        fetch(self.url, path, self.md5)
        unpack(path, root / self.into, self.limit)
        path.unlink()


def fetch(url: str, path: Path, md5: str) -> None:
    """Download a file; what an interrupted call left in `<path>.part` is completed, not fetched again.

    A connection that breaks is taken up again at once, as long as every attempt brings some bytes.

    Args:
        url: Address.
        path: Where the file is wanted; a file there of the right MD5 is left as it is.
        md5: MD5 of the complete file, hexadecimal.

    Raises:
        UserError: The server does not answer, the connection brings nothing more, or the MD5 is another; in the last
            case the file is removed.
        OSError: The file cannot be written.
    """
    from torchvision.datasets.utils import calculate_md5

    if path.exists() and calculate_md5(path) == md5:
        return
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    complete = False
    while not complete:
        before = _size(part)
        complete, reason = _attempt(url, part)
        if not complete and _size(part) <= before:
            raise UserError(
                f"The download of {url} stopped after {_size(part):,} bytes ({reason}): check the network and run the "
                f"command again; it goes on from there."
            )
    found = calculate_md5(part)
    if found != md5:
        part.unlink()
        raise UserError(
            f"{url} arrived with the MD5 {found} where {md5} is expected, and was removed: run the command again; if "
            f"that repeats, the server's file has changed, so get the set from its official page."
        )
    part.replace(path)


def _attempt(url: str, part: Path) -> tuple[bool, str]:
    """Append what one connection brings; whether the file is complete, and if not, why."""
    have = _size(part)
    headers = {"User-Agent": f"bissl-fast/{__version__}"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with urlopen(Request(url, headers=headers), timeout=_TIMEOUT) as response:
            goes_on = response.status == 206
            if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                return False, f"the server sent another part than asked for: {response.headers.get('Content-Range')}"
            announced = response.headers.get("Content-Length")
            with part.open("ab" if goes_on else "wb") as file:  # a server that cannot resume sends all of it again
                received = _copy(response, file)
    except HTTPError as error:
        return error.code == 416 and have > 0, f"the server answers {error.code} {error.reason}"  # 416: nothing is left
    except (OSError, HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        return False, str(error) or type(error).__name__
    if announced is not None and received < int(announced):
        return False, "the connection was closed"
    return True, ""


def _copy(response: Any, file: BinaryIO) -> int:
    """Copy a response to a file under a progress bar; returns the number of bytes."""
    from rich.console import Console
    from rich.progress import wrap_file

    console = Console(stderr=True)
    start, total = file.tell(), int(response.headers.get("Content-Length") or 0)
    with wrap_file(response, total, console=console, disable=not console.is_terminal, transient=True) as bar:
        shutil.copyfileobj(bar, file, _CHUNK)
    return file.tell() - start


def _size(path: Path) -> int:
    return os.path.getsize(path) if path.exists() else 0
