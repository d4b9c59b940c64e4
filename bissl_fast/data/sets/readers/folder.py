"""Any folder of images: one sub-folder per class, or loose images for pretext training."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bissl_fast.data.sets.readers.decode import printable
from bissl_fast.data.sets.readers.from_files import from_files
from bissl_fast.data.sets.readers.holdout import carve, split_in_three
from bissl_fast.data.sets.readers.source import Listing, Source, listed
from bissl_fast.data.sets.readers.stacks import extensions
from bissl_fast.data.sets.readers.tree import AN_ARRAY, BESIDE, WITHOUT_IMAGES, Tree, subfolders
from bissl_fast.errors import UserError

_SPLITS: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_FILLERS = {"data", "dataset", "images", "seg", "set", "split"}  # as in train_set, seg_train, train-images

Classes = Mapping[str, list[Path]]  # images by class, of the classes that have any


def image_folder(root: Path, channels: int = 3) -> Listing:
    """Read a labelled folder.

    With `train/` inside, its class folders are the training set, `val/` and `test/` are what they say; `Training`,
    `test_set`, `seg_train` and the like are understood. A missing `val/` is held out of `train/`; with `val/` but no
    `test/`, as in ImageNet, `val/` is the test split. Without `train/`, the class folders are split: a fifth for the
    test, then a fifth of the rest for validation, stratified and always alike.

    Args:
        root: The folder.
        channels: Of the images; 3 is RGB.

    Raises:
        UserError: There is no folder, no class, only one class, or a split that cannot be made up is missing.
    """
    require_folder(root)
    folders = _split_folders(root)
    if not folders:
        return _split_flat(root, channels)
    tree = Tree(root, list(folders.values()), extensions(channels))
    for path in sorted(root.iterdir()):
        is_read = any(split.is_relative_to(path) for split in folders.values())
        if not is_read and not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() in tree.extensions):
            tree.leave_out("they lie beside the splits", path)
    # A file of several splits stays with those that are scored.
    order = [split for split in ("test", "val", "train") if split in folders]
    classes: dict[str, Classes] = {split: _classes(tree, folders[split]) for split in order}
    classes = {split: found for split, found in classes.items() if found or split == "train"}
    _check_classes(tree, folders["train"], classes["train"])
    if "test" not in classes and "val" not in classes:
        raise UserError(
            f"{root} has {folders['train'].name}/ but neither val/ nor test/ with images in class folders: add test/, "
            f"or give {folders['train']} itself to have it split into three."
        )
    origin = "test" if "test" in classes else "val"
    names = sorted(classes["train"])
    title = printable(root.name)
    train = _labelled(f"{title}/train", folders["train"], classes["train"], names, channels)
    test = _labelled(f"{title}/test", folders[origin], classes[origin], names, channels)
    if origin == "test" and "val" in classes:
        val = _labelled(f"{title}/val", folders["val"], classes["val"], names, channels)
        return Listing(train, val, test, tree.notes())
    train, val, notes = carve(train, f"{title}/val")
    serves = "" if origin == "test" else f", and {folders['val'].name}/ serves as the test split"
    held = f"{printable(root)} lacks a split: a fifth of {folders['train'].name}/ is held out for validation{serves}."
    return Listing(train, val, test, (held, *notes, *tree.notes()))


def loose_images(root: Path, channels: int = 3) -> Source:
    """Every image below a folder, at any depth, in sorted order, unlabelled; of so many channels.

    Raises:
        UserError: There is no folder, or no image in it.
    """
    require_folder(root)
    tree = Tree(root, [root], extensions(channels))
    paths, name = _some(tree, tree.images(root)), f"{printable(root.name)}/unlabelled"
    return from_files(name, paths, root, as_shown=True, notes=tree.notes(), channels=channels)


def folder_names(root: Path, channels: int = 3) -> Source:
    """Likewise, each image labelled by the name of the folder that it lies in."""
    loose, name = loose_images(root, channels), printable(root.name)
    folders = [unicodedata.normalize("NFC", path.parent.name) for path in loose.files]
    classes = sorted(set(folders))
    number = {folder: label for label, folder in enumerate(classes)}
    labels = [number[folder] for folder in folders]
    shown = tuple(map(printable, classes))
    return from_files(name, loose.files, root, labels, shown, as_shown=True, notes=loose.notes, channels=channels)


def images_below(root: Path) -> list[Path]:
    """Images of a published set at any depth below a folder, in sorted order.

    Raises:
        UserError: There is none.
    """
    tree = Tree(root, [root])
    return _some(tree, tree.images(root))


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders that are splits, by split; empty where the class folders lie in `root` itself."""
    named = [(_SPLITS[word], folder) for folder in subfolders(root) if (word := _split_word(folder.name))]
    found: dict[str, Path] = {}
    for split, folder in named:
        inner = subfolders(folder)
        while len(inner) == 1 and _SPLITS.get(_split_word(inner[0].name)) == split:  # as in seg_train/seg_train
            folder, inner = inner[0], subfolders(inner[0])
        if inner and split in found:
            raise UserError(
                f"{root} holds {found[split].name}/ and {folder.name}/, which both sound like its {split} split: "
                "rename or move one of them."
            )
        if inner:
            found[split] = folder
    if "train" not in found and (found or len(named) > 1):
        raise UserError(
            f"{root} holds {listed([f'{folder.name}/' for _, folder in named])}, which sound like splits, but no "
            "train/ with class folders inside: expected train/<class>/*.jpg, or class folders without splits."
        )
    return found


def _split_word(name: str) -> str:
    """The word of `_SPLITS` that a folder's name comes down to, or nothing."""
    words = [re.sub("(?<=.)set$", "", word) for word in re.split("[^a-z]+", name.lower())]
    words = [word for word in words if word and word not in _FILLERS]
    return words[0] if len(words) == 1 and words[0] in _SPLITS else ""


def _split_flat(root: Path, channels: int) -> Listing:
    tree = Tree(root, [root], extensions(channels))
    classes = _classes(tree, root)
    _check_classes(tree, root, classes)
    whole = _labelled(printable(root.name), root, classes, sorted(classes), channels)
    listing = split_in_three(whole, f"{printable(root)} has no splits of its own")
    guessed = tuple(
        f"{printable(c)}/ is read as a class, though it sounds like a split." for c in classes if _split_word(c)
    )
    return replace(listing, notes=(*listing.notes, *guessed, *tree.notes()))


def require_folder(root: Path) -> Path:
    """The folder, if it is there.

    Raises:
        UserError: It is not.
    """
    if root.is_file():
        raise UserError(f"{root} is a file: give the path of a folder of images, as {root.parent}.")
    if not root.is_dir():
        raise UserError(f"There is no folder {root}: give the path of a folder of images.")
    return root


def _classes(tree: Tree, folder: Path) -> Classes:
    """Images by class folder. Names that differ in their Unicode form alone, as systems write them, are one class."""
    found: dict[str, list[Path]] = {}
    folders, beside = tree.look(folder)
    for path in beside:
        tree.leave_out(BESIDE, path)
    for path in folders:
        images = tree.images(path)
        if images:
            found.setdefault(unicodedata.normalize("NFC", path.name), []).extend(images)
        else:
            tree.leave_out(WITHOUT_IMAGES, path)
    return found


def _check_classes(tree: Tree, folder: Path, classes: Classes) -> None:
    if len(classes) > 1:
        return
    found = f"only the class folder {next(iter(classes))}/" if classes else "no class folder"
    empty = [f"{path.name}/" for path in subfolders(folder) if path.name not in classes]
    without = f" with images, and {listed(empty)} without" if empty else ""
    arrays = "".join(f" {note}" for note in tree.notes(AN_ARRAY))
    whole = folder / next(iter(classes), "")
    inside = f" If the set lies in {whole.name}/, give folder:{whole}." if classes and subfolders(whole) else ""
    raise UserError(
        f"{folder} holds {found}{without}: expected one sub-folder of images for each of two or more classes."
        f"{inside} Images without classes serve the pretext task alone (--pretext-dataset; `data prepare` and `data "
        f"verify` take them with --unlabelled).{arrays}"
    )


def _labelled(name: str, root: Path, found: Classes, classes: list[str], channels: int) -> Source:
    if strange := sorted(found.keys() - set(classes)):
        raise UserError(f"{root} holds classes that train/ lacks: {listed(strange)}.")
    paths = [path for label in classes for path in found.get(label, ())]
    labels = [number for number, label in enumerate(classes) for _ in found.get(label, ())]
    return from_files(name, paths, root, labels, tuple(map(printable, classes)), as_shown=True, channels=channels)


def _some(tree: Tree, paths: list[Path]) -> list[Path]:
    if not paths:
        raise UserError(
            " ".join(
                (
                    f"No image is in {tree.root}: expected files ending in {' '.join(sorted(tree.extensions))}.",
                    *tree.notes(),
                )
            )
        )
    return paths
