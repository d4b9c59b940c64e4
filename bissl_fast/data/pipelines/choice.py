"""Which pipeline renders the views of a run: the one place where it is chosen, and every loader opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch

from bissl_fast.data.pipelines import dali_pipeline
from bissl_fast.data.pipelines.dali_loader import DaliLoader
from bissl_fast.data.pipelines.loader import Batch, Loader, ViewLoader, sequential_batches
from bissl_fast.data.pipelines.order import BatchOrder, ChunkOrder
from bissl_fast.data.pipelines.resident import SHARE_OF_FREE_MEMORY, ResidentSet, hold
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.errors import UserError

PipelineName = Literal["auto", "torch", "resident", "dali"]


def choose(name: PipelineName, device: torch.device) -> PipelineName:
    """The pipeline that a name stands for on a device: `auto` is `resident` on CUDA and `torch` elsewhere.

    Raises:
        UserError: `resident` was asked for on a device that is not CUDA, or `dali` where DALI does not run.
    """
    if name == "resident" and device.type != "cuda":
        raise UserError(
            f"--images.pipeline resident keeps images in the memory of a GPU, but the device is {device}: "
            "pass --device cuda, or --images.pipeline auto."
        )
    if name == "dali":
        dali_pipeline.check_usable(device)
    if name == "auto":
        return "resident" if device.type == "cuda" else "torch"
    return name


class Pipeline:
    """Opens the loaders of a run.

    Training batches come from the pipeline that was asked for. Evaluation batches are rendered by the definition's
    own kernels under `dali` too, so that all runs are measured on the same pixels.

    Args:
        name: `auto`, `torch`, `resident` or `dali`.
        device: Where the batches are wanted.
        share: Of the free GPU memory that a resident set may take.
        threads: Of DALI on the host; all cores that this process may use if left out.
        tell: Takes a sentence about where a set came to lie.

    Raises:
        UserError: as `choose`.

    Example:
        >>> pipeline = Pipeline("auto", torch.device("cpu"))
        >>> order = BatchOrder(len(images), 256, seed=0)  # doctest: +SKIP
        >>> with pipeline.loader(images, vicreg_views(96), order, seed=0) as loader:  # doctest: +SKIP
        ...     first, second = loader.load(0).views
    """

    def __init__(
        self,
        name: PipelineName,
        device: torch.device,
        share: float = SHARE_OF_FREE_MEMORY,
        threads: int | None = None,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.name = choose(name, device)
        self._may_fall_back = name == "auto"
        self._device, self._share, self._threads, self._tell = device, share, threads, tell
        self._placed: dict[str, ImageSet | ResidentSet] = {}  # by content

    @property
    def key(self) -> dict[str, str]:
        """What the pipeline adds to the settings that a stage is keyed by.

        `torch` and `resident` are one renderer in two places, apart by rounding as the CPU and a GPU are, which no key
        tells apart either. DALI's filters are other ones: its results are kept apart, and a stage that was begun with
        one renderer is never finished with the other.
        """
        return {"pipeline": "dali"} if self.name == "dali" else {}

    def loader(
        self, images: ImageSet, views: tuple[ViewSettings, ...], order: BatchOrder | ChunkOrder, seed: int
    ) -> Loader:
        """Batches to train on; arguments and errors are those of `ViewLoader`."""
        if self.name == "dali":
            return DaliLoader(images, views, order, seed, self._device, self._threads)
        return ViewLoader(self._place(images), views, order, seed, self._device)

    def in_order(
        self, images: ImageSet, view: ViewSettings, batch_size: int, samples: range | None = None
    ) -> Iterator[Batch]:
        """Every image once, or a range of them, in the order of the set, as `sequential_batches`."""
        return sequential_batches(self._place(images), view, batch_size, self._device, samples)

    def _place(self, images: ImageSet) -> ImageSet | ResidentSet:
        """The set, from its first use on where the `resident` pipeline reads it."""
        if self.name != "resident":
            return images
        key = images.content_hash
        if key not in self._placed:
            try:
                held = hold(images, self._device, self._share)
            except UserError as error:
                if not self._may_fall_back:
                    raise
                self._tell(f"{error} Its batches are gathered on the host.")
                self._placed[key] = images
            else:
                self._tell(held.place)
                self._placed[key] = held
        return self._placed[key]
