"""`bissl-fast data list | prepare | verify`."""

from __future__ import annotations

from collections import Counter
from http.client import HTTPException
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bissl_fast.data import cache
from bissl_fast.data.catalogue import (
    ENTRIES,
    FOLDER_PREFIX,
    Entry,
    entry_of,
    list_labelled,
    list_unlabelled,
    load_downstream,
    load_pretext,
    locate,
    skipped_notes,
)
from bissl_fast.data.dataset import ImageSet
from bissl_fast.data.readers.source import Source, listed
from bissl_fast.errors import UserError

_CLASSES_SHOWN = 60  # a table of more rows is a range instead


def list_command(*, data_root: Path | None = None) -> None:
    """Show the data sets that can be read, where each comes from, and whether it is there.

    Args:
        data_root: Folder that holds the data sets.
    """
    table = Table("name", "set", "classes", "images", "folder", "there?", "page")
    for entry in ENTRIES:
        folder = "embedded" if entry.embedded else f"{data_root or 'DIR'}/{entry.folders[0]}"
        table.add_row(
            entry.name, entry.title, str(entry.classes), entry.contents, folder, _presence(entry, data_root), entry.page
        )
    table.add_row(f"{FOLDER_PREFIX}PATH", "any folder of images", "", "one sub-folder per class, or loose images", "PATH")
    console = Console()
    console.print(table)
    console.print("`bissl-fast data prepare NAME --data-root DIR` downloads a set and decodes it.", markup=False)


def prepare_command(
    name: str, /, *, data_root: Path | None = None, size: int = 112, cache_dir: Path | None = None
) -> None:
    """Download a data set if it is not there, then decode it into the cache.

    Args:
        name: Name of the set, or folder:PATH.
        data_root: Folder that holds the data sets; the download goes there.
        size: Side of the cached images in pixels.
        cache_dir: Cache folder; BISSL_FAST_CACHE or ~/.cache/bissl-fast if not given.
    """
    console = Console()
    if not name.startswith(FOLDER_PREFIX):
        entry = entry_of(name)
        if not entry.embedded and data_root is None:
            raise UserError(f"{entry.title} needs a folder to be downloaded to: add --data-root DIR.")
        if not entry.embedded and data_root is not None and entry.find(data_root) is None:
            download(entry, data_root)
    pretext = load_pretext(name, data_root, size, cache_dir)
    splits = load_downstream(name, data_root, size, cache_dir)
    for part in (splits.train, splits.val, splits.test, pretext):
        console.print(f"{part.name}: {len(part):,} images, {part.size} px", markup=False)
    for note in (*splits.notes, *skipped_notes(pretext)):
        console.print(f"note: {note}", markup=False)
    console.print(f"Ready in {cache_dir or cache.default_folder()}.", markup=False)


def verify_command(name: str, /, *, data_root: Path | None = None) -> None:
    """Decode every image of a data set; show what is there, per split and class, and what is missing or unreadable.

    Args:
        name: Name of the set, or folder:PATH.
        data_root: Folder that holds the data sets.
    """
