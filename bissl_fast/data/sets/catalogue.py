"""From what a user types to images: a set is found, downloaded, listed and loaded, or a sentence says why not."""

from __future__ import annotations

import difflib
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from zipfile import BadZipFile

import numpy as np

from bissl_fast.data.sets import cache
from bissl_fast.data.sets.dataset import ImageSet, Splits, without_empty_classes
from bissl_fast.data.sets.duplicates import same_files
from bissl_fast.data.sets.entries import ENTRIES, SPLITS, Entry
from bissl_fast.data.sets.readers.folder import image_folder, loose_images, require_folder
from bissl_fast.data.sets.readers.gray import gray
from bissl_fast.data.sets.readers.source import Listing, Source, listed
from bissl_fast.data.sets.readers.table import labelled_table
from bissl_fast.errors import UserError

FOLDER_PREFIX = "folder:"
BY_HAND = "so put the files there by hand, laid out as docs/data.md shows"


def load_downstream(
    spec: str,
    root: Path | None,
    size: int,
    cache_dir: Path | None = None,
    progress: bool = True,
    whole: bool = False,
    labels: Path | None = None,
    channels: int = 3,
) -> Splits:
    """Load the labelled splits of a set, from the cache if they were decoded before.

    Args:
        spec: A name of the catalogue, or `folder:PATH`.
        root: Data root; not needed by `textures` and `folder:PATH`.
        size: Side in pixels; array sets of smaller native size keep theirs.
        cache_dir: Cache folder; `BISSL_FAST_CACHE` or `~/.cache/bissl-fast` if `None`.
        progress: Show a progress bar while decoding.
        whole: Keep whole images, stretched to squares, and their sizes, in place of the squares in their middle.
        labels: A table of paths and classes, for a folder whose sub-folders are no classes.
        channels: Of the images. 1 is the luma of RGB; others than 1 and 3 are read from folders alone.

    Returns:
        Train, validation and test images, with notes on whatever a user should know about them.

    Raises:
        UserError: The set is unknown, missing, incomplete or unreadable, or the cache cannot be written.

    Example:
        >>> splits = load_downstream("textures", None, size=64)  # doctest: +SKIP
        >>> splits.train.images.shape  # doctest: +SKIP
        (480, 64, 64, 3)
    """
    listing = list_labelled(spec, root, labels, channels)
    sources = [listing.train, listing.val, listing.test]
    if whole:
        sources = [source.whole() if source.whole else source for source in sources]
    parts = [cache.load(source, size, cache_dir, progress) for source in sources]
    notes = listing.notes + tuple(note for part in parts for note in notes_of(part))
    (train, val, test), more = without_empty_classes(parts)
    return Splits(train, val, test, notes + more)


def load_pretext(
    spec: str,
    root: Path | None,
    size: int,
    cache_dir: Path | None = None,
    progress: bool = True,
    downstream: str | None = None,
    exclude_test: bool = False,
    labels: Path | None = None,
    channels: int = 3,
) -> ImageSet:
    """Load the unlabelled images of a set: its unlabelled split, or its training split without the labels.

    Of `folder:PATH` it takes every image below the folder. `notes_of` tells of what was left out.

    Args:
        spec: A name of the catalogue, or `folder:PATH`.
        root: Data root.
        size: Side in pixels.
        cache_dir: Cache folder.
        progress: Show a progress bar while decoding.
        downstream: The set that is tested on: how many of its test images are among these, byte for byte, is noted.
        exclude_test: Leave those out; of images in arrays a note says that they were not compared.
        labels: Of `downstream`, as in `load_downstream`.
        channels: As in `load_downstream`.

    Raises:
        UserError: As `load_downstream`; or nothing but test images is there.
    """
    source = list_unlabelled(spec, root, channels)
    if downstream is not None and (source.files or exclude_test):
        source = _beside_test(source, list_labelled(downstream, root, labels, channels).test, downstream, exclude_test)
    return cache.load(source, size, cache_dir, progress)


def _beside_test(source: Source, test: Source, downstream: str, exclude: bool) -> Source:
    """Pretext images with a note on those that are also test images, or without these."""
    if exclude and not (source.files and test.files):
        arrays = test.name if source.files else source.name
        note = f"--exclude-test left out nothing: it compares files, and the images of {arrays} lie in arrays."
        return replace(source, notes=(*source.notes, note))
    shared = same_files(source.files, test.files)
    if not shared.any():
        return source
    if exclude and shared.all():
        raise UserError(f"All {source.count:,} images of {source.name} are test images of {downstream}: add others.")
    found = f"{shared.sum():,} of the {source.count:,} images of {source.name} are also test images of {downstream}"
    if not exclude:
        note = f"{found}: the pretext task sees them, without labels. --exclude-test leaves them out."
        return replace(source, notes=(*source.notes, note))
    rest = source.take(np.flatnonzero(~shared), source.name)
    return replace(rest, notes=(*source.notes, f"{found} and are left out."))


def list_labelled(spec: str, root: Path | None, labels: Path | None = None, channels: int = 3) -> Listing:
    """The labelled splits of a set, listed and not decoded."""
    if spec.startswith(FOLDER_PREFIX):
        folder = folder_of(spec)
        if labels is None:
            return image_folder(folder, channels)
        return labelled_table(require_folder(folder), labels, channels)
    if labels is not None:
        raise UserError(f"--labels names the classes of a folder's images: {spec} has its own, so leave it out.")
    entry = entry_of(spec)
    listing = entry.labelled(locate(entry, root))
    train, val, test = (_in_channels(part, channels) for part in (listing.train, listing.val, listing.test))
    return Listing(train, val, test, listing.notes)


def list_unlabelled(spec: str, root: Path | None, channels: int = 3) -> Source:
    """The unlabelled images of a set, listed and not decoded."""
    if spec.startswith(FOLDER_PREFIX):
        return loose_images(folder_of(spec), channels)
    entry = entry_of(spec)
    folder = locate(entry, root)
    source = entry.unlabelled(folder) if entry.unlabelled else entry.labelled(folder).train.unlabelled()
    return _in_channels(source, channels)


def _in_channels(source: Source, channels: int) -> Source:
    """A published split, which is RGB, in another number of channels."""
    if channels not in (1, 3):
        raise UserError(
            f"{source.name} holds images of 3 channels, which serve as 3 or 1, not as {channels}: give "
            f"{FOLDER_PREFIX}PATH, a folder of TIFF or .npy files with {channels} channels."
        )
    return source if channels == 3 else gray(source)


def folder_of(spec: str) -> Path:
    """The folder that `folder:PATH` names."""
    path = spec.removeprefix(FOLDER_PREFIX)
    if not path:
        raise UserError("'folder:' lacks its path: write it as folder:PATH.")
    return Path(path).expanduser().resolve()


def entry_of(name: str) -> Entry:
    """The entry of a name.

    Raises:
        UserError: There is none; the message names the known sets and the closest one.
    """
    entries = {entry.name: entry for entry in ENTRIES}
    if name in entries:
        return entries[name]
    names = entries | {entry.alias: entry for entry in ENTRIES if entry.alias}
    close = difflib.get_close_matches(name.lower().replace("-", "").replace("_", ""), names, n=1)
    hint = f" Did you mean '{names[close[0]].name}'?" if close else ""
    if Path(name).is_dir():
        hint = f" Did you mean '{FOLDER_PREFIX}{name}'?"
    raise UserError(
        f"There is no data set '{name}'.{hint} Known are {', '.join(entries)}, and folder:PATH for a folder of images."
    )


def locate(entry: Entry, root: Path | None) -> Path:
    """The folder of a set; an embedded set has none and gets the current one.

    Raises:
        UserError: It is not there; the message says where it should be and how it gets there.
    """
    if entry.embedded:
        return Path()
    found = entry.find(root) if root is not None else None
    if found is not None:
        return found
    raise UserError(f"{absent(entry, root)}, or use the embedded set with `--dataset textures`.")


def absent(entry: Entry, root: Path | None) -> str:
    """That a set is not there, where it belongs and how it gets there, without a full stop."""
    where = "DIR" if root is None else root
    reason = "no --data-root was given" if root is None else f"{root} does not hold it"
    command = f"download it with `bissl-fast data prepare {entry.name} --data-root {where}`"
    way = command if entry.downloads else f"{entry.undownloadable}, {BY_HAND}"
    return f"{entry.title} was not found: {reason}. Expected is {where}/{entry.folders[0]}: {way}"


def download(entry: Entry, root: Path) -> None:
    """Download and unpack a set below `root`.

    Raises:
        UserError: Nobody offers the set any more, the download failed, or the folder cannot be written.
    """
    place = root / entry.folders[0]
    if not entry.downloads:
        raise UserError(f"{entry.title} cannot be downloaded: {entry.undownloadable}, {BY_HAND}, to {place}.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        for step in entry.downloads:
            step.get(root)
    except (OSError, RuntimeError, HTTPException, EOFError, TarError, BadZipFile) as error:
        raise UserError(
            f"Downloading {entry.title} failed ({error}): check the network and the disk and run the command again, or "
            f"fetch the files from {entry.page} and unpack them to {place}."
        ) from error
    if entry.find(root) is None:
        raise UserError(
            f"{entry.title} was downloaded, but {place} does not hold {entry.marker}: an earlier download was stopped; "
            f"remove {root / entry.folders[0].split('/')[0]} and run the command again."
        )


def shortfall(entry: Entry, folder: Path) -> tuple[str, ...]:
    """What a set on disk lacks, in sentences: splits that are not whole, and what cannot be read at all."""
    try:
        listing = entry.labelled(folder)
        if entry.unlabelled is not None:
            entry.unlabelled(folder)
    except UserError as error:
        return (str(error),)
    parts = zip(SPLITS, (listing.train, listing.val, listing.test), entry.sizes, strict=True)
    counts = [f"{part.count:,} of {size:,} {split}" for split, part, size in parts if part.count != size]
    return (f"There are {', '.join(counts)} images.", *listing.notes) if counts else listing.notes


def notes_of(images: ImageSet) -> tuple[str, ...]:
    """Sentences on the images that could not be read, and on whatever else was left out, turned, scaled or guessed."""
    if not images.skipped:
        return images.notes
    total = len(images) + len(images.skipped)
    return (
        f"{len(images.skipped)} of {total} images of {images.name} could not be read and are left out: "
        f"{listed(images.skipped)}.",
        *images.notes,
    )
