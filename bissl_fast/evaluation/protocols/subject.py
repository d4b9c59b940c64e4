"""What a protocol is given: a backbone, a labelled set, how images are shown, and where to tell how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from bissl_fast.data.pipelines.loader import sequential_batches
from bissl_fast.data.sets.dataset import ImageSet, Splits, Targets, is_multilabel
from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.errors import UserError
from bissl_fast.evaluation.features import extract_features
from bissl_fast.training.console import tracked

BATCH = 256  # images per pass; in eval mode it changes no feature but by rounding

Item = TypeVar("Item")


class Track(Protocol):
    """Goes through items and shows how far it is."""

    def __call__(self, items: Iterable[Item], total: int, title: str) -> Iterable[Item]: ...


def silent(items: Iterable[Item], total: int, title: str) -> Iterable[Item]:
    """Shows nothing."""
    return items


@dataclass(frozen=True)
class Score:
    """A test score in percent.

    Attributes:
        value: the score, of several episodes or seeds their mean.
        interval: half the width of its 95 % interval over episodes, where there are any.
        seeds: the score of each, where several models were trained.
    """

    value: float
    interval: float | None = None
    seeds: tuple[float, ...] = ()

    @classmethod
    def over_seeds(cls, found: Sequence[float]) -> Score:
        """The mean over models.

        Example:
            >>> print(Score.over_seeds([50.0, 52.0]))
            51.0 ± 1.4
        """
        return cls(float(np.mean(found)), seeds=tuple(found))

    def __str__(self) -> str:
        spread = self.interval if len(self.seeds) < 2 else float(np.std(self.seeds, ddof=1))
        return f"{self.value:.1f}" if spread is None else f"{self.value:.1f} ± {spread:.1f}"


Scores = dict[str, Score]
"""By key, as in :data:`bissl_fast.evaluation.metrics.METRICS`."""


@dataclass(frozen=True)
class Outcome:
    """What a protocol has found.

    Attributes:
        scores: by which backbones are compared.
        details: what :func:`bissl_fast.evaluation.answers.told` tells beside, by what the keys of the scores begin
            with.
    """

    scores: Scores
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def shown(self) -> Scores:
        """The scores, and of the details what a table has room for."""
        shown = dict(self.scores)
        for name, details in self.details.items():
            beside = {key: details[key] for key in ("mean_per_class", "ece") if key in details}
            beside |= {f"map_{way}": values for way, values in details.get("map", {}).items()}
            shown |= {f"{name}_{key}": Score.over_seeds(values) for key, values in beside.items()}
        return shown


@dataclass(frozen=True)
class Labelled:
    """Features (N, F) float32 of a split, and its labels, (N,) int64 or (N, classes) int8."""

    features: NDArray[np.float32]
    labels: Targets


@dataclass(frozen=True, eq=False)
class Subject:
    """A backbone that is to be scored on a set. It is never changed: neither its weights, nor buffers, nor modes.

    Features are extracted once, when a protocol first asks for them: in eval mode (batch norms use the statistics of
    training), without augmentation, of every image of the split.

    Args:
        backbone: maps images (B, C, H, W) to features (B, F); on `device`.
        splits: labelled images.
        view: how images are shown without augmentation.
        training_view: how they are drawn where the backbone is trained on.
        device: where all of it runs.
        seed: of everything that is drawn.
        name: what the backbone is called.
        console: where progress is shown; left out: nowhere.
        tell: takes a sentence that a user should read.

    Example:
        >>> subject = Subject(backbone, splits, eval_view(96), finetune_view(96), torch.device("cpu"))  # doctest: +SKIP
        >>> subject.test.features.shape  # doctest: +SKIP
        (1880, 512)
    """

    backbone: nn.Module
    splits: Splits
    view: ViewSettings
    training_view: ViewSettings
    device: torch.device
    seed: int = 0
    name: str = "backbone"
    console: Console = field(default_factory=partial(Console, quiet=True))
    tell: Callable[[str], None] = print

    def track(self, items: Iterable[Item], total: int, title: str) -> Iterable[Item]:
        """Goes through items and shows how far it is."""
        return tracked(self.console, items, total, title)

    @cached_property
    def train(self) -> Labelled:
        """Of the training split."""
        return self._extract(self.splits.train)

    @cached_property
    def test(self) -> Labelled:
        """Of the test split, every image of it."""
        return self._extract(self.splits.test)

    def _extract(self, images: ImageSet) -> Labelled:
        batches = sequential_batches(images, self.view, BATCH, self.device)
        title = f"features of {images.name}"
        features, labels = extract_features(self.backbone, self.track(batches, -(-len(images) // BATCH), title))
        if not np.isfinite(features).all():
            raise UserError(f"Features of {images.name} are not finite: the backbone's training diverged.")
        return Labelled(features, labels)


def require_same_classes(splits: Splits, protocol: str) -> None:
    """Raise the sentence for a protocol that learns the classes of the test from training images.

    Raises:
        UserError: if the set has other classes to test than to train.
    """
    if splits.disjoint:
        raise UserError(
            f"--protocol {protocol} learns classes from training images, and {splits.test.name} has other classes: "
            "use --protocol fewshot."
        )


def require_one_label(splits: Splits, protocol: str) -> None:
    """Raise the sentence for a protocol that needs one class per image.

    Raises:
        UserError: if images have several.
    """
    if is_multilabel(splits.test.labels):
        raise UserError(
            f"--protocol {protocol} needs one class per image, and those of {splits.test.name} have several: use "
            "--protocol linear, whose score is then the mean average precision."
        )
