"""Readers of data sets, the cache, and archives."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bissl_fast.data.sets import cache
from bissl_fast.data.sets.readers import arrays, class_folders, few_shot, lists, matlab, omniglot
from bissl_fast.data.sets.readers.decode import decode
from bissl_fast.data.sets.readers.folder import image_folder
from bissl_fast.data.sets.readers.source import Listing, Source
from bissl_fast.data.sets.readers.stacks import decode_channels
from bissl_fast.data.sets.readers.table import labelled_table
from bissl_fast.data.sets.readers.voc import CLASSES, voc2007
from bissl_fast.data.sets.unpack import unpack
from tests.data import published, trees
from tests.fuzz.targets import Target

LIMIT = 1 << 20  # bytes that an archive may hold
FORMATS = ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm")


def first_images(listing: Listing | Source) -> None:
    """The first image of every split, as the cache reads it."""
    parts = [listing] if isinstance(listing, Source) else [listing.train, listing.val, listing.test]
    for part in parts:
        image = part.read(0, 8)
        assert image.shape == (*image.shape[:2], part.channels)
        assert image.dtype == np.uint8
        assert part.labels is None or len(part.labels) == part.count


def of_set(name: str, plant: Callable[[Path], Path], read: Callable[[Path], Any], *files: str) -> Target:
    """A published set, whose tree lies below the folder that it is planted in."""
    places: dict[Path, Path] = {}

    def planted(folder: Path) -> None:
        places[folder] = plant(folder)

    return Target(name, planted, lambda folder: first_images(read(places[folder])), files)


def small_cifar100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    for name in ("train", "test"):
        labels = [i % 2 for i in range(4)]
        trees.dump(folder / name, {"data": trees.cifar_pixels(4), "fine_labels": labels, "coarse_labels": [0] * 4})
    trees.dump(folder / "meta", {"fine_label_names": ["a", "b"], "coarse_label_names": ["c"]})
    return folder


def omniglot_zips(root: Path) -> Path:
    every = iter(published.drawings(8))
    for part, characters in published.CHARACTERS.items():
        with zipfile.ZipFile(root / f"images_{part}.zip", "w") as archive:
            for character in characters[:2]:
                for i in range(2):
                    packed = io.BytesIO()
                    Image.fromarray(~next(every)).save(packed, "PNG")
                    archive.writestr(f"images_{part}/{character}/{i}.png", packed.getvalue())
    return root


def mini_imagenet(root: Path) -> Path:
    for split in few_shot.SPLITS:
        names = [f"{split}{i}.jpg" for i in range(4)]
        published.lines(root / f"{split}.csv", ["filename,label", *(f"{name},{split}-{name[-5]}" for name in names)])
        for name in names:
            trees.save_image(root / "images" / name)
    return root


def cifar_fs(root: Path) -> Path:
    for split in few_shot.SPLITS:
        published.lines(root / "splits" / "bertinetto" / f"{split}.txt", [f"{split}_a", f"{split}_b"])
        trees.class_folders(root / "data", {f"{split}_a": 2, f"{split}_b": 2})
    return root


def table(root: Path) -> Path:
    trees.class_folders(root / "photos", {"a": 4, "b": 4})
    rows = [f"{c}/{i:03}.png,{c},{'train' if i < 2 else 'test'}" for c in "ab" for i in range(4)]
    published.lines(root / "labels.csv", ["path,class,split", *rows])
    return root


def pictures(root: Path) -> None:
    image = Image.fromarray(np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3))
    for extension in FORMATS:
        image.save(root / f"image.{extension}")
    image.convert("P").save(root / "palette.png", transparency=3)
    Image.fromarray(np.arange(120, dtype=np.uint16).reshape(12, 10)).save(root / "deep.png")
    image.save(root / "turned.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")


def picture(path: Path) -> None:
    decode(path, 8, as_shown=True)


def stacks(root: Path) -> None:
    np.save(root / "one.npy", np.arange(120, dtype=np.uint16).reshape(12, 10))
    np.save(root / "real.npy", np.linspace(0, 1, 120, dtype=np.float32).reshape(12, 10))


def stack(path: Path) -> None:
    decode_channels(path, 8, channels=1)


def many_channels(root: Path) -> None:
    import tifffile

    tifffile.imwrite(root / "pages.tif", np.zeros((5, 12, 10), dtype=np.uint16), photometric="minisblack")
    np.save(root / "five.npy", np.zeros((5, 12, 10), dtype=np.uint8))


def five_channels(path: Path) -> None:
    decode_channels(path, 8, channels=5)


def cached_source(root: Path) -> Source:
    labels = np.array([0, 1], dtype=np.int64)
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    return Source("toy/train", 2, lambda index, size: pixels, lambda i: f"{i}.png", "a", labels, ("even", "odd"))


def cached(root: Path) -> cache.ImageSet:
    found = cache.load(cached_source(root), 8, root, progress=False)
    assert found.images.shape == (2, 8, 8, 3)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1]
    assert all(isinstance(told, str) for told in (*found.notes, *found.skipped))
    return found


def archives(root: Path) -> None:
    with zipfile.ZipFile(root / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/one.txt", b"one" * 50)
        archive.writestr("set/two/three.txt", b"three" * 50)
    for mode, name in (("w", "b.tar"), ("w:gz", "c.tar.gz"), ("w:xz", "d.tar.xz")):
        with tarfile.open(root / name, mode) as archive:
            for member, content in (("set/one.txt", b"one" * 50), ("set/two/three.txt", b"three" * 50)):
                header = tarfile.TarInfo(member)
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))


def unpacked(extension: str, root: Path) -> None:
    """All into a folder of its own, beside which nothing may appear, and no more than is allowed."""
    (path,) = root.glob(f"*.{extension}")
    place = root / "place"
    try:
        unpack(path, place, LIMIT)
        assert sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) <= LIMIT
    finally:
        shutil.rmtree(place, ignore_errors=True)
        assert len(list(root.iterdir())) == 4, sorted(root.iterdir())


def targets() -> list[Target]:
    """All readers of data."""
    voc = partial(published.voc2007, classes=CLASSES, per_split=2)
    return [
        of_set("stl10", partial(trees.stl10, n=12), arrays.stl10, "*/*_y.bin", "*/class_names.txt"),
        of_set("idx", lambda root: trees.fashion_mnist(root / "raw", 12, False), arrays.fashion_mnist, "raw/*"),
        of_set("idx-gz", lambda root: trees.fashion_mnist(root / "raw", 12), arrays.fashion_mnist, "raw/*"),
        of_set("cifar10", partial(trees.cifar10, n=2), arrays.cifar10, "*/*"),
        of_set("cifar100-coarse", small_cifar100, arrays.cifar100_coarse, "*/*"),
        of_set("dtd", trees.dtd, lists.dtd, "*/*/labels/*"),
        of_set("aircraft", published.aircraft, lists.aircraft, "*/*/*.txt"),
        of_set("pets", published.pets, lists.pets, "*/annotations/*"),
        of_set("food101", published.food101, lists.food101, "*/meta/*"),
        of_set("sun397", partial(published.sun397, per_class=2), lists.sun397, "*/Partitions/*"),
        of_set("cub200", partial(published.cub200, per_class=2), lists.cub200, "*/*.txt"),
        of_set("flowers", published.flowers, matlab.flowers, "*/*.mat"),
        of_set("cars", partial(published.cars, per_class=2), matlab.cars, "*/*.mat", "*/*/*.mat"),
        of_set("voc", voc, voc2007, "*/*/ImageSets/Main/[atd]*.txt"),
        of_set("tiny-imagenet", partial(published.tinyimagenet, per_class=2), class_folders.tiny_imagenet,
               "*/wnids.txt", "*/val/*.txt"),
        of_set("mini-imagenet", mini_imagenet, few_shot.mini_imagenet, "*.csv"),
        of_set("cifar-fs", cifar_fs, few_shot.cifar_fs, "splits/*/*"),
        of_set("omniglot-bits", partial(published.omniglot_bits, per_class=3), omniglot.omniglot, "*/*.npz"),
        of_set("omniglot-zips", omniglot_zips, omniglot.omniglot_few_shot, "*.zip"),
        of_set("table", table, lambda root: labelled_table(root / "photos", root / "labels.csv"), "labels.csv"),
        of_set("folder", lambda root: trees.class_folders(root, {"a": 3, "b": 3}), image_folder, "*/000.png"),
        Target("pictures", pictures, picture, ("*",), by_file=True),
        Target("stacks", stacks, stack, ("*",), by_file=True),
        Target("many-channels", many_channels, five_channels, ("*",), by_file=True),
        Target("cache", cached, cached, ("*/*",)),
        *(Target(f"archive-{extension}", archives, partial(unpacked, extension), (f"*.{extension}",))
          for extension in ("zip", "tar", "gz", "xz")),
    ]  # fmt: skip
