"""Small trees of the paper's photograph sets in their real layouts; the colour of an image tells its class."""

import json

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.data.trees import save_image

STEP = 40  # between the red values of two classes


def photograph(path, label):
    save_image(path, STEP * label)


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def flowers(root, per_class=2):
    """Three classes; the images of a split are listed in falling order, as its numbers are not sorted either."""
    folder = root / "flowers-102"
    labels = np.arange(9 * per_class) % 3 + 1
    for i, label in enumerate(labels):
        photograph(folder / "jpg" / f"image_{i + 1:05}.jpg", label - 1)
    savemat(folder / "imagelabels.mat", {"labels": labels[None]})
    numbers = np.arange(1, len(labels) + 1)[::-1].reshape(3, 1, -1)
    savemat(folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), numbers, strict=True)))
    return folder


def cars(root, per_class=5):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer", "Acura RL", "Audi S4"], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(7, i % 3 + 1, f"{i + 1:05}.jpg") for i in range(3 * per_class)]
        fields = [("bbox_x1", object), ("class", object), ("fname", object)]
        savemat(folder / path, {"annotations": np.array(rows, dtype=fields)})
        for _, number, file in rows:
            photograph(folder / f"cars_{split}" / file, number - 1)
    return folder


def aircraft(root, per_class=2):
    folder = root / "fgvc-aircraft-2013b" / "data"
    names = ["707-320", "Cessna 172", "A300B4"]  # not in alphabetical order, and with a blank
    lines(folder / "variants.txt", names)
    for k, split in enumerate(("train", "val", "test")):
        images = [(f"{k}{i:06}", i % 3) for i in range(3 * per_class)]
        lines(folder / f"images_variant_{split}.txt", [f"{image} {names[label]}" for image, label in images])
        for image, label in images:
            photograph(folder / "images" / f"{image}.jpg", label)
    return folder


def pets(root, per_class=5):
    folder = root / "oxford-iiit-pet"
    names = ["Abyssinian", "american_bulldog", "Bengal"]
    for k, split in enumerate(("trainval", "test")):
        images = [(f"{name}_{100 * k + i}", label) for label, name in enumerate(names) for i in range(per_class)]
        lines(folder / "annotations" / f"{split}.txt", [f"{image} {label + 1} 1 1" for image, label in images])
        for image, label in images:
            photograph(folder / "images" / f"{image}.jpg", label)
    return folder


def food101(root, per_class=5):
    folder = root / "food-101"
    for k, split in enumerate(("train", "test")):
        images = {
            name: [f"{name}/{100 * k + i}" for i in range(per_class)] for name in ("waffles", "apple_pie", "sushi")
        }
        lines(folder / "meta" / f"{split}.json", [json.dumps(images)])
        for label, name in enumerate(sorted(images)):
            for image in images[name]:
                photograph(folder / "images" / f"{image}.jpg", label)
    return folder


def sun397(root, per_class=5):
    folder = root / "SUN397"
    classes = ["a/abbey", "a/apartment_building/outdoor", "b/bakery/shop"]
    for k, (file, _) in enumerate((("Training", "train"), ("Testing", "test"))):
        images = [
            (f"{place}/sun_{k}{i:03}.jpg", label) for label, place in enumerate(classes) for i in range(per_class)
        ]
        lines(folder / "Partitions" / f"{file}_01.txt", [f"/{image}" for image, _ in images[::-1]])
        for image, label in images:
            photograph(folder / image, label)
    return folder


def cub200(root, per_class=5):
    folder = root / "CUB_200_2011"
    classes = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    images = [(f"{name}/{i}.jpg", label) for label, name in enumerate(classes) for i in range(2 * per_class)]
    lines(folder / "classes.txt", [f"{i + 1} {name}" for i, name in enumerate(classes)])
    lines(folder / "images.txt", [f"{i + 1} {image}" for i, (image, _) in enumerate(images)])
    lines(folder / "image_class_labels.txt", [f"{i + 1} {label + 1}" for i, (_, label) in enumerate(images)])
    lines(folder / "train_test_split.txt", [f"{i + 1} {i % 2}" for i in range(len(images))])
    for image, label in images:
        photograph(folder / "images" / image, label)
    return folder


def caltech101(root, counts=(31, 40)):
    folder = root / "caltech101"
    for label, (name, count) in enumerate(zip(("Faces", "accordion"), counts, strict=True)):
        for i in range(count):
            photograph(folder / "101_ObjectCategories" / name / f"image_{i + 1:04}.jpg", label)
    photograph(folder / "101_ObjectCategories" / "BACKGROUND_Google" / "image_0001.jpg", 5)
    return folder


def voc2007(root, classes, per_split=4):
    """Image i of a split is 1 in class i, 0 in class i + 1 and -1 in all others, modulo the number of classes."""
    folder = root / "VOCdevkit" / "VOC2007"
    for k, split in enumerate(("train", "val", "test")):
        images = [f"{k}{i:05}" for i in range(per_split)]
        lines(folder / "ImageSets" / "Main" / f"{split}.txt", images)
        for c, name in enumerate(classes):
            values = [{0: 1, 1: 0}.get((c - i) % len(classes), -1) for i in range(per_split)]
            rows = [f"{image} {value:2}" for image, value in zip(images, values, strict=True)]
            lines(folder / "ImageSets" / "Main" / f"{name}_{split}.txt", rows)
        for i, image in enumerate(images):
            photograph(folder / "JPEGImages" / f"{image}.jpg", i % 6)
    return folder


def tinyimagenet(root, per_class=5):
    folder = root / "tiny-imagenet-200"
    wnids = ["n02124075", "n01443537"]
    lines(folder / "wnids.txt", wnids)
    boxes = []
    for label, wnid in enumerate(sorted(wnids)):
        for i in range(per_class):
            photograph(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", label)
            photograph(folder / "val" / "images" / f"val_{label}{i}.JPEG", label)
            boxes.append(f"val_{label}{i}.JPEG\t{wnid}\t0\t32\t44\t62")
        lines(folder / "train" / wnid / f"{wnid}_boxes.txt", ["n_0.JPEG\t0\t10\t63\t58"])
    lines(folder / "val" / "val_annotations.txt", boxes)
    return folder


def tiny_imagenet_by_class(root, per_class=5):
    folder = root / "tin"
    wnids = ["n01443537", "n02124075"]
    lines(folder / "wnids.txt", wnids)
    for label, wnid in enumerate(wnids):
        for i in range(per_class):
            for split in ("train", "val"):
                photograph(folder / split / wnid / f"{split}_{label}{i}.JPEG", label)
    return folder


def drawings(count):
    """`(count, 105, 105)` bool, True for ink; no two alike, and the last pixels in use."""
    ink = np.random.default_rng(0).random((count, 105, 105)) < 0.1
    ink[:, -1, -1] = True
    return ink


CHARACTERS = {
    "background": ["Greek/character01", "Greek/character02", "Latin/character01"],
    "evaluation": ["Angelic/character01"],
}


def omniglot(root, per_class=5):
    folder = root / "omniglot-py"
    every = iter(drawings(4 * per_class))
    for part, characters in CHARACTERS.items():
        for number, character in enumerate(characters):
            for i in range(per_class):
                path = folder / f"images_{part}" / character / f"{number:04}_{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(~next(every)).save(path)  # mode "1": ink is 0
    return folder


def omniglot_bits(root, per_class=5):
    folder = root / "omniglot"
    folder.mkdir(parents=True)
    every, start = drawings(4 * per_class).reshape(4 * per_class, -1), 0
    for part, characters in CHARACTERS.items():
        count = per_class * len(characters)
        packed = np.packbits(every[start : start + count], axis=1)
        labels = np.repeat(np.arange(len(characters), dtype=np.int16), per_class)
        np.savez(folder / f"omniglot_images_{part}_bits105.npz", packed=packed, y=labels, classes=np.array(characters))
        start += count
    return folder


TREES = (flowers, cars, aircraft, pets, food101, sun397, cub200, caltech101, tinyimagenet, omniglot)
