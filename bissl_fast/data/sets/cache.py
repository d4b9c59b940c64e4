"""Decode once: a source of images becomes a memory-mapped uint8 array on disk.

An entry is a folder `<set-split>-<key>` with `images.npy`, `labels.npy` (if labelled), `sizes.npy` (of whole images)
and `entry.json`. Its key hashes
all that determines the content. It is written under another name, flushed to the disk and renamed, so a folder of the
final name is complete; what happened to it since is told by its content hash, which is checked whenever it is opened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from bissl_fast.data.sets.dataset import Images, ImageSet, Labels, Targets
from bissl_fast.data.sets.readers.decode import UnreadableImageError
from bissl_fast.data.sets.readers.source import Source, digest, listed
from bissl_fast.errors import UserError
from bissl_fast.plain import load_array, parse_json

FORMAT = 2
FOLDER_VARIABLE = "BISSL_FAST_CACHE"
_STALE_SECONDS = 600.0  # a build that wrote nothing for so long was killed
_WINDOW = 256  # images in flight between the decoding threads and the file
_WINDOW_BYTES = 1 << 29  # that they may take together
_BAR_STEP = 32  # images between two updates of the progress bar, which takes a lock


@dataclass(frozen=True)
class Decoded:
    """One image of a source, or the reason why there is none; and what was turned, scaled or guessed in reading it."""

    index: int
    image: Images | None
    reason: str = ""
    remarks: Sequence[str] = ()


def default_folder() -> Path:
    """The folder that `BISSL_FAST_CACHE` names, else `~/.cache/bissl-fast`."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "bissl-fast"


def load(source: Source, size: int, folder: Path | None = None, progress: bool = True) -> ImageSet:
    """Open a source's decoded images, decoding them first if no intact entry is there.

    Args:
        source: Images to decode.
        size: Wanted side in pixels; sets of smaller native size keep theirs.
        folder: Cache folder; `default_folder()` if `None`.
        progress: Show a progress bar while decoding.

    Returns:
        The images that could be decoded; the others are named in `skipped`.

    Raises:
        UserError: Nothing could be decoded, the disk is full, or the cache folder cannot be written.
    """
    folder = default_folder() if folder is None else folder
    entry = folder / entry_name(source, size)
    found = _open(entry, source)
    if found is not None:
        return found
    failure = None
    try:
        _build(source, size, entry, progress)
    except OSError as error:
        failure = error
    # After a failure another process may have finished the same entry. What was just written was hashed on its way.
    built = _open(entry, source, check=failure is not None)
    if built is None and failure is not None:
        raise _explain(failure, folder, source, size) from failure
    if built is None:
        raise UserError(f"{entry} was written and reads back differently: check the disk, or set {FOLDER_VARIABLE}.")
    return built


def entry_name(source: Source, size: int) -> str:
    """Folder name of a source's entry: readable, and different whenever the content may be."""
    side = source.side(size)
    slug = "".join(c if c.isalnum() else "-" for c in source.name)[:60]
    return f"{slug}-{side}px-{digest(str(FORMAT), source.name, str(side), source.identity)[:16]}"


def decoding_threads() -> int:
    """Threads that images are decoded with: one for each core that this process may use."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def decode(source: Source, size: int, progress: bool, title: str = "Decoding") -> Iterator[Decoded]:
    """Decode every image with all cores, in order, under a progress bar with images/s and time left."""

    def one(index: int) -> Decoded:
        try:
            image = source.read(index, size)
            return Decoded(index, image, remarks=source.remarks(index))
        except UnreadableImageError as error:
            return Decoded(index, None, str(error))

    workers = decoding_threads()
    window = max(workers, min(_WINDOW, _WINDOW_BYTES // (source.channels * source.side(size) ** 2)))
    pool, ahead = ThreadPoolExecutor(workers), deque[Future[Decoded]]()
    with _progress_bar(progress) as bar:
        task = bar.add_task(f"{title} {source.name}", total=source.count)
        try:
            for index in range(source.count + window):  # a sliding window: no thread waits for the slowest of a batch
                if index < source.count:
                    ahead.append(pool.submit(one, index))
                if index >= window and ahead:
                    yield ahead.popleft().result()
                if index % _BAR_STEP == 0:
                    bar.update(task, completed=max(0, index - window))
        finally:
            pool.shutdown(cancel_futures=True)


def remark_notes(source: Source, remarks: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """A sentence for each remark, from the images of the source that it was made on."""
    return tuple(
        f"{len(images)} of {source.count} images of {source.name} {remark}: {listed(images)}."
        for remark, images in remarks.items()
    )


def _build(source: Source, size: int, entry: Path, progress: bool) -> None:
    folder = entry.parent
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(entry)
    scratch = folder / f"{entry.name}.building-{secrets.token_hex(8)}"
    scratch.mkdir()  # mkdtemp's would stay closed to others, who may share the cache
    try:
        kept, skipped, remarks, hashed = _write_images(source, size, scratch / "images.npy", progress)
        if not kept:
            raise UserError(
                f"None of the {source.count} images of {source.name} could be read: {listed(skipped, 3)}. "
                f"Check that they are images and complete."
            )
        labels = None if source.labels is None else source.labels[kept]
        for name, column in (("labels", labels), ("sizes", _sizes(source, kept))):
            if column is not None:
                with (scratch / f"{name}.npy").open("wb") as file:
                    np.save(file, column)
                    _flush(file)
        _write_description(source, skipped, remarks, scratch, hashed)
        if entry.exists():  # damaged, or written by another process meanwhile: either way ours is good
            entry.rename(scratch / "replaced")
        scratch.rename(entry)
        shutil.rmtree(entry / "replaced", ignore_errors=True)
        _flush_folder(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_images(
    source: Source, size: int, path: Path, progress: bool
) -> tuple[list[int], list[str], dict[str, list[str]], str | None]:
    """Stream the images into a `.npy` file; a full disk is then an error, where it would kill a memory map.

    Returns:
        Positions of the images that were written, the others with their reasons, images by the remarks on them, and the
        content hash, taken on the way while the other threads decode. An image left out changes the shape that the hash
        begins with: then `None`.
    """
    side = source.side(size)
    kept: list[int] = []
    skipped: list[str] = []
    remarks: dict[str, list[str]] = {}
    with path.open("wb") as file:
        _write_header(file, (source.count, side, side, source.channels))
        start = file.tell()
        total = _begin_hash((source.count, side, side, source.channels), source.classes)
        for decoded in decode(source, size, progress):
            if decoded.image is None:
                skipped.append(f"{source.describe(decoded.index)}: {decoded.reason}")
                continue
            data = np.ascontiguousarray(decoded.image).data
            file.write(data)
            total.update(data)
            kept.append(decoded.index)
            for remark in decoded.remarks:
                remarks.setdefault(remark, []).append(source.describe(decoded.index))
        file.seek(0)
        _write_header(
            file, (len(kept), side, side, source.channels)
        )  # NumPy pads the header, so any number of images fits
        assert file.tell() == start
        _flush(file)
    hashed = None if skipped else _end_hash(total, source.labels, _sizes(source, kept))
    return kept, skipped, remarks, hashed


def _sizes(source: Source, kept: Sequence[int]) -> Labels | None:
    """Height and width of whole images before they were stretched, `(N, 2)`."""
    return None if source.sides is None else np.array([source.sides(index) for index in kept], dtype=np.int64)


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _write_description(
    source: Source, skipped: list[str], remarks: Mapping[str, Sequence[str]], scratch: Path, hashed: str | None
) -> None:
    images, labels, sizes = _read_arrays(scratch, source.labels is not None, source.sides is not None)
    description = {
        "format": FORMAT,
        "name": source.name,
        "classes": source.classes,
        "labelled": labels is not None,
        "whole": sizes is not None,
        "skipped": skipped,
        "notes": remark_notes(source, remarks),
        "content_hash": hashed or content_hash(images, labels, source.classes, sizes),
    }
    with (scratch / "entry.json").open("wb") as file:
        file.write(json.dumps(description, indent=1).encode())
        _flush(file)


def _open(entry: Path, source: Source, check: bool = True) -> ImageSet | None:
    """The images of an intact entry; `None` if there is none, or it is damaged in any way that `check` can tell."""
    try:
        description: dict[str, Any] = parse_json((entry / "entry.json").read_bytes())
        classes = tuple(description["classes"])
        images, labels, sizes = _read_arrays(entry, description["labelled"], description["whole"])
        if check and content_hash(images, labels, classes, sizes) != description["content_hash"]:
            return None
        notes, skipped = (*source.notes, *description["notes"]), tuple(description["skipped"])
        if not all(isinstance(told, str) for told in (*notes, *skipped)):  # beside what is hashed
            return None
        return ImageSet(source.name, images, labels, classes, description["content_hash"], skipped, notes, sizes)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_arrays(folder: Path, labelled: bool, whole: bool) -> tuple[Images, Targets | None, Labels | None]:
    images: Images = load_array(folder / "images.npy", mapped=True)
    labels: Targets | None = load_array(folder / "labels.npy") if labelled else None
    return images, labels, load_array(folder / "sizes.npy") if whole else None


def content_hash(images: Images, labels: Targets | None, classes: tuple[str, ...], sizes: Labels | None = None) -> str:
    """SHA-256, shortened to 32 digits, of pixels, labels, class names, and sizes before the images were stretched."""
    total = _begin_hash(images.shape, classes)
    for start in range(0, len(images), _WINDOW):
        total.update(np.ascontiguousarray(images[start : start + _WINDOW]).data)
    return _end_hash(total, labels, sizes)


def _begin_hash(shape: tuple[int, ...], classes: tuple[str, ...]) -> hashlib._Hash:
    return hashlib.sha256(repr((shape, classes)).encode())


def _end_hash(total: hashlib._Hash, labels: Targets | None, sizes: Labels | None) -> str:
    for column in (labels, sizes):
        total.update(b"" if column is None else column.tobytes())
    return total.hexdigest()[:32]


def _explain(error: OSError, folder: Path, source: Source, size: int) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        megabytes = source.count * source.side(size) ** 2 * source.channels / 1e6
        return UserError(
            f"The disk is full: {source.name} needs {math.ceil(megabytes):,} MB in {folder}; free some space, or set "
            f"{FOLDER_VARIABLE} to a folder on another disk."
        )
    return UserError(
        f"The cache folder {folder} cannot be written ({error.strerror or error}): set {FOLDER_VARIABLE} to a folder "
        f"that can."
    )


def _remove_stale(entry: Path) -> None:
    """Remove what killed builds of this entry left behind."""
    for left in entry.parent.glob(f"{entry.name}.building-*"):
        newest = max((path.stat().st_mtime for path in [left, *left.iterdir()]), default=0.0)
        if time.time() - newest > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _progress_bar(visible: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} images/s" if task.speed else "")

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not (visible and console.is_terminal), transient=True)
