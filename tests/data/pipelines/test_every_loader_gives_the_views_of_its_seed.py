"""One seed gives the same batches with any loader, from any draw on, on any rank, with any number of threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from bissl_fast.data.pipelines.dali_loader import DaliLoader
from bissl_fast.data.pipelines.loader import Batch, ChunkLoader, Loader, ViewLoader
from bissl_fast.data.pipelines.order import BatchOrder, ChunkOrder
from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.pipelines.resident import hold
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.parameters import ViewSettings, draw_views
from bissl_fast.data.views.presets import multi_crop_views, vicreg_views
from bissl_fast.errors import UserError
from tests.data.pictures import in_levels, photos, with_each_pipeline

VIEWS = vicreg_views(24)
IMAGES = ImageSet("mine", photos(37, 28, 28).numpy(), np.arange(37) % 3, ("a", "b", "c"), "0")
ORDER = BatchOrder(37, 8, seed=2)

Open = Callable[[ImageSet, tuple[ViewSettings, ...], Any, int, str], Loader]
LOADERS: dict[str, Open] = {
    "torch": ViewLoader,
    "resident": lambda images, *rest: ViewLoader(hold(images, torch.device("cpu")), *rest),
    "dali": DaliLoader,
}
with_each_loader = with_each_pipeline(*LOADERS)


def start(pipeline: str, views: tuple[ViewSettings, ...] = VIEWS, order: BatchOrder | ChunkOrder = ORDER) -> Loader:
    return LOADERS[pipeline](IMAGES, views, order, 1, "cpu")


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_equal(a: Batch, b: Batch) -> None:
    assert a.epoch == b.epoch
    assert a.samples.tolist() == b.samples.tolist()
    assert torch.equal(a.target, b.target)
    assert len(a.views) == len(b.views)
    assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


@with_each_loader
def test_a_loader_that_starts_anywhere_goes_on_with_the_same_bits(pipeline: str) -> None:
    with start(pipeline) as loader:
        unbroken = [loader.load(draw) for draw in range(12)]  # three epochs
    assert [batch.epoch for batch in unbroken] == [draw // 4 for draw in range(12)]
    for first in (1, 7, 11):
        with start(pipeline) as loader:
            for draw in range(first, 12):
                assert_equal(loader.load(draw), unbroken[draw])


@with_each_loader
def test_the_number_of_threads_changes_no_bit(pipeline: str) -> None:
    batches = []
    for count in (1, 3):
        with threads(count):
            loader = DaliLoader(IMAGES, VIEWS, ORDER, 1, "cpu", count) if pipeline == "dali" else start(pipeline)
            with loader:
                batches.append(loader.load(5))
    assert_equal(*batches)


@with_each_loader
def test_the_targets_of_a_multi_label_set_are_its_rows(pipeline: str) -> None:
    targets = np.random.default_rng(0).integers(-1, 2, (37, 5)).astype(np.int8)
    images = ImageSet("mine", IMAGES.images, targets, tuple("abcde"), "0")
    with LOADERS[pipeline](images, VIEWS, ORDER, 1, "cpu") as loader:
        batch = loader.load(6)
    assert batch.target.dtype == torch.int8
    assert np.array_equal(batch.target, targets[batch.samples])


@with_each_loader
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ranks_together_have_the_batch_of_one_process(pipeline: str, ranks: int) -> None:
    for draw in (0, 6):
        with start(pipeline) as loader:
            whole = loader.load(draw)
        parts = []
        for rank in range(ranks):
            with start(pipeline, order=BatchOrder(37, 8, seed=2, rank=rank, ranks=ranks)) as loader:
                assert loader.batch_size == 8 // ranks
                parts.append(loader.load(draw))
        joined = tuple(torch.cat(view) for view in zip(*(part.views for part in parts), strict=True))
        samples, target = np.concatenate([part.samples for part in parts]), torch.cat([part.target for part in parts])
        assert_equal(Batch(joined, target, samples, parts[0].epoch), whole)


@with_each_loader
def test_chunks_have_the_bits_of_their_batch_in_both_passes(pipeline: str) -> None:
    order = ChunkOrder(ORDER, 3)
    with start(pipeline) as loader, ChunkLoader(start(pipeline, order=order), order) as chunks:
        for draw in (0, 1, 5):
            batch = loader.load(draw)
            for parts in map(list, chunks.passes(draw)):
                assert [len(part.samples) for part in parts] == [3, 3, 2]
                assert np.concatenate([part.samples for part in parts]).tolist() == batch.samples.tolist()
                for k, view in enumerate(batch.views):
                    assert torch.equal(torch.cat([part.views[k] for part in parts]), view)


def test_chunks_that_no_batch_has_are_refused() -> None:
    for size in (0, 9):
        with pytest.raises(UserError, match=f"A batch of 8 images cannot be cut into chunks of {size}"):
            ChunkOrder(ORDER, size)


@with_each_loader
def test_views_may_differ_in_number_and_size(pipeline: str) -> None:
    views = multi_crop_views(32, local_size=16, local_views=3)
    with start(pipeline, views) as loader:
        batch = loader.load(0)
    assert [view.shape[-1] for view in batch.views] == [32, 32, 16, 16, 16]
    pixels = torch.from_numpy(IMAGES.images[batch.samples])
    for number, (view, settings) in enumerate(zip(batch.views, views, strict=True)):
        expected = render(pixels, draw_views(settings, 1, 0, batch.samples, number, (28, 28)), settings)
        assert in_levels(view - expected, settings).max() <= 2
    assert not torch.equal(batch.views[2], batch.views[3])  # alike in settings, and drawn apart


def test_an_image_set_of_tensors_is_told_from_one_of_arrays() -> None:
    with pytest.raises(ValueError, match="mine: images must be a NumPy array, found Tensor"):
        ImageSet("mine", photos(2, 8, 8), None, (), "0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mine: labels must be a NumPy array, found list"):
        ImageSet("mine", photos(2, 8, 8).numpy(), [0, 1], ("a", "b"), "0")  # type: ignore[arg-type]


@with_each_loader
def test_the_last_batch_may_be_smaller(pipeline: str) -> None:
    with start(pipeline, order=BatchOrder(37, 8, seed=2, keep_last=True)) as loader:
        batches = [loader.load(draw) for draw in range(6)]
    assert [len(batch.views[0]) for batch in batches] == [8, 8, 8, 8, 5, 8]
    assert [batch.epoch for batch in batches] == [0, 0, 0, 0, 0, 1]
    with start(pipeline) as loader:
        assert_equal(batches[3], loader.load(3))
    assert sorted(np.concatenate([batch.samples for batch in batches[:5]])) == list(range(37))
