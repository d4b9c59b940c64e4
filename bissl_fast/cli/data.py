"""`bissl-fast data list | prepare | verify`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bissl_fast.data.sets import cache
from bissl_fast.data.sets.catalogue import (
    FOLDER_PREFIX,
    download,
    entry_of,
    list_labelled,
    list_unlabelled,
    load_downstream,
    load_pretext,
    notes_of,
    shortfall,
)
from bissl_fast.data.sets.dataset import ImageSet, count_by_class, disjoint
from bissl_fast.data.sets.duplicates import Duplicates
from bissl_fast.data.sets.entries import ENTRIES, SPLITS
from bissl_fast.data.sets.readers.decode import printable
from bissl_fast.data.sets.readers.source import Source
from bissl_fast.data.sets.readers.stacks import MOST_CHANNELS
from bissl_fast.errors import UserError
from bissl_fast.methods.checks import require

_CLASSES_SHOWN = 60  # with more classes their table is left out
_VERIFY_SIZE = 32  # of files: small, since only readability matters
_NATIVE = 4096  # of arrays, which are never enlarged: their pixels are compared


def data_command(arguments: list[str]) -> None:
    """One of the three."""
    commands: dict[str, Callable[..., None]] = {
        "list": list_command,
        "prepare": prepare_command,
        "verify": verify_command,
    }
    tyro.extras.subcommand_cli_from_dict(commands, prog="bissl-fast data", args=arguments)


def list_command(*, data_root: Path | None = None) -> None:
    """Show the data sets that can be read, where each comes from, whether it is there, and what it lacks.

    Args:
        data_root: Folder that holds the data sets.
    """
    for entry in ENTRIES:
        sizes = ", ".join(f"{size:,} {split}" for split, size in zip(SPLITS, entry.sizes, strict=True))
        _print(f"{entry.name:17}{entry.title}: {entry.classes:,} classes; {sizes}; {entry.images}")
        if not entry.embedded:
            found = entry.find(data_root) if data_root is not None else None
            place = f"{data_root or 'DIR'}/{entry.folders[0]}"
            state = "" if data_root is None else f" (there: {found})" if found else " (not there)"
            _print(f"{'':17}in {place}{state}, from {entry.page}{'' if entry.downloads else ' (no download)'}")
            for sentence in shortfall(entry, found) if found else ():
                _print(f"{'':17}{sentence}")
    _print(f"{FOLDER_PREFIX + 'PATH':17}any image folder: a sub-folder per class, or loose images for pretext training")
    _print("\n`bissl-fast data prepare NAME --data-root DIR` downloads a set and decodes it into the cache.")


def prepare_command(
    name: tyro.conf.Positional[str],
    *,
    data_root: Path | None = None,
    labels: Path | None = None,
    unlabelled: bool = False,
    size: int = 112,
    whole: bool = False,
    channels: int = 3,
    cache_dir: Path | None = None,
) -> None:
    """Download a data set if it is not there, then decode it into the cache.

    Args:
        name: Name of the set, or folder:PATH.
        data_root: Folder that holds the data sets; the download goes there.
        labels: Table of paths and classes of a folder:PATH whose sub-folders are no classes.
        unlabelled: Prepare the unlabelled images only, as for pretext training.
        size: Side of the cached images in pixels: a run's --images.cache-size, 64 in the preset quick, else 112. Of
            downstream images --images.downstream-cache-size: 224, and --whole, in the presets paper and official.
        whole: Prepare whole downstream images, stretched to squares, in place of the squares in their middle.
        channels: Of the images, a run's --images.channels: 3 is RGB, 1 gray; others are read from folders of stacks.
        cache_dir: Cache folder; BISSL_FAST_CACHE or ~/.cache/bissl-fast if not given.
    """
    require(8 <= size <= 4096, "size", size, "between 8 and 4096 pixels")
    require(1 <= channels <= MOST_CHANNELS, "channels", channels, f"between 1 and {MOST_CHANNELS}")
    if unlabelled and (labels is not None or whole):
        found = "--labels" if labels is not None else "--whole"
        raise UserError(f"--unlabelled prepares images without labels, as squares: leave it or {found} out.")
    entry = None if name.startswith(FOLDER_PREFIX) else entry_of(name)
    if entry is not None and not entry.embedded:
        if data_root is None:
            raise UserError(f"{entry.title} needs a folder to be downloaded to: add --data-root DIR.")
        if entry.find(data_root) is None:
            if entry.downloads:
                _print(f"Downloading {entry.title} from {entry.page} to {data_root}.")
            download(entry, data_root)
    parts: list[ImageSet] = []
    notes: tuple[str, ...] = ()
    if not unlabelled:
        splits = load_downstream(name, data_root, size, cache_dir, whole=whole, labels=labels, channels=channels)
        parts += [splits.train, splits.val, splits.test]
        notes = splits.notes
    if unlabelled or (entry is not None and entry.unlabelled is not None):
        parts.append(load_pretext(name, data_root, size, cache_dir, channels=channels))
        notes += notes_of(parts[-1])
    for part in parts:
        kind = "" if part.channels == 3 else f", {part.channels} channel{'s' * (part.channels > 1)}"
        kind += "" if part.sizes is None else ", whole"
        _print(f"{part.name}: {len(part):,} images of {part.size} px{kind}, {part.images.nbytes / 1e6:,.1f} MB")
    _print_notes(notes)
    _print(f"Ready in {cache_dir or cache.default_folder()}.")


def verify_command(
    name: tyro.conf.Positional[str],
    *,
    data_root: Path | None = None,
    labels: Path | None = None,
    unlabelled: bool = False,
    channels: int = 3,
) -> None:
    """Decode every image of a data set; show what is there per split and class, and what is missing or unreadable.

    Images that are the same, byte for byte, in two splits or under two labels are counted and named.

    Args:
        name: Name of the set, or folder:PATH.
        data_root: Folder that holds the data sets.
        labels: Table of paths and classes of a folder:PATH whose sub-folders are no classes.
        unlabelled: Verify the unlabelled images only, as for pretext training.
        channels: As in `data prepare`.
    """
    require(1 <= channels <= MOST_CHANNELS, "channels", channels, f"between 1 and {MOST_CHANNELS}")
    if unlabelled and labels is not None:
        raise UserError("--unlabelled verifies images without labels: leave it or --labels out.")
    sources, notes = _sources(name, data_root, labels, unlabelled, channels)
    duplicates = Duplicates(sources)
    counts, unreadable = [], []
    for number, source in enumerate(sources):
        good, bad, remarks = _read_all(source, number, duplicates)
        counts.append(good)
        unreadable += bad
        notes += (*source.notes, *remarks)
    Console().print(_split_table(sources, counts))
    if not unlabelled and len(sources[0].classes) <= _CLASSES_SHOWN:
        Console().print(_class_table(sources[:3], counts[:3]))
    _print_notes((*notes, *duplicates.notes(), *(f"unreadable: {line}" for line in unreadable)))
    if empty := [source.name for source, good in zip(sources, counts, strict=True) if not good.any()]:
        _print(f"No image of {', '.join(empty)} can be read: training refuses the set.")
    else:
        _print("Some images cannot be read: training leaves them out." if unreadable else "Every image can be read.")


def _sources(
    name: str, data_root: Path | None, labels: Path | None, unlabelled: bool, channels: int
) -> tuple[list[Source], list[str]]:
    """The splits of a set, those with labels first, or the one without; and what was noted when they were listed."""
    if unlabelled:
        return [list_unlabelled(name, data_root, channels)], []
    listing = list_labelled(name, data_root, labels, channels)
    sources = [listing.train, listing.val, listing.test]
    if not name.startswith(FOLDER_PREFIX) and entry_of(name).unlabelled is not None:
        sources.append(list_unlabelled(name, data_root, channels))
    return sources, [*listing.notes]


def _read_all(
    source: Source, number: int, duplicates: Duplicates
) -> tuple[npt.NDArray[np.bool_], list[str], tuple[str, ...]]:
    """Which images of a split can be read, lines on the others, and sentences on what was turned, scaled or guessed."""
    readable = np.zeros(source.count, dtype=bool)
    unreadable: list[str] = []
    remarks: dict[str, list[str]] = {}
    for decoded in cache.decode(source, _VERIFY_SIZE if source.files else _NATIVE, progress=True, title="Reading"):
        name = source.describe(decoded.index)
        if decoded.image is None:
            unreadable.append(f"{source.name}: {name}: {decoded.reason}")
            continue
        readable[decoded.index] = True
        duplicates.add(number, decoded.index, decoded.image)
        for remark in decoded.remarks:
            remarks.setdefault(remark, []).append(name)
    return readable, unreadable, cache.remark_notes(source, remarks)


def _split_table(sources: list[Source], readable: list[npt.NDArray[np.bool_]]) -> Table:
    table = Table("split", "listed", "readable", "classes", "images per class")
    for source, good in zip(sources, readable, strict=True):
        classes, spread = "unlabelled", ""
        if source.labels is not None:
            per_class = count_by_class(source.labels[good], len(source.classes))
            if disjoint(sources[0].labels, sources[2].labels):  # other classes in each split
                per_class = per_class[np.unique(source.labels)]
            classes, spread = str(len(per_class)), f"{per_class.min()} to {per_class.max()}"
        table.add_row(source.name, f"{source.count:,}", f"{good.sum():,}", classes, spread)
    return table


def _class_table(sources: list[Source], readable: list[npt.NDArray[np.bool_]]) -> Table:
    table = Table("class", *(source.name for source in sources))
    columns = [
        count_by_class(source.labels[good], len(source.classes))
        for source, good in zip(sources, readable, strict=True)
        if source.labels is not None
    ]
    for label, name in enumerate(sources[0].classes):
        table.add_row(escape(name), *(f"{column[label]:,}" for column in columns))
    return table


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        _print(f"note: {note}")


def _print(line: str) -> None:
    """Print without reading brackets in file names as markup."""
    Console().print(printable(line), markup=False, highlight=False, soft_wrap=True)
