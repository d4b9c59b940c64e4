"""`ViewLoader` and `sequential_batches`: prefetching changes the time of a batch and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bissl_fast.data.pipelines.loader import Batch, ViewLoader, sequential_batches
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.parameters import draw_views
from bissl_fast.data.views.presets import eval_view, vicreg_views
from bissl_fast.errors import UserError
from tests.data.pipelines.unclosed import assert_exits

VIEWS = vicreg_views(24)


@pytest.fixture
def image_set(tmp_path: Path) -> ImageSet:
    """37 images of 28 x 28 in a read-only memory map, three classes."""
    random = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", random.integers(0, 256, (37, 28, 28, 3), dtype=np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    return ImageSet("noise", images, np.arange(37) % 3, ("a", "b", "c"), "0")


@pytest.fixture
def loader(image_set: ImageSet) -> Iterator[ViewLoader]:
    with ViewLoader(image_set, VIEWS, BatchOrder(37, 8, seed=2), seed=1, device="cpu") as loader:
        yield loader


def direct(image_set: ImageSet, draw: int) -> Batch:
    epoch, samples = BatchOrder(37, 8, seed=2).indices(draw)
    pixels = torch.from_numpy(image_set.images[samples])
    views = tuple(
        render(pixels, draw_views(settings, 1, epoch, samples, view, (28, 28)), settings)
        for view, settings in enumerate(VIEWS)
    )
    return Batch(views, torch.from_numpy(samples % 3), samples, epoch)


@pytest.mark.parametrize(
    "draws",
    [range(10), (5, 3, 3, 4, 9, 0), (1_000_000, 0)],
    ids=["in order", "back and forth", "far ahead"],
)
def test_batches_equal_the_direct_computation(loader: ViewLoader, image_set: ImageSet, draws: range) -> None:
    for draw in draws:
        found, expected = loader.load(draw), direct(image_set, draw)
        assert found.epoch == expected.epoch
        assert found.samples.tolist() == expected.samples.tolist()
        assert torch.equal(found.labels, expected.labels)  # type: ignore[arg-type]
        for view, expected_view in zip(found.views, expected.views, strict=True):
            assert torch.equal(view, expected_view)


def test_an_unlabelled_set_has_no_labels(image_set: ImageSet) -> None:
    unlabelled = ImageSet("noise", image_set.images, None, (), "0")
    with ViewLoader(unlabelled, VIEWS, BatchOrder(37, 8, seed=2), seed=1, device="cpu") as loader:
        assert loader.load(0).labels is None


def test_a_failure_in_the_thread_surfaces_in_the_call_that_needs_the_batch(
    loader: ViewLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    indices = BatchOrder.indices

    def fails_at_two(order: BatchOrder, draw: int) -> tuple[int, np.ndarray]:
        if draw == 2:
            raise OSError("disk gone")
        return indices(order, draw)

    monkeypatch.setattr(BatchOrder, "indices", fails_at_two)
    loader.load(1)
    with pytest.raises(OSError, match="disk gone"):
        loader.load(2)
    assert len(loader.load(3).samples) == 8


def test_a_closed_loader_refuses_and_closing_twice_is_fine(loader: ViewLoader) -> None:
    loader.load(0)
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError):
        loader.load(5)


@pytest.mark.parametrize("ending", ["", "raise KeyboardInterrupt"], ids=["end of the script", "Ctrl-C"])
def test_an_interpreter_that_never_closes_its_loader_still_exits(ending: str) -> None:
    assert_exits(ViewLoader, ending)


def test_an_order_for_another_set_is_refused(image_set: ImageSet) -> None:
    with pytest.raises(UserError, match=r"for 40 samples, but noise holds 37 images"):
        ViewLoader(image_set, VIEWS, BatchOrder(40, 8, seed=0), 0, "cpu")


def test_sequential_batches_hold_every_image_once_in_order(image_set: ImageSet) -> None:
    batches = list(sequential_batches(image_set, eval_view(28), 10, "cpu"))
    assert [len(batch.samples) for batch in batches] == [10, 10, 10, 7]
    assert np.concatenate([batch.samples for batch in batches]).tolist() == list(range(37))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [i % 3 for i in range(37)]  # type: ignore[misc]
    view = torch.cat([batch.views[0] for batch in batches])
    pixels = torch.from_numpy(np.array(image_set.images)).permute(0, 3, 1, 2) / 255
    settings = eval_view(28)
    mean, std = (torch.tensor(channel)[:, None, None] for channel in (settings.mean, settings.std))
    torch.testing.assert_close(view, (pixels - mean) / std, rtol=0, atol=1e-5)
