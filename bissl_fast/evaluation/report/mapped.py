"""Features of the test images before and after fine-tuning, as maps of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bissl_fast.data.sets.dataset import is_multilabel
from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import BASELINE, reference_first
from bissl_fast.evaluation.features import embed, neighbours_alike
from bissl_fast.evaluation.report import figures
from bissl_fast.evaluation.report.drawing import plain
from bissl_fast.evaluation.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 400  # of a map: more take long and hide each other


@dataclass(frozen=True)
class Mapped:
    """Features of one backbone, of the test images that a map shows.

    Attributes:
        title: above the map.
        features: (N, F).
        labels: (N,).
    """

    title: str
    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def draw(run: RunFolder) -> Figure:
    """The maps.

    Raises:
        UserError: if the run has no features yet, or none that can be mapped.
    """
    found = _all(run)
    maps = [(each.title, embed(each.features, seed=0)) for each in found]
    return figures.feature_maps(maps, found[0].labels, columns=len(run.arms()))


def tell(run: RunFolder) -> str:
    """What the maps show, in a sentence."""
    return neighbours_told(_all(run))


def neighbours_told(found: Sequence[Mapped]) -> str:
    """How often the nearest image of each map's is of the same class, in a sentence."""
    told = [f"{each.title} {100 * neighbours_alike(each.features, each.labels):.0f}\u00a0%" for each in found]
    count = len(found[0].labels)
    return f"{count} test images. Their nearest neighbour among them is of the same class: {', '.join(told)}."


def key(run: RunFolder) -> str:
    """The names of the classes, each in its look, as HTML; empty where the run does not tell them."""
    try:
        (classes,) = run.arrays("test/predictions.npz", ("classes",))
    except UserError:  # of several classes per image, and of earlier versions
        return ""
    shown = [str(classes[label]) for label in np.unique(_all(run)[0].labels) if label < len(classes)]
    items = (
        f'<li><span aria-hidden="true" style="color: var(--{colour[1:].lower()})">{mark}</span> {escape(name)}</li>'
        for name, (mark, colour) in zip(shown, figures.class_marks(), strict=False)
    )
    return f'<ul class="key">{"".join(items)}</ul>'


def _all(run: RunFolder) -> list[Mapped]:
    """Before fine-tuning and, where the test has kept it, after."""
    titles = run.titles()
    found = mapped_of(run, "test/features.npz", titles | {BASELINE: "Only pretext"})
    with suppress(UserError):  # which runs of earlier versions lack
        found += mapped_of(run, "test/tuned.npz", {name: f"{title}, fine-tuned" for name, title in titles.items()})
    return found


def mapped_of(run: RunFolder, file: str, titles: Mapping[str, str]) -> list[Mapped]:
    """What a file holds of each arm of a run, of images evenly over the split.

    Raises:
        UserError: if it is not there, or has none of the arms.
    """
    kept = set(run.array_names(file))
    names = [name for name in reference_first(run.arms()) if name in kept]
    if not names:
        raise UserError(f"{file} has the features of no arm of this run.")
    *features, labels = run.arrays(file, (*names, "labels"))
    drawable = np.arange(len(labels))
    if is_multilabel(labels):
        drawable = np.flatnonzero((labels == 1).sum(axis=1) == 1)  # which one class names
        labels = labels.argmax(axis=1)
    count = len(drawable)
    chosen = drawable[np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int)]
    return [
        Mapped(plain(titles[name]), rows[chosen], labels[chosen]) for name, rows in zip(names, features, strict=True)
    ]
