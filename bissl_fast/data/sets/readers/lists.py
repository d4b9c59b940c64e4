"""Sets that text files split and label: DTD, FGVC-Aircraft, Oxford-IIIT Pets, Food-101, SUN397 and CUB-200."""

from __future__ import annotations

from pathlib import Path

from bissl_fast.data.sets.readers.from_files import from_lists
from bissl_fast.data.sets.readers.source import Listing
from bissl_fast.data.sets.readers.text import label_of, read_rows, read_text, require
from bissl_fast.errors import UserError
from bissl_fast.plain import parse_json

PETS_BREEDS = 37


def dtd(folder: Path) -> Listing:
    """Read `images/<class>/*.jpg` by `labels/{train,val,test}1.txt`: split 1 of ten, as everyone reports."""
    splits = {
        split: [(file, file.split("/")[0]) for (file,) in read_rows(folder / "labels" / f"{split}1.txt", "DTD", 1)]
        for split in ("train", "val", "test")
    }
    classes = sorted({label for entries in splits.values() for _, label in entries})
    return from_lists("dtd", "DTD", folder / "images", splits, classes, 47)


def aircraft(folder: Path) -> Listing:
    """Read `images/*.jpg` by `images_variant_{train,val,test}.txt` and `variants.txt`, of FGVC-Aircraft's `data`."""
    classes = [
        line.strip() for line in read_text(folder / "variants.txt", "FGVC-Aircraft").splitlines() if line.strip()
    ]
    splits = {}
    for split in ("train", "val", "test"):
        path = folder / f"images_variant_{split}.txt"
        rows = [line.strip().partition(" ") for line in read_text(path, "FGVC-Aircraft").splitlines() if line.strip()]
        splits[split] = [(f"{image}.jpg", label) for image, _, label in rows]
        strange = sorted({label for _, label in splits[split]} - set(classes))
        if strange:
            raise UserError(f"{path} names the class '{strange[0]}', which variants.txt lacks: unpack the set again.")
    return from_lists("aircraft", "FGVC-Aircraft", folder / "images", splits, classes, 100)


def pets(folder: Path) -> Listing:
    """Read `images/*.jpg` by `annotations/{trainval,test}.txt`: image, breed counted from 1, species, breed in it."""
    breeds, splits = dict[int, str](), {}
    for split, file in (("train", "trainval"), ("test", "test")):
        path = folder / "annotations" / f"{file}.txt"
        part = read_rows(path, "Oxford-IIIT Pets", 4)
        breeds |= {label_of(breed, PETS_BREEDS, path): image.rpartition("_")[0] for image, breed, _, _ in part}
        splits[split] = [(f"{image}.jpg", breeds[int(breed) - 1]) for image, breed, _, _ in part]
    classes = [breeds[label] for label in sorted(breeds)]
    return from_lists("pets", "Oxford-IIIT Pets", folder / "images", splits, classes, PETS_BREEDS)


def food101(folder: Path) -> Listing:
    """Read `images/<class>/*.jpg` by `meta/{train,test}.json`, which map every class to its images."""
    splits = {}
    for split in ("train", "test"):
        path = require(folder / "meta" / f"{split}.json", "Food-101")
        try:
            images: dict[str, list[str]] = parse_json(path.read_bytes())
            splits[split] = [(f"{image}.jpg", label) for label in sorted(images) for image in images[label]]
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(f"{path} is damaged ({error}): download Food-101 again.") from error
    classes = sorted({label for entries in splits.values() for _, label in entries})
    return from_lists("food101", "Food-101", folder / "images", splits, classes, 101)


def sun397(folder: Path) -> Listing:
    """Read partition 1 of ten, `Partitions/{Training,Testing}_01.txt`, which name `/a/abbey/sun_*.jpg` and so on.

    The class is the path between the letter and the file, as `apartment_building/outdoor`. Files are taken in sorted
    order, so that neither the lists' order nor the file system's changes which images validate.
    """
    splits = {}
    for split, file in (("train", "Training"), ("test", "Testing")):
        rows = read_rows(folder / "Partitions" / f"{file}_01.txt", "SUN397", 1)
        images = sorted(path.lstrip("/") for (path,) in rows)
        splits[split] = [(image, "/".join(image.split("/")[1:-1])) for image in images]
    classes = sorted({label for entries in splits.values() for _, label in entries})
    return from_lists("sun397", "SUN397", folder, splits, classes, 397)


def cub200(folder: Path) -> Listing:
    """Read `images/` by `images.txt`, `image_class_labels.txt`, `train_test_split.txt` and `classes.txt`.

    Each line of these is the number of an image, or a class, and a value.
    """
    names = dict(read_rows(folder / "classes.txt", "CUB-200", 2))
    files, numbers, trains = (
        dict(read_rows(folder / f"{name}.txt", "CUB-200", 2))
        for name in ("images", "image_class_labels", "train_test_split")
    )
    if not files.keys() == numbers.keys() == trains.keys():
        raise UserError(
            f"images.txt, image_class_labels.txt and train_test_split.txt in {folder} list different images: unpack "
            f"the set again."
        )
    if list(names) != [str(i + 1) for i in range(len(names))]:
        raise UserError(f"{folder / 'classes.txt'} does not count its classes from 1: unpack CUB-200 again.")
    classes = list(names.values())
    path = folder / "image_class_labels.txt"
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for image, file in files.items():
        label = classes[label_of(numbers[image], len(classes), path)]
        splits["train" if trains[image] == "1" else "test"].append((file, label))
    return from_lists("cub200", "CUB-200", folder / "images", splits, classes, 200)
