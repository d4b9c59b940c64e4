"""What lies below a folder of images: every file once, and an account of all that is left out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from bissl_fast.data.sets.readers.decode import EXTENSIONS, printable
from bissl_fast.data.sets.readers.source import listed

NOT_AN_IMAGE = "their names do not end as those of images do that are read here"
A_CAMERAS = "they are photographs in a format that is not read here (save them as JPEG or PNG)"
AN_ARRAY = "arrays are images of other than 3 channels, which --channels has to name (of train: --images.channels)"
BESIDE = "they lie beside the class folders"
WITHOUT_IMAGES = "these folders hold no image"
_ELSEWHERE = "they are links to what is read in its own place"
_BACK = "they are links back to a folder that holds them"
_TWICE = "they are the same files or folders as others"
_NO_FILE = "they are pipes, devices or broken links"
_CLOSED = "they cannot be opened"
_RUN = "they are runs of bissl-fast"
_CACHE = "they are entries of bissl-fast's cache"


_OF_CAMERAS = {".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw"}


class Tree:
    """Finds images below folders, each file once, however many names or links lead to it.

    Links out of the folders are followed. Hidden files and folders are not looked at.

    Args:
        root: Folder that messages name files from.
        folders: Which folders of it are read: a link into one of them is not followed.
        extensions: How the names of images end.

    Example:
        >>> tree = Tree(Path("photos"), [Path("photos")])  # doctest: +SKIP
        >>> tree.images(Path("photos/cats"))  # doctest: +SKIP
        [PosixPath('photos/cats/1.jpg'), PosixPath('photos/cats/2.jpg')]
    """

    def __init__(self, root: Path, folders: Sequence[Path], extensions: Collection[str] = EXTENSIONS) -> None:
        self.root, self.extensions = root, extensions
        self._folders = [folder.resolve() for folder in folders]
        self._taken: set[tuple[int, int]] = set()  # files and folders
        self._left_out: dict[str, list[str]] = {}

    def images(self, folder: Path) -> list[Path]:
        """Images below a folder, at any depth, in sorted order."""
        found: list[Path] = []
        waiting = [folder]
        while waiting:
            folders, images = self.look(waiting.pop())
            waiting += folders
            found += images
        return sorted(found)

    def look(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The folders and the images in a folder that are to be read, each in sorted order."""
        folders: list[Path] = []
        images: list[Path] = []
        for entry in self._entries(folder):
            path = Path(entry.path)
            try:
                is_folder = entry.is_dir()
                reason = self._refused_folder(entry) if is_folder else self._refused_file(entry)
            except OSError:  # links in a circle, for one
                is_folder, reason = False, _NO_FILE
            if reason:
                self.leave_out(reason, path)
            else:
                (folders if is_folder else images).append(path)
        return folders, images

    def leave_out(self, reason: str, path: Path) -> None:
        """Count a file or folder that is not read."""
        self._left_out.setdefault(reason, []).append(os.path.relpath(path, self.root))

    def notes(self, *reasons: str) -> tuple[str, ...]:
        """A sentence for each reason why something was left out, or for each of some reasons."""
        return tuple(
            f"{len(names)} of what lies in {printable(self.root)} left out, because {reason}: {listed(sorted(names))}."
            for reason, names in self._left_out.items()
            if not reasons or reason in reasons
        )

    def _entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                yield from sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            self.leave_out(_CLOSED, folder)

    def _refused_folder(self, entry: os.DirEntry[str]) -> str:
        """Why a folder is not read; empty if it is."""
        path = Path(entry.path)
        if entry.is_symlink():
            real = path.resolve()
            if path.parent.resolve().is_relative_to(real):
                return _BACK
            if self._is_read(real):
                return _ELSEWHERE
        identity = _identity(path)
        if identity in self._taken:
            return _TWICE
        self._taken.add(identity)
        return _RUN if is_run(path) else _CACHE if is_cache_entry(path) else ""

    def _refused_file(self, entry: os.DirEntry[str]) -> str:
        """Why a file is not read; empty if it is, and taken from then on."""
        path = Path(entry.path)
        if path.suffix.lower() not in self.extensions:
            kind = path.suffix.lower()
            return AN_ARRAY if kind == ".npy" else A_CAMERAS if kind in _OF_CAMERAS else NOT_AN_IMAGE
        if not entry.is_file():
            return _NO_FILE
        if entry.is_symlink() and self._is_read(path.resolve()):
            return _ELSEWHERE
        identity = _identity(path)
        if identity in self._taken:
            return _TWICE
        self._taken.add(identity)
        return ""

    def _is_read(self, real: Path) -> bool:
        return any(real.is_relative_to(folder) for folder in self._folders)


def is_run(folder: Path) -> bool:
    """Whether a folder is one that `bissl-fast train` wrote: its figures are no images to train on."""
    return (folder / "config.yaml").is_file() and (folder / "environment.json").is_file()


def is_cache_entry(folder: Path) -> bool:
    """Whether a folder is one in which decoded images lie, or lay when their decoding was killed."""
    begun = (folder / "entry.json").is_file() or ".building-" in folder.name
    return begun and (folder / "images.npy").is_file()


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _identity(path: Path) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_dev, state.st_ino
