"""Which classes are taken for which others, with images that show it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import listed, reference_first
from bissl_fast.evaluation.grid import Cell, Grid
from bissl_fast.evaluation.report.page import Section
from bissl_fast.evaluation.run_folder import strange

if TYPE_CHECKING:
    from bissl_fast.evaluation.run_folder import RunFolder

Predictions = Mapping[str, NDArray[np.int64]]
"""By arm: the class that each fine-tuned model gives each test image, (seeds, N)."""

MOST = 6  # pairs that are shown
MISTAKEN = 3  # images of each
TITLE = "Classes most often confused"
CAPTION = (
    "Test images that fine-tuned models give to another class than theirs. The pairs are those with the largest share "
    "of mistaken images, each model weighing the same; percentages are means over the seeds of an arm. Left: the "
    "images that most models mistake. Right: one of the class that they are taken for, which most models recognise."
)


def shares(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """How often images of each class (row) are given to each class (column), of the row's images.

    Args:
        labels: (N,).
        predicted: (seeds, N).
        classes: how many there are.

    Returns:
        (classes, classes); rows of classes without an image are zero, others add up to 1.

    Example:
        >>> shares(np.array([0, 0, 1]), np.array([[0, 1, 1]]), 2).tolist()
        [[0.5, 0.5], [0.0, 1.0]]
    """
    counts = np.zeros((classes, classes))
    np.add.at(counts, (np.broadcast_to(labels, predicted.shape), predicted), 1)
    found: NDArray[np.float64] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return found


def most_confused(labels: NDArray[np.int64], predictions: Predictions, classes: int) -> NDArray[np.int64]:
    """The pairs (class, class that it is taken for) with the largest shares over all models, (P, 2), P ≤ 6."""
    total = shares(labels, np.concatenate(list(predictions.values())), classes)
    np.fill_diagonal(total, 0)
    order = np.argsort(-total, axis=None, kind="stable")[:MOST]
    pairs = np.stack(np.unravel_index(order, total.shape), axis=1)
    return pairs[total[pairs[:, 0], pairs[:, 1]] > 0].astype(np.int64)


def examples(labels: NDArray[np.int64], predictions: Predictions, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each pair the images that most models mistake so, then one of the other class that most recognise.

    Returns:
        (P, 4) indices of images, -1 where there is none.
    """
    every = np.concatenate(list(predictions.values()))  # (models, N)
    found = np.full((len(pairs), MISTAKEN + 1), -1, dtype=np.int64)
    for row, (true, called) in zip(found, pairs, strict=True):
        votes = (every == called).sum(axis=0)
        mistaken = np.flatnonzero((labels == true) & (votes > 0))
        mistaken = mistaken[np.argsort(-votes[mistaken], kind="stable")][:MISTAKEN]
        row[: len(mistaken)] = mistaken
        own = np.flatnonzero(labels == called)
        if len(own):
            row[-1] = own[np.argmax(votes[own])]
    return found


def confused(run: RunFolder) -> Section:
    """The section of the report.

    Raises:
        UserError: if the test has left no predictions, as of a set with several classes per image, or other arrays.
    """
    with strange("test/predictions.npz or test/confused.npz"):
        return _confused(run)


def _confused(run: RunFolder) -> Section:
    images, indices, pairs = run.arrays("test/confused.npz", ("images", "indices", "pairs"))
    names, titles = set(run.array_names("test/predictions.npz")), run.titles()
    arms = [name for name in reference_first(run.arms()) if name in names]
    if not arms:
        raise UserError("test/predictions.npz has the predictions of no arm of this run.")
    labels, classes, *predicted = run.arrays("test/predictions.npz", ("labels", "classes", *arms))
    found = {titles[arm]: shares(labels, rows, len(classes)) for arm, rows in zip(arms, predicted, strict=True)}
    items, rows = [], []
    for (true, called), tiles, shown in zip(pairs, images, indices, strict=True):
        of, taken = str(classes[true]), str(classes[called])
        told = {title: f"{100 * share[true, called]:.0f}\u00a0%" for title, share in found.items()}
        count = int((labels == true).sum())
        words = listed([f"{share} with {title}" for title, share in told.items()])
        items.append(
            f'<li><div class="strip">{_strip(tiles[:-1][shown[:-1] >= 0], f"Test images of {of}, taken for {taken}")}'
            f"{_strip(tiles[-1:][shown[-1:] >= 0], f'A test image of {taken}')}</div>"
            f"<p><b>{escape(of)}</b> taken for <b>{escape(taken)}</b>: {escape(words)}, of {count} images.</p></li>"
        )
        rows.append((Cell(of), Cell(taken), *map(Cell, told.values())))
    grid = Grid(
        ("Images of", "Taken for", *found), tuple(rows), "Share of the class's test images, mean over the seeds."
    )
    right = listed([f"{_accuracy(share):.1f}\u00a0% with {title}" for title, share in found.items()])
    none = "" if len(pairs) else "No test image is mistaken. "
    seen = f"{none}Of an average class, images are recognised at a rate of {right}."
    return Section("confused", TITLE, CAPTION, f'<ul class="pairs">{"".join(items)}</ul>', seen, grid)


def _accuracy(share: NDArray[np.float64]) -> float:
    """Mean over the classes that have an image, in percent."""
    there = share.sum(axis=1) > 0
    return 100 * float(np.diag(share)[there].mean())


def _strip(tiles: NDArray[np.uint8], label: str) -> str:
    """Tiles (k, S, S, 3) side by side as an `<img>`; nothing where there is none."""
    if not len(tiles):
        return ""
    buffer = BytesIO()
    Image.fromarray(np.concatenate(list(tiles), axis=1)).save(buffer, "PNG")
    source = b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{source}" alt="{escape(label)}" style="flex: {len(tiles)} 1 0">'
