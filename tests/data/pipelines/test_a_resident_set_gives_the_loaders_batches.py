"""Sets that stay where a device reads them: the same batches, and sentences about what cannot be."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bissl_fast.data.pipelines import resident
from bissl_fast.data.pipelines.loader import ViewLoader, sequential_batches
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.pipelines.resident import ResidentSet, fits, hold
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.presets import eval_view, vicreg_views
from bissl_fast.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def image_set(tmp_path: Path) -> ImageSet:
    """37 images of 28 x 28 in a read-only memory map, three classes."""
    random = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", random.integers(0, 256, (37, 28, 28, 3), dtype=np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    return ImageSet("noise", images, np.arange(37) % 3, ("a", "b", "c"), "0")


def test_a_loader_gives_the_same_batches_of_a_resident_set(image_set: ImageSet) -> None:
    order, views = BatchOrder(37, 8, seed=2), vicreg_views(24)
    with (
        ViewLoader(image_set, views, order, 1, "cpu") as plain,
        ViewLoader(hold(image_set, CPU), views, order, 1, "cpu") as held,
    ):
        for draw in (0, 1, 7, 3):
            found, expected = held.load(draw), plain.load(draw)
            assert found.samples.tolist() == expected.samples.tolist()
            assert torch.equal(found.target, expected.target)
            assert all(torch.equal(a, b) for a, b in zip(found.views, expected.views, strict=True))


def test_evaluation_goes_through_a_resident_set_in_its_order(image_set: ImageSet) -> None:
    found = list(sequential_batches(hold(image_set, CPU), eval_view(28), 10, "cpu"))
    for batch, expected in zip(found, sequential_batches(image_set, eval_view(28), 10, "cpu"), strict=True):
        assert torch.equal(batch.views[0], expected.views[0])
        assert torch.equal(batch.target, expected.target)


def test_an_unlabelled_resident_set_has_no_labels(image_set: ImageSet) -> None:
    unlabelled = ImageSet("noise", image_set.images, None, (), "0")
    assert hold(unlabelled, CPU).labels_of(np.arange(3)) is None


def test_a_set_on_one_device_makes_no_views_on_another(image_set: ImageSet) -> None:
    elsewhere = dataclasses.replace(hold(image_set, CPU), device=CUDA)
    with pytest.raises(UserError, match="noise is resident on cuda:0, but its views are wanted on cpu"):
        ViewLoader(elsewhere, vicreg_views(24), BatchOrder(37, 8, seed=0), 0, "cpu")


def test_a_set_takes_at_most_its_share_of_the_free_memory() -> None:
    assert fits(40, 80, 0.5)
    assert not fits(41, 80, 0.5)
    assert not fits(1, 80, 0.0)


def test_host_memory_that_cannot_be_pinned_is_answered_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(resident.torch, "empty", refuses)
    with pytest.raises(UserError, match=r"\(CUDA error: out of memory\): pass --images.pipeline torch"):
        resident._pinned(torch.zeros(1, dtype=torch.uint8), "noise: 9 GB of pixels")


def test_a_resident_set_is_as_long_as_its_images(image_set: ImageSet) -> None:
    held = hold(image_set, CPU)
    assert isinstance(held, ResidentSet)
    assert len(held) == 37
    assert held.pixels.data_ptr() == image_set.images.ctypes.data
