"""Any folder of images: one sub-folder per class, or loose images for pretext training."""

from __future__ import annotations

import os
from pathlib import Path

from bissl_fast.data.readers.decode import EXTENSIONS, is_image, printable
from bissl_fast.data.readers.source import Listing, Source, carve, from_files, listed, split_in_three
from bissl_fast.errors import UserError

_VALIDATION_NAMES = ("val", "valid", "validation")


def image_folder(root: Path) -> Listing:
    """Read a labelled folder.

    With `train/` inside, its class folders are the training set, `val/` and `test/` are what they say. A missing `val/`
    is held out of `train/`; with `val/` but no `test/`, as in ImageNet, `val/` is the test split. Without `train/`, the
    class folders are split: a fifth for the test, then a fifth of the rest for validation, stratified and always alike.

    Raises:
        UserError: There is no folder, no class, only one class, or a split that cannot be made up is missing.
    """
    require_folder(root)
    title = printable(root.name)
    train_root = root / "train"
    if not train_root.is_dir():
        whole = _labelled(root, title, _classes(root))
        return split_in_three(whole, f"{printable(root)} has no splits of its own")
    test_root = root / "test"
    val_root = next((root / name for name in _VALIDATION_NAMES if (root / name).is_dir()), None)
    classes = _classes(train_root)
    train = _labelled(train_root, f"{title}/train", classes)
    if not test_root.is_dir():
        if val_root is None:
            raise UserError(
                f"{root} has train/ but neither val/ nor test/: add test/, "
                f"or give {train_root} itself to have it split into three."
            )
        test_root, val_root = val_root, None
    test = _labelled(test_root, f"{title}/test", classes)
    if val_root is not None:
        return Listing(train, _labelled(val_root, f"{title}/val", classes), test)
    train, val, notes = carve(train, f"{title}/val")
    origin = "" if test_root.name == "test" else f", and {test_root.name}/ serves as the test split"
    notes = (f"{printable(root)} lacks a split: a fifth of train/ is held out for validation{origin}.", *notes)
    return Listing(train, val, test, notes)


def loose_images(root: Path) -> Source:
    """Every image below a folder, at any depth, in sorted order, unlabelled.

    Raises:
        UserError: There is no folder, or no image in it.
    """
    require_folder(root)
    return from_files(f"{printable(root.name)}/unlabelled", images_below(root), root)


def folder_names(root: Path) -> Source:
    """Likewise, each image labelled by the name of the folder that it lies in."""
    require_folder(root)
    paths = images_below(root)
    classes = tuple(sorted({path.parent.name for path in paths}))
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[path.parent.name] for path in paths]
    return from_files(printable(root.name), paths, root, labels, tuple(map(printable, classes)))


def require_folder(root: Path) -> Path:
    """The folder, if it is there.

    Raises:
        UserError: It is not.
    """
    if not root.is_dir():
        raise UserError(f"There is no folder {root}: give the path of a folder of images after 'folder:'.")
    return root


def _classes(root: Path) -> tuple[str, ...]:
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if len(classes) < 2:
        found = f"only the class folder {classes[0]}/" if classes else "no class folder"
        raise UserError(
            f"{root} holds {found}: expected one sub-folder of images for each of two or more classes. "
            "Images without classes serve the pretext task alone (--pretext-dataset, `data prepare --unlabelled`)."
        )
    return classes


def _labelled(root: Path, name: str, classes: tuple[str, ...]) -> Source:
    strange = sorted({p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")} - set(classes))
    if strange:
        raise UserError(f"{root} holds classes that train/ lacks: {listed(strange)}.")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name_of_class in enumerate(classes):
        found = images_below(root / name_of_class) if (root / name_of_class).is_dir() else []
        paths += found
        labels += [label] * len(found)
    return from_files(name, paths, root, labels, tuple(map(printable, classes)))


def images_below(root: Path) -> list[Path]:
    """Images at any depth; links to folders are followed, hidden files and folders are not."""
    found: list[Path] = []
    for folder, children, files in os.walk(root, followlinks=True):
        children[:] = [child for child in children if not child.startswith(".")]
        found += [Path(folder, file) for file in files if is_image(Path(file))]
    if not found:
        raise UserError(f"No image is in {root}: expected files ending in {' '.join(sorted(EXTENSIONS))}.")
    return sorted(found)
