"""What every stage receives: decoded, square uint8 images with labels and a content hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]  # (N, S, S, C)
Labels = npt.NDArray[np.int64]  # (N,)
Targets = npt.NDArray[np.signedinteger[Any]]  # labels, or of a multi-label set (N, classes) int8


def is_multilabel(targets: Targets | None) -> bool:
    """Whether targets tell of several classes per image."""
    return targets is not None and targets.ndim == 2


def count_by_class(targets: Targets, classes: int) -> Labels:
    """Images of every class, `(classes,)` int64; of a multi-label set those in which the class is present."""
    if is_multilabel(targets):
        present: Labels = (targets == 1).sum(axis=0, dtype=np.int64)
        return present
    return np.bincount(targets, minlength=classes)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Square images of one size and number of channels, decoded once and shared by every stage.

    Args:
        name: Set and split, e.g. `"dtd/train"`.
        images: `(N, S, S, C)` uint8, C being 3 of RGB, usually a read-only memory map of the cache.
        labels: `(N,)` int64 in `[0, len(classes))`; of a multi-label set `(N, len(classes))` int8 with 1 for present,
            0 for difficult and -1 for absent, as VOC2007 writes it; or `None` for an unlabelled set.
        classes: Class names by label; empty for an unlabelled set.
        content_hash: Hexadecimal digest of pixels, labels and class names: the input hash of a stage.
        skipped: Files that could not be decoded, each with its reason.
        notes: Sentences on what else was left out, and on what was turned, scaled or guessed.
        sizes: `(N, 2)` int64 height and width of every image before it was stretched to a square; `None` if none was.

    Raises:
        ValueError: Shapes, dtypes or labels contradict each other.
    """

    name: str
    images: Images
    labels: Targets | None
    classes: tuple[str, ...]
    content_hash: str
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sizes: Labels | None = None

    def __post_init__(self) -> None:
        for name, array in (("images", self.images), ("labels", self.labels)):
            if not isinstance(array, np.ndarray | None):
                raise ValueError(f"{self.name}: {name} must be a NumPy array, found {type(array).__name__}")
        n, *square = self.images.shape
        if self.images.dtype != np.uint8 or len(square) != 3 or square[0] != square[1] or square[2] < 1:
            raise ValueError(
                f"{self.name}: images must be (N, S, S, C) uint8, not {self.images.shape} {self.images.dtype}"
            )
        if self.sizes is not None and (self.sizes.shape != (n, 2) or self.sizes.dtype != np.int64):
            raise ValueError(f"{self.name}: sizes must be ({n}, 2) int64, not {self.sizes.shape} {self.sizes.dtype}")
        if self.labels is None:
            return
        if is_multilabel(self.labels):
            self._check_multilabel(self.labels)
            return
        if self.labels.shape != (n,) or self.labels.dtype != np.int64:
            raise ValueError(f"{self.name}: labels must be ({n},) int64, not {self.labels.shape} {self.labels.dtype}")
        if n and not (self.labels.min() >= 0 and self.labels.max() < len(self.classes)):
            raise ValueError(f"{self.name}: labels leave the range of the {len(self.classes)} classes")

    def _check_multilabel(self, targets: Targets) -> None:
        shape = (len(self.images), len(self.classes))
        if targets.shape != shape or targets.dtype != np.int8:
            raise ValueError(f"{self.name}: targets must be {shape} int8, not {targets.shape} {targets.dtype}")
        if targets.size and not (targets.min() >= -1 and targets.max() <= 1):
            raise ValueError(f"{self.name}: multi-label targets must be 1, 0 or -1")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[1])

    @property
    def channels(self) -> int:
        """Of every image: 3 of RGB."""
        return int(self.images.shape[3])

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64], name: str) -> ImageSet:
        """The images at `indices`, copied into memory.

        Args:
            indices: `(M,)` positions in this set, in the order wanted.
            name: Name of the new set.

        Returns:
            A set of M images with all class names kept; its hash follows from this set's hash and the indices.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        images = self.images[chosen]
        images.setflags(write=False)
        digest = hashlib.blake2b(self.content_hash.encode() + chosen.tobytes(), digest_size=16)
        labels = None if self.labels is None else self.labels[chosen]
        sizes = None if self.sizes is None else self.sizes[chosen]
        return ImageSet(name, images, labels, self.classes, digest.hexdigest(), sizes=sizes)


@dataclass(frozen=True)
class Splits:
    """The three labelled parts of a downstream set.

    Args:
        train: Images to train on.
        val: Images to choose hyperparameters and epochs by.
        test: Images that are looked at once, at the end.
        notes: Sentences that a user should read, e.g. that only some classes of the set are on disk.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()

    @property
    def disjoint(self) -> bool:
        """Whether no class of the test is one of training, as in sets for few-shot tasks."""
        return disjoint(self.train.labels, self.test.labels)


def disjoint(train: Targets | None, test: Targets | None) -> bool:
    """Whether two labelled splits share no class; never so of a multi-label set."""
    if train is None or test is None or is_multilabel(train):
        return False
    return not np.intersect1d(train, test).size


def without_empty_classes(splits: Sequence[ImageSet]) -> tuple[list[ImageSet], tuple[str, ...]]:
    """Labelled splits without the classes that lost their last image because none could be read.

    Args:
        splits: Those of one set, the training images first.

    Returns:
        The splits, with labels counted anew if classes are gone, and sentences on those and on classes that no image
        can be learned from. Of a multi-label set all classes stay.
    """
    train, classes = splits[0], np.array(splits[0].classes, dtype=object)
    if not any(part.skipped for part in splits) or is_multilabel(train.labels):
        return list(splits), ()
    counts = np.stack([count_by_class(part.labels, len(classes)) for part in splits if part.labels is not None])
    kept = np.flatnonzero(counts.sum(axis=0))
    untaught = classes[(counts[0] == 0) & (counts.sum(axis=0) > 0) & (not disjoint(train.labels, splits[-1].labels))]
    notes = [f"No training image of {', '.join(untaught)} can be read: it cannot be learned."] * bool(len(untaught))
    if len(kept) == len(classes):
        return list(splits), tuple(notes)
    gone = sorted(set(classes) - set(classes[kept]))
    notes.insert(0, f"No image of {', '.join(gone)} can be read: {len(kept)} of {len(classes)} classes are left.")
    return [_with_classes(part, kept) for part in splits], tuple(notes)


def _with_classes(images: ImageSet, kept: npt.NDArray[np.int64]) -> ImageSet:
    digest = hashlib.blake2b(images.content_hash.encode() + kept.tobytes(), digest_size=16)
    assert images.labels is not None
    return replace(
        images,
        labels=np.searchsorted(kept, images.labels),
        classes=tuple(images.classes[label] for label in kept),
        content_hash=digest.hexdigest(),
    )
