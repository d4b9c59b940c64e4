"""`DaliLoader`: batches are those of `ViewLoader`, from images and from files, and broken files are named."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bissl_fast.data.pipelines.loader import Batch, ViewLoader
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.views.presets import vicreg_views
from bissl_fast.errors import UserError
from tests.data.pictures import photos
from tests.data.pipelines.unclosed import assert_exits

pytest.importorskip("nvidia.dali")
from bissl_fast.data.pipelines.dali_loader import DaliLoader, EncodedSet

VIEWS = vicreg_views(24)
ORDER = BatchOrder(37, 8, seed=2)


@pytest.fixture
def image_set(tmp_path: Path) -> ImageSet:
    """37 images of 28 x 28 in a read-only memory map, three classes."""
    np.save(tmp_path / "images.npy", photos(37, 28, 28).numpy())
    return ImageSet("mine", np.load(tmp_path / "images.npy", mmap_mode="r"), np.arange(37) % 3, ("a", "b", "c"), "0")


@pytest.fixture
def encoded_set(tmp_path: Path) -> EncodedSet:
    """37 files of several sizes, and two that are no images."""
    files = []
    for i in range(39):
        files.append(tmp_path / f"{i}.jpg")
        Image.fromarray(photos(1, 30 + i, 50)[0].contiguous().numpy()).save(files[-1])
    files[3].write_bytes(b"no image")
    files[30].write_bytes(b"")
    return EncodedSet.from_files("mine", files, np.arange(39) % 3)


@pytest.fixture
def loader(image_set: ImageSet) -> Iterator[DaliLoader]:
    with DaliLoader(image_set, VIEWS, ORDER, seed=1, device="cpu") as loader:
        yield loader


def equal(a: Batch, b: Batch) -> bool:
    assert a.labels is not None
    assert b.labels is not None
    tensors = zip((*a.views, a.labels), (*b.views, b.labels), strict=True)
    return a.epoch == b.epoch and np.array_equal(a.samples, b.samples) and all(torch.equal(x, y) for x, y in tensors)


def test_batches_are_those_of_the_torch_loader_within_two_levels(loader: DaliLoader, image_set: ImageSet) -> None:
    with ViewLoader(image_set, VIEWS, ORDER, 1, "cpu") as other:
        assert loader.batch_size == other.batch_size
        for draw in (0, 1, 5, 5, 2, 1_000_000):
            found, expected = loader.load(draw), other.load(draw)
            assert found.epoch == expected.epoch
            assert found.samples.tolist() == expected.samples.tolist()
            assert torch.equal(found.target, expected.target)
            for view, expected_view in zip(found.views, expected.views, strict=True):
                assert view.stride() == expected_view.stride()
                std = torch.tensor(VIEWS[0].std)[:, None, None]
                assert ((view - expected_view).abs() * std * 255).max() <= 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
def test_on_a_gpu_batches_are_those_of_the_host_and_stay_until_they_are_read(
    image_set: ImageSet, encoded_set: EncodedSet
) -> None:
    for images, largest in ((image_set, 2), (encoded_set, 255)):  # decoders of JPEGs differ at a few pixels
        with (
            DaliLoader(images, VIEWS, ORDER, 1, "cuda") as on_gpu,
            DaliLoader(images, VIEWS, ORDER, 1, "cpu") as on_cpu,
        ):
            copies = []
            for draw in range(6):
                batch = on_gpu.load(draw)
                torch.cuda._sleep(50_000_000)  # it is let go and the next ones are made before this one is copied
                copies.append(([view.clone() for view in batch.views], batch.target.clone()))
                del batch
            for draw, (views, target) in enumerate(copies):
                expected = on_cpu.load(draw)
                assert torch.equal(target.cpu(), expected.target)
                for view, expected_view in zip(views, expected.views, strict=True):
                    apart = (view.cpu() - expected_view).abs() * torch.tensor(VIEWS[0].std)[:, None, None] * 255
                    assert apart.max() <= largest
                    assert apart.mean() <= 0.5


def test_files_that_are_read_anew_give_the_same_bits_from_any_draw_on(encoded_set: EncodedSet) -> None:
    with DaliLoader(encoded_set, VIEWS, ORDER, 1, "cpu") as loader:
        unbroken = [loader.load(draw) for draw in range(12)]  # three epochs
    for start in (1, 7, 11):
        with DaliLoader(encoded_set, VIEWS, ORDER, 1, "cpu", threads=1) as loader:
            assert all(equal(loader.load(draw), unbroken[draw]) for draw in range(start, 12))


def test_unreadable_files_are_left_out_and_named(encoded_set: EncodedSet) -> None:
    assert [line.partition(" is missing, damaged")[0].rpartition("/")[2] for line in encoded_set.skipped] == [
        "3.jpg",
        "30.jpg",
    ]
    assert len(encoded_set) == 37
    assert encoded_set.sizes[3].tolist() == [34, 50]  # the file after the first that is left out
    assert encoded_set.labels is not None
    assert encoded_set.labels[3] == 4 % 3


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp", "bmp"])
def test_a_file_that_is_cut_off_is_left_out_and_named_with_its_reason(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(photos(1, 60, 60)[0].contiguous().numpy())
    whole, cut = tmp_path / f"whole.{kind}", tmp_path / f"cut.{kind}"
    image.save(whole)
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) * 9 // 10])
    found = EncodedSet.from_files("mine", [cut, whole])
    assert found.files == (whole,)
    assert len(found.skipped) == 1
    assert str(cut) in found.skipped[0]


def test_a_whole_file_with_more_behind_its_end_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    Image.fromarray(photos(1, 60, 60)[0].contiguous().numpy()).save(path)
    path.write_bytes(path.read_bytes() + b"what a phone writes there")
    assert len(EncodedSet.from_files("mine", [path])) == 1


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_files_of_more_than_eight_bits_are_left_out_and_named(tmp_path: Path, dtype: type) -> None:
    paths = [tmp_path / "deep.tif", tmp_path / "plain.jpg"]
    Image.fromarray(np.full((8, 8), 100, dtype=dtype)).save(paths[0])
    Image.new("RGB", (8, 8)).save(paths[1])
    (line,) = EncodedSet.from_files("mine", paths).skipped
    assert "deep.tif holds" in line
    assert "convert it to 8 bits" in line


@pytest.mark.timeout(60)
def test_a_pipe_among_the_files_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match=r"pipe\.jpg is no regular file"):
        EncodedSet.from_files("mine", [tmp_path / "pipe.jpg"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda whole: whole[: len(whole) // 2], "truncated"),
        (lambda whole: b"no image", "cannot identify"),
        (None, "No such"),
    ],
)
def test_a_file_that_breaks_later_is_named_with_its_reason(encoded_set: EncodedSet, content: Any, reason: str) -> None:
    with DaliLoader(encoded_set, VIEWS, ORDER, 1, "cpu") as loader:
        path = encoded_set.files[ORDER.indices(2)[1][3]]
        whole = path.read_bytes()
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content(whole))
        with pytest.raises(UserError, match=rf"mine: {path} cannot be decoded \(.*{reason}.*mend or remove it"):
            loader.load(2)
        path.write_bytes(whole)
        assert len(loader.load(2).samples) == 8


def test_sets_that_cannot_be_are_refused(tmp_path: Path, image_set: ImageSet) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="None of the 1 files of mine is an image"):
        EncodedSet.from_files("mine", [tmp_path / "a.jpg"])
    with pytest.raises(UserError, match=r"b\.jpg is missing"):
        EncodedSet.from_files("mine", [tmp_path / "b.jpg"])
    with pytest.raises(UserError, match="1 files and 2 labels"):
        EncodedSet.from_files("mine", [tmp_path / "a.jpg"], np.arange(2))
    with pytest.raises(UserError, match="for 40 samples, but mine holds 37 images"):
        DaliLoader(image_set, VIEWS, BatchOrder(40, 8, seed=0), 0, "cpu")


def test_a_closed_loader_refuses_and_closing_twice_is_fine(loader: DaliLoader) -> None:
    loader.load(0)
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError):
        loader.load(5)


@pytest.mark.parametrize("ending", ["", "raise KeyboardInterrupt"], ids=["end of the script", "Ctrl-C"])
def test_an_interpreter_that_never_closes_its_loader_still_exits(ending: str) -> None:
    assert_exits(DaliLoader, ending)
