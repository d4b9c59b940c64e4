"""A training split cut in two: images that a head is trained on, and images that its encoder is judged by."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bissl_fast.data.sets.dataset import ImageSet, count_by_class, is_multilabel
from bissl_fast.data.sets.splits import Indices, stratified_holdout
from bissl_fast.errors import UserError

NAMED = 5
"""Classes that a sentence names."""


@dataclass(frozen=True)
class Halves:
    """Which images of a training split validate. It never sees another split.

    An image of a multi-label set counts in the rarest of the classes that it shows.

    Attributes:
        train: the training split.
        share: of every class, but at least one image.
        seed: of the hash that chooses.
    """

    train: ImageSet
    share: float
    seed: int

    @cached_property
    def positions(self) -> tuple[Indices, Indices]:
        """Of the images that train and of those that validate, in the split."""
        labels = self.train.labels
        assert labels is not None, "a downstream set has labels"
        if is_multilabel(labels):
            counts = np.where(labels == 1, count_by_class(labels, labels.shape[1]), len(labels) + 1)
            return stratified_holdout(counts.argmin(1).astype(np.int64), self.share, self.seed)
        return stratified_holdout(labels.astype(np.int64), self.share, self.seed)

    @property
    def kept(self) -> Indices:
        """Positions of the images that train."""
        return self.positions[0]

    def cut(self) -> tuple[ImageSet, ImageSet]:
        """Both parts, in memory."""
        kept, held = self.positions
        return self.train.subset(kept, f"{self.train.name}, training"), self.train.subset(
            held, f"{self.train.name}, validation"
        )

    def require(self, batch_size: int) -> None:
        """Raises UserError: if a class has no image in one of the parts, or a part has no whole batch."""
        labels, classes = self.train.labels, self.train.classes
        assert labels is not None
        there = count_by_class(labels, len(classes)) > 0
        for part, positions in zip(("training", "validation"), self.positions, strict=True):
            lost = np.flatnonzero(there & (count_by_class(labels[positions], len(classes)) == 0))
            if len(lost):
                alone = count_by_class(labels, len(classes))[lost] == 1
                named = ", ".join(classes[label] for label in lost[:NAMED]) + ", …" * (len(lost) > NAMED)
                advice = (
                    "No share helps a class with one image: give it another, or leave it out."
                    if alone.any()
                    else "Take another share, or a set with more images of each class."
                )
                raise UserError(
                    f"--abrl.validation-share {self.share:g} leaves no {part} image of {named}: a class needs one on "
                    f"either side of the cut through the {len(labels)} training images. {advice}"
                )
            if len(positions) < batch_size:
                raise UserError(
                    f"--abrl.validation-share {self.share:g} leaves {len(positions)} {part} images, fewer than a batch "
                    f"of {batch_size}: pass --abrl.batch-size {len(positions)} or less, or another share."
                )
