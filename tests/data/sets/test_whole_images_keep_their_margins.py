"""Whole downstream images: stored as squares, and cropped as the images were before."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image

from bissl_fast.data.pipelines.choice import Pipeline
from bissl_fast.data.pipelines.loader import draw_for, sequential_batches
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.sets import cache
from bissl_fast.data.sets.catalogue import load_downstream
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.parameters import draw_views
from bissl_fast.data.views.presets import eval_view, finetune_view, official_eval_view
from bissl_fast.methods.presets import WHOLE_SIDE, preset_config
from tests.data import trees
from tests.data.pictures import with_each_pipeline

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "flip": 0.0}
SHAPES = [(96, 128), (150, 100), (128, 128), (300, 200), (120, 240)]


def smooth(height: int, width: int) -> Image.Image:
    """Red grows downwards, green to the right; the outer sixths of the long side are blue."""
    row, column = np.mgrid[0:height, 0:width]
    along, length = (column, width) if width > height else (row, height)
    blue = np.where(np.abs(along - (length - 1) / 2) > length / 3, 255, 0)
    return Image.fromarray(np.stack((255 * row / height, 255 * column / width, blue), axis=2).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i, shape in enumerate(SHAPES):
                smooth(*shape).save(tmp_path / "set" / split / name / f"{i}.png")
    return tmp_path / "set"


def load(folder: Path, size: int = WHOLE_SIDE, whole: bool = True) -> ImageSet:
    return load_downstream(f"folder:{folder}", None, size, folder.parent / "cache", progress=False, whole=whole).train


def test_sizes_are_kept_in_the_cache_and_part_of_the_content(folder: Path) -> None:
    images = load(folder)
    for found in (images, load(folder)):  # built, and opened again
        assert found.images.shape == (10, WHOLE_SIDE, WHOLE_SIDE, 3)
        assert found.sizes is not None
        assert found.sizes.tolist() == [list(shape) for shape in SHAPES] * 2
        assert found.content_hash == cache.content_hash(found.images, found.labels, found.classes, found.sizes)
    squares = load(folder, whole=False)
    assert squares.sizes is None
    assert squares.content_hash != images.content_hash
    sizes = images.subset([4, 1], "two").sizes
    assert sizes is not None
    assert sizes.tolist() == [[120, 240], [150, 100]]


def test_a_damaged_list_of_sizes_is_noticed(folder: Path) -> None:
    good = load(folder).content_hash
    (entry,) = (folder.parent / "cache").glob("set-train*")
    np.save(entry / "sizes.npy", np.ones((10, 2), dtype=np.int64))
    images = load(folder)
    assert images.content_hash == good
    assert images.sizes is not None
    assert images.sizes.max() == 300


@with_each_pipeline("torch", "dali")
def test_crops_are_those_of_the_images_before(folder: Path, pipeline: str) -> None:
    images, view = load(folder), replace(finetune_view(32), **PLAIN)  # type: ignore[arg-type]
    order = BatchOrder(10, 10, seed=0)
    with Pipeline(pipeline, torch.device("cpu")).loader(images, (view,), order, seed=1) as loader:  # type: ignore[arg-type]
        batches = [loader.load(draw) for draw in range(3)]
    for batch in batches:
        for shown, sample in zip(batch.views[0], batch.samples, strict=True):
            original = smooth(*SHAPES[sample % 5])
            size = np.array([original.height, original.width])
            box = draw_views(view, 1, batch.epoch, np.array([sample]), 0, size[None]).box[0]
            pixels = F.to_dtype(F.to_image(original), torch.float32, scale=True)
            expected = F.resized_crop(pixels, *box.tolist(), size=[32, 32], antialias=True)
            assert (shown[:2] - expected[:2]).abs().max() * 255 <= 4  # to the nearest pixel of the square
            assert (shown - expected).abs().mean() * 255 <= 3


def test_margins_are_seen_in_training_and_the_middle_in_evaluation(folder: Path) -> None:
    images = load(folder)
    oblong = [i for i in range(10) if SHAPES[i % 5] != (128, 128)]
    view = replace(finetune_view(32), **PLAIN)  # type: ignore[arg-type]
    order = BatchOrder(10, 10, seed=0)
    with Pipeline("torch", torch.device("cpu")).loader(images, (view,), order, seed=1) as loader:
        batch = loader.load(0)
        assert (batch.views[0][:, 2].amax(dim=(1, 2)) > 0.9).float().mean() > 0.5
    for evaluate in (eval_view(32), official_eval_view(32)):
        (batch,) = sequential_batches(images, replace(evaluate, **PLAIN), 10, "cpu")  # type: ignore[arg-type]
        blue = batch.views[0][oblong, 2, 2:-2, 2:-2]
        assert blue.max() < 0.6  # the largest square of 3:2 just reaches the margins, that of 2:1 does not
        assert blue.mean() < 0.1


@pytest.mark.parametrize("ratio", [1.0, 4 / 3, 1.5, 16 / 9, 2.0])
@pytest.mark.parametrize("turned", [False, True])
def test_no_crop_of_the_paper_is_enlarged(ratio: float, turned: bool) -> None:
    config = preset_config("paper", "dtd").images
    assert (config.whole, config.downstream_cache_size) == (True, WHOLE_SIDE)
    height, width = (round(300 * ratio), 300) if turned else (300, round(300 * ratio))
    n = 20_000
    pixels = np.broadcast_to(np.uint8(0), (n, WHOLE_SIDE, WHOLE_SIDE, 3))
    sizes = np.tile(np.array([height, width]), (n, 1))
    images = ImageSet("mine", pixels, None, (), "0", sizes=sizes)
    (table,) = draw_for(images, np.arange(n), (config.finetune_view,), seed=0, epoch=0)
    assert table.box[:, 2:].min() >= config.size
    (table,) = draw_for(images, np.arange(10), (config.evaluation_view,), seed=0, epoch=0)
    assert table.box[:, 2:].min() >= config.size


def test_stretched_boxes_stay_inside_and_have_a_pixel() -> None:
    sizes = np.array([[1, 5000], [5000, 1], [3, 3], [7, 4000]])
    view = replace(finetune_view(8), crop_scale=(0.0001, 1.0))
    for epoch in range(20):
        table = draw_views(view, 0, epoch, np.arange(4), 0, sizes).stretched(sizes, 16)
        assert (table.box[:, :2] >= 0).all()
        assert (table.box[:, 2:] >= 1).all()
        assert (table.box[:, :2] + table.box[:, 2:] <= 16).all()
    corners = np.concatenate((sizes - 1, np.ones_like(sizes)), axis=1)
    assert table.changed(box=corners).stretched(sizes, 16).box[1].tolist() == [15, 0, 1, 16]


def test_sets_of_one_native_size_are_as_they_are(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    splits = [load_downstream("cifar10", tmp_path, 224, tmp_path / "cache", False, whole) for whole in (False, True)]
    assert splits[0].train.content_hash == splits[1].train.content_hash
    assert splits[1].train.sizes is None
