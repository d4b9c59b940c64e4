"""The data side of a run: its sets, and batches of them."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console

from bissl_fast.data.pipelines.choice import Pipeline
from bissl_fast.data.pipelines.loader import Batch, ChunkLoader, Loader
from bissl_fast.data.pipelines.order import BatchOrder, ChunkOrder
from bissl_fast.data.sets.catalogue import (
    FOLDER_PREFIX,
    entry_of,
    list_labelled,
    load_downstream,
    load_pretext,
    notes_of,
)
from bissl_fast.data.sets.dataset import ImageSet, Splits, count_by_class, disjoint, is_multilabel
from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.errors import UserError
from bissl_fast.methods.settings import RunSettings
from bissl_fast.ops.collectives import Ranks, own_rows
from bissl_fast.training.console import say
from bissl_fast.training.ranks.agreement import lead_first
from bissl_fast.training.ranks.sameness import SameShapes
from bissl_fast.training.seeds import derive_seed

EVALUATION_BATCH = 256


class RunData:
    """The unlabelled set and the labelled splits of a run, and what they are read by.

    Args:
        config: the run's settings.
        device: where batches are wanted.
        console: terminal.
        tested: whether there is a downstream task, with whose test images the unlabelled ones are compared.
        ranks: processes that share every batch, and of which the first reads a set before the others do.

    Attributes:
        pipeline: where views are rendered.

    Raises:
        UserError: for a pipeline that does not run here, and sets that are not there or cannot be trained on.
    """

    def __init__(
        self,
        config: RunSettings,
        device: torch.device,
        console: Console,
        tested: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        self.config, self.console, self.tested, self.ranks = config, console, tested, ranks
        images = config.images
        self.pipeline = Pipeline(
            images.pipeline, device, images.resident_share, config.threads or None, lambda line: say(console, line)
        )
        self._tell_channels()

    @cached_property
    def unlabelled(self) -> ImageSet:
        """Images of the pretext task, read when they are first asked for."""
        with lead_first(self.ranks):
            images = self._load_unlabelled()
        self._tell(notes_of(images), images)
        return images

    @cached_property
    def splits(self) -> Splits:
        """The downstream set, likewise."""
        config, images = self.config, self.config.images
        with lead_first(self.ranks):
            splits = load_downstream(
                config.dataset,
                config.data_root,
                images.downstream_cache_size or images.cache_size,
                config.cache_dir,
                whole=images.whole,
                labels=config.labels,
                channels=images.channels,
            )
        self._tell(splits.notes, splits.train, splits.val, splits.test)
        for scored in (splits.val, splits.test):
            self._tell_absent_classes(scored)
        return splits

    def load_both(self) -> None:
        """Read both, so that what is wrong with either is told before work begins."""
        _ = self.unlabelled, self.splits

    def loader(
        self,
        images: ImageSet,
        views: tuple[ViewSettings, ...],
        batch_size: int,
        purpose: str,
        phase_length: int = 1,
        keep_last: bool = False,
        chunk: int | None = None,
        alone: bool = False,
    ) -> Loader:
        """Shuffled batches for one purpose of the run, which has a seed of its own.

        Args:
            images: the set.
            views: of each image.
            batch_size: B, of all ranks together.
            purpose: what they are for.
            phase_length: draws between two alternations of levels.
            keep_last: whether an epoch ends with the incomplete batch.
            chunk: images whose batch-norm statistics are taken together, of all ranks; left out: a batch's.
            alone: this process has whole batches, whatever ranks there are.
        """
        seed, (rank, ranks) = derive_seed(self.config.seed, purpose), (0, 1) if alone else self._place
        order = BatchOrder(len(images), batch_size, seed, phase_length, rank, ranks, keep_last, chunk)
        return self._compared(self.pipeline.loader(images, views, order, seed), purpose, alone)

    def chunk_loader(
        self, images: ImageSet, views: tuple[ViewSettings, ...], batch_size: int, chunk: int, purpose: str
    ) -> ChunkLoader:
        """The batches of :meth:`loader` in chunks."""
        seed, (rank, ranks) = derive_seed(self.config.seed, purpose), self._place
        order = ChunkOrder(BatchOrder(len(images), batch_size, seed, rank=rank, ranks=ranks), chunk)
        return ChunkLoader(self._compared(self.pipeline.loader(images, views, order, seed), purpose), order)

    def evaluation_batches(self, images: ImageSet, ranks: Ranks | None = None) -> Iterator[Batch]:
        """Every image of a split once, or those of this rank, which follow the ones of the rank before."""
        samples = None if ranks is None else range(len(images))[own_rows(len(images), ranks)]
        return self.pipeline.in_order(images, self.config.images.evaluation_view, EVALUATION_BATCH, samples)

    def statistics_batches(self) -> Iterator[Batch]:
        """Training images in the evaluation view, to re-estimate batch-norm statistics with (Appendix C.1)."""
        train = self.splits.train
        size = min(EVALUATION_BATCH, len(train))
        with self.loader(train, (self.config.images.evaluation_view,), size, "statistics", alone=True) as loader:
            for draw in range(self.config.statistics.batches):
                yield loader.load(draw)

    def _compared(self, loader: Loader, purpose: str, alone: bool = False) -> Loader:
        """A loader, or with ``--distributed.check-every`` one whose batches' shapes are compared over the ranks."""
        if self.ranks is None or alone or not self.config.distributed.check_every:
            return loader
        return SameShapes(loader, self.ranks, purpose)

    @property
    def _place(self) -> tuple[int, int]:
        """Which rank this is, of how many."""
        return (0, 1) if self.ranks is None else (self.ranks.rank, self.ranks.size)

    def _load_unlabelled(self) -> ImageSet:
        config = self.config
        spec, root, channels = config.pretext_dataset, config.data_root, config.images.channels
        if spec is None and not config.dataset.startswith(FOLDER_PREFIX) and entry_of(config.dataset).unlabelled:
            spec = config.dataset
        if spec is None:
            # What is wrong with the data set is told before what lacks.
            listed = list_labelled(config.dataset, root, config.labels, channels)
            own = not config.dataset.startswith(FOLDER_PREFIX) and disjoint(listed.train.labels, listed.test.labels)
            spec = config.dataset if own else self._published_pretext(root, channels)
        return load_pretext(
            spec,
            root,
            config.images.cache_size,
            config.cache_dir,
            downstream=config.dataset if self.tested else None,
            exclude_test=config.exclude_test,
            labels=config.labels,
            channels=channels,
        )

    def _published_pretext(self, root: Path | None, channels: int) -> str:
        """The paper's pretext set, if it is there and has such images."""
        if channels not in (1, 3):
            raise UserError(
                f"No published set has images of {channels} channels for the pretext task: pass --pretext-dataset "
                "folder:PATH, labelled or not."
            )
        if root is None or entry_of("stl10").find(root) is None:
            raise UserError(
                f"{self.config.dataset} has no unlabelled images of its own, and STL-10, the paper's pretext set, is "
                "not there; pass --pretext-dataset folder:PATH (any images), or run "
                "`bissl-fast data prepare stl10 --data-root DIR`."
            )
        return "stl10"

    def _tell(self, notes: Sequence[str], *sets: ImageSet) -> None:
        for note in notes:
            say(self.console, note, "yellow")
        for images in sets:
            skipped = f", {len(images.skipped)} unreadable and left out" if images.skipped else ""
            say(self.console, f"{images.name}: {len(images):,} images of {images.size} px{skipped}")

    def _tell_channels(self) -> None:
        """Which colour changes views of other than RGB lack, if there are any."""
        images = self.config.images
        names = ("saturation", "hue", "gray")
        drawn = (images.first, images.second, images.finetune, images.evaluate)
        lacking = [name for name in names if any(getattr(view, name) for view in drawn)]
        if images.channels != 3 and lacking:
            views = f"views of {images.channels} channel{'s' * (images.channels > 1)}"
            say(self.console, f"{views} leave out {', '.join(lacking)}, which need RGB", "yellow")

    def _tell_absent_classes(self, images: ImageSet) -> None:
        """Of a multi-label split that is to be scored: a class that no image shows has no average precision."""
        if images.labels is None or not is_multilabel(images.labels):
            return
        counts = count_by_class(images.labels, len(images.classes))
        absent = [name for name, count in zip(images.classes, counts, strict=True) if not count]
        if len(absent) == len(images.classes):
            raise UserError(
                f"No image of {images.name} shows any of its {len(images.classes)} classes, so nothing can be scored: "
                "put the whole set there."
            )
        if absent:
            say(self.console, f"{images.name}: mAP leaves out what no image shows: {', '.join(absent)}", "yellow")
