"""From an image set to batches of rendered views, one batch ahead of the training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch

from bissl_fast.data.pipelines.order import BatchOrder, ChunkOrder
from bissl_fast.data.pipelines.prefetch import Prefetcher
from bissl_fast.data.pipelines.rendering import as_tensor, render
from bissl_fast.data.pipelines.resident import ResidentSet
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.parameters import ViewParameters, ViewSettings, draw_views
from bissl_fast.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Rendered views of B samples, on the device.

    Args:
        views: One (B, C, S, S) float32 channels_last tensor per view.
        labels: (B,) int64; of a multi-label set (B, classes) int8, as in `ImageSet`; None for an unlabelled set.
        samples: (B,) int64 indices into the set, on the host.
        epoch: Which shuffling of the set they come from.
    """

    views: tuple[torch.Tensor, ...]
    labels: torch.Tensor | None
    samples: npt.NDArray[np.int64]
    epoch: int

    @property
    def target(self) -> torch.Tensor:
        """The labels of a set that is known to have them."""
        assert self.labels is not None, "an unlabelled set has no target"
        return self.labels


class Loader(ABC):
    """Any batch of a set by its number: what training asks of `ViewLoader` and `DaliLoader`.

    Args:
        name: Of the set.
        size: Images that it holds.
        order: Which samples each draw holds, of this rank.

    Raises:
        UserError: if the order is for a set of another size.
    """

    def __init__(self, name: str, size: int, order: BatchOrder | ChunkOrder) -> None:
        if order.n_samples != size:
            raise UserError(
                f"The batch order is for {order.n_samples} samples, but {name} holds {size} images: "
                "build it with n_samples=len(images)."
            )
        self._order = order

    @property
    def batch_size(self) -> int:
        """Images per batch, of this rank, or per chunk; an incomplete last one has fewer."""
        return self._order.count

    @abstractmethod
    def load(self, draw: int) -> Batch:
        """The batch of a draw: the same bits whenever and in whatever order it is asked for.

        Args:
            draw: 0 or more; any draw at any time, but the one after the last call's is ready soonest.

        Raises:
            Exception: whatever went wrong while the batch was made, in the call that asks for it.
        """

    def shared(self, draw: int) -> bool:
        """Whether ranks have parts of a draw's batch; else each has all of it."""
        return self._order.shared(draw)

    @abstractmethod
    def close(self) -> None:
        """Stops the loader's threads; the batch in progress is finished and thrown away."""

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Staged:
    """What rendering needs: (M, H, W, C) uint8 images, which rows of them, and one table per view."""

    images: torch.Tensor  # the whole set, which is read in place, or for CUDA the batch in pinned memory
    rows: npt.NDArray[np.int64]
    tables: tuple[ViewParameters, ...]
    labels: torch.Tensor | None  # on the host; None for a resident set, which has its own
    samples: npt.NDArray[np.int64]
    epoch: int


class ViewLoader(Loader):
    """Any batch by its number; the next one is made meanwhile by a background thread.

    On CUDA the thread only draws the tables and, unless the set is resident, gathers into pinned memory; copies and
    rendering run on the caller's current stream.

    Args:
        images: The set to draw from, or where it is resident.
        views: Settings of each view.
        order: Which samples each draw holds.
        seed: Of the view parameters.
        device: Where the batches are wanted.

    Raises:
        UserError: if the order is for a set of another size, or the set is resident on another device.

    Example:
        >>> order = BatchOrder(len(images), 256, seed=0)  # doctest: +SKIP
        >>> with ViewLoader(images, vicreg_views(96), order, 0, device) as loader:  # doctest: +SKIP
        ...     first, second = loader.load(0).views
    """

    def __init__(
        self,
        images: ImageSet | ResidentSet,
        views: tuple[ViewSettings, ...],
        order: BatchOrder | ChunkOrder,
        seed: int,
        device: torch.device | str,
    ) -> None:
        super().__init__(_set(images).name, len(images), order)
        self._images = images
        self._views = views
        self._seed = seed
        self._device = _device(images, device)
        self._ahead = Prefetcher(self._make, "bissl-fast-views")

    def load(self, draw: int) -> Batch:
        made = self._ahead.get(draw)
        return made if isinstance(made, Batch) else _rendered(made, self._images, self._views, self._device)

    def close(self) -> None:
        self._ahead.close()

    def _make(self, draw: int) -> Batch | _Staged:
        epoch, samples = self._order.indices(draw)
        staged = _stage(self._images, samples, self._views, self._seed, epoch, self._device)
        return staged if self._device.type == "cuda" else _rendered(staged, self._images, self._views, self._device)


class ChunkLoader:
    """Batches in chunks, for steps that pass them twice: no more than two chunks of views are held.

    Each chunk is rendered for each pass, which costs little beside a network's, and gives the same bits.

    Args:
        loader: of chunks.
        order: that it follows.
    """

    def __init__(self, loader: Loader, order: ChunkOrder) -> None:
        self._loader, self._order = loader, order

    def passes(self, batch: int) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """The chunks of a batch, for the first pass and for the second."""
        first, again = self._order.passes(batch)
        return map(self._loader.load, first), map(self._loader.load, again)

    def __enter__(self) -> ChunkLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loader.close()


def sequential_batches(
    images: ImageSet | ResidentSet,
    view: ViewSettings,
    batch_size: int,
    device: torch.device | str,
    samples: range | None = None,
) -> Iterator[Batch]:
    """Every image once, in the order of the set, for evaluation; the last batch may be smaller.

    Args:
        images: The set, or where it is resident.
        view: Usually `eval_view`; a random one is drawn with seed 0, epoch 0.
        batch_size: Images per batch.
        device: Where the batches are wanted.
        samples: Which images; all of them if left out.

    Yields:
        Batches with one view.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, found {batch_size}.")
    device = _device(images, device)
    wanted = np.arange(len(images)) if samples is None else np.asarray(samples)
    for start in range(0, len(wanted), batch_size):
        staged = _stage(images, wanted[start : start + batch_size], (view,), seed=0, epoch=0, device=device)
        yield _rendered(staged, images, (view,), device)


def draw_for(
    images: ImageSet, samples: npt.NDArray[np.int64], views: Sequence[ViewSettings], seed: int, epoch: int
) -> tuple[ViewParameters, ...]:
    """One table per view, in pixels of the set's squares, drawn for the images' own sizes where these are known."""
    if images.sizes is None:
        size = (images.size, images.size)
        return tuple(draw_views(settings, seed, epoch, samples, view, size) for view, settings in enumerate(views))
    sizes = images.sizes[samples]
    drawn = (draw_views(settings, seed, epoch, samples, view, sizes) for view, settings in enumerate(views))
    return tuple(table.stretched(sizes, images.size) for table in drawn)


def _set(images: ImageSet | ResidentSet) -> ImageSet:
    return images.images if isinstance(images, ResidentSet) else images


def _device(images: ImageSet | ResidentSet, device: torch.device | str) -> torch.device:
    """The device with its index, which a resident set has settled."""
    device = torch.device(device)
    if not isinstance(images, ResidentSet):
        return device
    if device.type != images.device.type or device.index not in (None, images.device.index):
        raise UserError(f"{images.images.name} is resident on {images.device}, but its views are wanted on {device}.")
    return images.device


def _stage(
    images: ImageSet | ResidentSet,
    samples: npt.NDArray[np.int64],
    views: tuple[ViewSettings, ...],
    seed: int,
    epoch: int,
    device: torch.device,
) -> _Staged:
    tables = draw_for(_set(images), samples, views, seed, epoch)
    if isinstance(images, ResidentSet):
        return _Staged(images.pixels, samples, tables, None, samples, epoch)
    labels = None if images.labels is None else torch.from_numpy(images.labels[samples])
    if device.type != "cuda":
        return _Staged(as_tensor(images.images), samples, tables, labels, samples, epoch)
    pixels = torch.empty((len(samples), *images.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
    np.take(images.images, samples, axis=0, out=pixels.numpy(), mode="clip")  # "raise" would copy twice
    labels = None if labels is None else labels.pin_memory()
    return _Staged(pixels, np.arange(len(samples)), tables, labels, samples, epoch)


def _rendered(
    staged: _Staged, images: ImageSet | ResidentSet, views: tuple[ViewSettings, ...], device: torch.device
) -> Batch:
    if isinstance(images, ResidentSet):
        pixels, labels = staged.images, images.labels_of(staged.samples)
    else:
        pixels = staged.images.to(device, non_blocking=True)
        labels = None if staged.labels is None else staged.labels.to(device, non_blocking=True)
    rendered = tuple(
        render(pixels, table, settings, staged.rows, device=device if isinstance(images, ResidentSet) else None)
        for table, settings in zip(staged.tables, views, strict=True)
    )
    return Batch(rendered, labels, staged.samples, staged.epoch)
