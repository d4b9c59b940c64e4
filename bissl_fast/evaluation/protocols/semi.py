"""Semi-supervised evaluation: fine-tuning with the labels of a small share of the training images (GeSSL, section 6.3).

The protocol is Zbontar et al.'s ("Barlow Twins", ICML 2021): two learning rates, one of the classifier and one of the
backbone, both falling to 0 by a half cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bissl_fast.data.sets.dataset import ImageSet, Splits
from bissl_fast.data.sets.splits import labelled_share
from bissl_fast.errors import UserError
from bissl_fast.evaluation.protocols.subject import (
    Outcome,
    Score,
    Scores,
    Subject,
    require_one_label,
    require_same_classes,
)
from bissl_fast.evaluation.protocols.tuning import Tuning, tested, tuned


@dataclass(frozen=True)
class SemiSettings:
    """Fine-tuning with few labels; the defaults are GeSSL's (section 6.3).

    Attributes:
        shares: of the training images whose labels are used, the same share of each class, but at least one image.
        head_rates: first learning rate of the classifier for each share.
        backbone_rates: likewise of the backbone.
        epochs: length, over the images of the share.
        batch_size: images per step, or all of the share where there are fewer.
        momentum: of SGD.
        weight_decay: added to the gradient.
    """

    shares: tuple[float, ...] = (0.01, 0.1)
    head_rates: tuple[float, ...] = (0.05, 1.0)
    backbone_rates: tuple[float, ...] = (1e-4, 0.01)
    epochs: int = 50
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.shares) == len(self.head_rates) == len(self.backbone_rates) > 0:
            raise UserError("--semi.shares, --semi.head-rates and --semi.backbone-rates must be equally many.")
        if not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"--semi.shares must lie in (0, 1], found {self.shares}.")
        if self.epochs < 1 or self.batch_size < 2:
            raise UserError("--semi.epochs must be at least 1 and --semi.batch-size at least 2.")

    def tuning(self, head_rate: float, backbone_rate: float, seed: int) -> Tuning:
        """Of one share."""
        rates = (head_rate, backbone_rate)
        return Tuning(*rates, seed, seed, self.epochs, self.batch_size, self.weight_decay, self.momentum)


def require(splits: Splits) -> None:
    """Raise the sentence for a set that it makes no sense on."""
    require_one_label(splits, "semi")
    require_same_classes(splits, "semi")


def semi(subject: Subject, settings: SemiSettings, folder: Path | None = None) -> Outcome:
    """`semi_1_top1`, `semi_1_top5`, `semi_10_top1` and so on, of all test images after the last epoch.

    Args:
        subject: a backbone and a set.
        settings: of the fine-tuning.
        folder: in which each share is a stage, so that what is broken off goes on.

    Raises:
        UserError: if images have several classes, the set has other classes to test than to train, or fine-tuning
            diverges.
    """
    require(subject.splits)
    scores: Scores = {}
    for share, head_rate, backbone_rate in zip(
        settings.shares, settings.head_rates, settings.backbone_rates, strict=True
    ):
        images, name = labelled_part(subject.splits.train, share, subject.seed), f"semi_{100 * share:g}"
        tuning = settings.tuning(head_rate, backbone_rate, subject.seed)
        network = tuned(subject, f"{name}-{subject.name}", images, tuning, folder=folder)
        found = tested(subject, network, subject.splits.test, tuning)
        scores |= {f"{name}_{key}": Score(value) for key, value in found.metrics.items()}
    return Outcome(scores)


def labelled_part(train: ImageSet, share: float, seed: int) -> ImageSet:
    """The same share of every class, at least one image of each; drawn by the seed."""
    assert train.labels is not None
    rows = labelled_share(train.labels.astype("int64", copy=False), share, seed)
    return train.subset(rows, f"{train.name}, {100 * share:g} %")
