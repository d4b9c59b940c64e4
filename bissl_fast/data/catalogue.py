"""The data sets that can be read: what each is, where it comes from, where it lies, and the functions that load one.

A set is one `Entry` below. To add one, write its reader and append its entry; the command line, its messages and its
tables follow.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bissl_fast.data import cache
from bissl_fast.data.dataset import ImageSet, Splits
from bissl_fast.data.readers import arrays
from bissl_fast.data.readers.dtd import dtd
from bissl_fast.data.readers.folder import image_folder, loose_images
from bissl_fast.data.readers.source import Listing, Source, listed
from bissl_fast.data.textures import texture_source, textures
from bissl_fast.errors import UserError

FOLDER_PREFIX = "folder:"


@dataclass(frozen=True)
class Entry:
    """One data set.

    Args:
        name: What a user types.
        title: Its full name.
        classes: Number of classes when complete.
        contents: Sizes of its splits, in words.
        labelled: Reader of the labelled splits, given the set's folder.
        unlabelled: Reader of the unlabelled images; the training split without its labels if `None`.
        folders: Folders below the data root in which the set may lie; the first is torchvision's layout.
        marker: A file pattern that is met in the set's folder if it is there at all.
        page: Official page.
        torchvision: Name of the torchvision class that downloads it.
    """

    name: str
    title: str
    classes: int
    contents: str
    labelled: Callable[[Path], Listing]
    unlabelled: Callable[[Path], Source] | None = None
    folders: tuple[str, ...] = ()
    marker: str = ""
    page: str = ""
    torchvision: str = ""

    @property
    def embedded(self) -> bool:
        """Whether the set is made here and needs no files."""
        return not self.folders

    def find(self, root: Path) -> Path | None:
        """The set's folder below a data root, if it is there."""
        for name in self.folders:
            if any((root / name).glob(self.marker)):
                return root / name
        return None


TEXTURES = Entry(
    "textures",
    "procedural textures, embedded",
    12,
    "480 train, 240 val, 720 test, 6,000 unlabelled of 23 patterns; 64 px",
    labelled=lambda _: textures(),
    unlabelled=lambda _: texture_source("unlabelled"),
)

ENTRIES = (
    TEXTURES,
    Entry(
        "stl10",
        "STL-10",
        10,
        "5,000 train, 8,000 test, 100,000 unlabelled; 96 px",
        arrays.stl10,
        arrays.stl10_unlabelled,
        ("stl10_binary", "."),
        "train_X.bin",
        "https://cs.stanford.edu/~acoates/stl10/",
        "STL10",
    ),
    Entry(
        "dtd",
        "Describable Textures Dataset, split 1",
        47,
        "1,880 train, 1,880 val, 1,880 test; photographs",
        dtd,
        None,
        ("dtd/dtd", "dtd", "."),
        "labels/*1.txt",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "DTD",
    ),
    Entry(
        "fashionmnist",
        "Fashion-MNIST",
        10,
        "60,000 train, 10,000 test; 28 px, gray",
        arrays.fashion_mnist,
        None,
        ("FashionMNIST/raw", "fashion-mnist", "."),
        "train-images-idx3-ubyte*",
        "https://github.com/zalandoresearch/fashion-mnist",
        "FashionMNIST",
    ),
    Entry(
        "cifar10",
        "CIFAR-10",
        10,
        "50,000 train, 10,000 test; 32 px",
        arrays.cifar10,
        None,
        ("cifar-10-batches-py", "."),
        "data_batch_1",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "CIFAR10",
    ),
    Entry(
        "cifar100",
        "CIFAR-100, fine labels",
        100,
        "50,000 train, 10,000 test; 32 px",
        arrays.cifar100,
        None,
        ("cifar-100-python", "."),
        "meta",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "CIFAR100",
    ),
)


def load_downstream(
    spec: str, root: Path | None, size: int, cache_dir: Path | None = None, progress: bool = True
) -> Splits:
    """Load the labelled splits of a set, from the cache if they were decoded before.

    Args:
        spec: A name of the catalogue, or `folder:PATH`.
        root: Data root; not needed by `textures` and `folder:PATH`.
        size: Side in pixels; array sets of smaller native size keep theirs.
        cache_dir: Cache folder; `BISSL_FAST_CACHE` or `~/.cache/bissl-fast` if `None`.
        progress: Show a progress bar while decoding.

    Returns:
        Train, validation and test images, with notes on whatever a user should know about them.

    Raises:
        UserError: The set is unknown, missing, incomplete or unreadable, or the cache cannot be written.

    Example:
        >>> splits = load_downstream("textures", None, size=64)  # doctest: +SKIP
        >>> splits.train.images.shape  # doctest: +SKIP
        (480, 64, 64, 3)
    """
    listing = list_labelled(spec, root)
    parts = [cache.load(part, size, cache_dir, progress) for part in (listing.train, listing.val, listing.test)]
    train, val, test = parts
    return Splits(train, val, test, listing.notes + tuple(note for part in parts for note in skipped_notes(part)))


def load_pretext(
    spec: str, root: Path | None, size: int, cache_dir: Path | None = None, progress: bool = True
) -> ImageSet:
    """Load the unlabelled images of a set: its unlabelled split, or its training split without the labels.

    Of `folder:PATH` it takes every image below the folder. Arguments and errors are those of `load_downstream`;
    `skipped_notes` tells of images that could not be read.
    """
    return cache.load(list_unlabelled(spec, root), size, cache_dir, progress)


def list_labelled(spec: str, root: Path | None) -> Listing:
    """The labelled splits of a set, listed and not decoded."""
    if spec.startswith(FOLDER_PREFIX):
        return image_folder(folder_of(spec))
    entry = entry_of(spec)
    return entry.labelled(locate(entry, root))


def list_unlabelled(spec: str, root: Path | None) -> Source:
    """The unlabelled images of a set, listed and not decoded."""
    if spec.startswith(FOLDER_PREFIX):
        return loose_images(folder_of(spec))
    entry = entry_of(spec)
    folder = locate(entry, root)
    return entry.unlabelled(folder) if entry.unlabelled else entry.labelled(folder).train.unlabelled()


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
    close = difflib.get_close_matches(name.lower().replace("-", "").replace("_", ""), entries, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
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
    where = "DIR" if root is None else root
    reason = "no --data-root was given" if root is None else f"{root} does not hold it"
    raise UserError(
        f"{entry.title} was not found: {reason}. Expected is {where}/{entry.folders[0]}: download it with `bissl-fast "
        f"data prepare {entry.name} --data-root {where}`, or use the embedded set with `--dataset textures`."
    )


def skipped_notes(images: ImageSet) -> tuple[str, ...]:
    """A sentence on the images that could not be read, if any."""
    if not images.skipped:
        return ()
    total = len(images) + len(images.skipped)
    return (
        f"{len(images.skipped)} of {total} images of {images.name} could not be read and are left out: "
        f"{listed(images.skipped)}.",
    )
