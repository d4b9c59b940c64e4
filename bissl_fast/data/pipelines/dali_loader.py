"""From a set of images, decoded or not, to batches of views rendered by DALI, one batch ahead of the training step."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bissl_fast.data.pipelines.dali_pipeline import DaliPipeline, image_sizes
from bissl_fast.data.pipelines.loader import Batch, Loader, draw_for
from bissl_fast.data.pipelines.order import BatchOrder, ChunkOrder
from bissl_fast.data.pipelines.prefetch import Prefetcher
from bissl_fast.data.sets.dataset import ImageSet, Targets
from bissl_fast.data.sets.readers.decode import UnreadableImageError, decode_file, printable
from bissl_fast.data.views.parameters import ViewParameters, ViewSettings, draw_views
from bissl_fast.errors import UserError

_ENDS = (b"\xff\xd9", b"\x00\x00\x00\x00IEND\xaeB\x60\x82")  # the last marker of a JPEG, the last chunk of a PNG


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """Image files of any size, decoded anew for every batch: for sets that are too large for a cache of pixels.

    Args:
        name: Set and split, e.g. `"imagenet/train"`.
        files: N paths.
        sizes: (N, 2) int64 height and width of each.
        labels: (N,) int64 or (N, classes) int8 as in `ImageSet`, or None for an unlabelled set.
        skipped: Files that are left out because they are damaged or of another kind, each with its reason.
    """

    name: str
    files: tuple[Path, ...]
    sizes: npt.NDArray[np.int64]
    labels: Targets | None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @classmethod
    def from_files(cls, name: str, files: Sequence[Path], labels: Targets | None = None) -> EncodedSet:
        """Reads header and end of every file, and leaves out those that DALI cannot read and those that are cut off.

        Of JPEG and PNG the end tells whether they are whole; files of other kinds, and those with something else at
        their end, are decoded.

        Args:
            name: Set and split.
            files: Paths of the images.
            labels: One per path, or None.

        Raises:
            UserError: if a file does not exist, none is left, labels are not as many, or DALI is not installed.
        """
        if labels is not None and len(labels) != len(files):
            raise UserError(f"{name} has {len(files)} files and {len(labels)} labels: give one for each.")
        image_sizes([])  # raises where DALI is missing, which is no fault of the files
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(_size_or_reason, files))
        kept = [i for i, size in enumerate(found) if not isinstance(size, str)]
        skipped = tuple(reason for reason in found if isinstance(reason, str))
        if not kept:
            raise UserError(f"None of the {len(files)} files of {name} is an image that DALI can read: {skipped[0]}")
        return cls(
            name,
            tuple(files[i] for i in kept),
            np.array([found[i] for i in kept], dtype=np.int64),
            None if labels is None else labels[kept],
            skipped,
        )


def _size_or_reason(path: Path) -> npt.NDArray[np.int64] | str:
    """Height and width of an image, or why it cannot be one of a set."""
    try:
        size: npt.NDArray[np.int64] = image_sizes([os.fspath(path)])[0]
    except UserError as error:
        if not path.exists():  # not a damaged image, but a wrong list
            raise
        return str(error)
    reason = "" if _ends_as_it_should(path) else _damage(path)
    return f"{path}: {reason}." if reason else size


def _ends_as_it_should(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, len(_ENDS[1])), os.SEEK_END)
        return file.read().endswith(_ENDS)


def _damage(path: Path) -> str:
    """Why the cache's reader cannot decode a file; empty if it can."""
    try:
        decode_file(path, 1)
    except UnreadableImageError as error:
        return str(error)
    return ""


class DaliLoader(Loader):
    """Any batch by its number, as `ViewLoader` gives it; the next one is made meanwhile by a background thread.

    A batch is a pure function of (seed, draw), so a run resumes from the number of its draw; DALI has no state of its
    own here, and its checkpoints (`enable_checkpointing`) are not needed. The views are `ViewLoader`'s within two
    levels of 255, not to the bit.

    Args:
        images: The set to draw from; files of an `EncodedSet` are read and decoded for each batch.
        views: Settings of each view.
        order: Which samples each draw holds, of this rank.
        seed: Of the view parameters.
        device: Where the batches are wanted.
        threads: Of DALI on the host; all cores that this process may use if left out.

    Raises:
        UserError: if DALI or the device is missing, or the order is for a set of another size.

    Example:
        >>> order = BatchOrder(len(images), 256, seed=0)  # doctest: +SKIP
        >>> with DaliLoader(images, vicreg_views(96), order, 0, device) as loader:  # doctest: +SKIP
        ...     first, second = loader.load(0).views
    """

    def __init__(
        self,
        images: ImageSet | EncodedSet,
        views: tuple[ViewSettings, ...],
        order: BatchOrder | ChunkOrder,
        seed: int,
        device: torch.device | str,
        threads: int | None = None,
    ) -> None:
        super().__init__(images.name, len(images), order)
        self._images = images
        self._seed = seed
        self._pipeline = DaliPipeline(views, self.batch_size, device, isinstance(images, EncodedSet), threads)
        self._device = self._pipeline.device
        cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if cuda else None  # type: ignore[no-untyped-call]
        self._ahead = Prefetcher(self._make, "bissl-fast-dali")

    def load(self, draw: int) -> Batch:
        batch = self._ahead.get(draw)
        if self._stream is not None:  # the thread has waited for the copies; their memory belongs to its stream
            caller = torch.cuda.current_stream(self._device)
            for tensor in (*batch.views, *(() if batch.labels is None else (batch.labels,))):
                tensor.record_stream(caller)
        return batch

    def close(self) -> None:
        self._ahead.close()
        self._pipeline.close()

    def _make(self, draw: int) -> Batch:
        epoch, samples = self._order.indices(draw)
        tables = self._tables(epoch, samples)
        labels = None if self._images.labels is None else torch.from_numpy(self._images.labels[samples])
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            labels = None if labels is None else labels.to(self._device)
            try:
                views = self._pipeline.render(self._read(samples), tables)
            except (UserError, OSError) as error:
                raise self._explained(error, samples) from error
        return Batch(views, labels, samples, epoch)

    def _tables(self, epoch: int, samples: npt.NDArray[np.int64]) -> tuple[ViewParameters, ...]:
        views = self._pipeline.views
        if not isinstance(self._images, EncodedSet):
            return draw_for(self._images, samples, views, self._seed, epoch)
        sizes = self._images.sizes[samples]
        return tuple(draw_views(view, self._seed, epoch, samples, number, sizes) for number, view in enumerate(views))

    def _explained(self, error: Exception, samples: npt.NDArray[np.int64]) -> Exception:
        """The error of a batch as a sentence that names the file, if a file is to blame."""
        if not isinstance(self._images, EncodedSet):
            return error
        files = [self._images.files[i] for i in samples]
        damaged = [(path, reason) for path in files if (reason := _damage(path))]
        if not damaged and (place := re.search(r"sample #(\d+)", str(error))):
            damaged = [(files[int(place[1])], "by DALI")]
        if not damaged:
            return error
        path, reason = damaged[0]
        more = f", nor can {len(damaged) - 1} more of its batch" if len(damaged) > 1 else ""
        return UserError(
            f"{self._images.name}: {printable(path)} cannot be decoded ({reason}){more}: "
            "mend or remove it, and list the files again with EncodedSet.from_files."
        )

    def _read(self, samples: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]:
        """The samples' pixels, without a copy, or their files."""
        if isinstance(self._images, EncodedSet):
            return [np.fromfile(self._images.files[i], dtype=np.uint8) for i in samples]
        return [self._images.images[i] for i in samples]
