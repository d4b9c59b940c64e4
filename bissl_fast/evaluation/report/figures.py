"""Figures of the report. Each function takes plain data and returns a matplotlib figure; none keeps state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from bissl_fast.errors import UserError
from bissl_fast.evaluation.metrics import METRICS
from bissl_fast.evaluation.report.drawing import (
    COLOURS,
    DOTS,
    INK,
    MUTED,
    RULE,
    WIDTH,
    Look,
    Records,
    Series,
    blank,
    canvas,
    curve,
    legend,
    marks,
    require_any,
    series,
    style,
)

CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#5D3A9B", "#8C6D31")
CLASS_MARKERS = {"o": "●", "^": "▲", "s": "■", "D": "◆"}
MOST_IMAGES = 10  # whose views are shown


@dataclass(frozen=True)
class PretextStage:
    """A stage that minimises a pretext loss, and where its records lie on the axis of pretext steps.

    Attributes:
        label: of its curve.
        look: of the arm that it belongs to.
        records: with `loss`, and where they are logged `spread` and `effective_rank`.
        loss: key of the pretext loss.
        start: pretext steps taken before.
        stride: pretext steps per record's step.
        line: matplotlib's line style; stages of one arm differ by it.
    """

    label: str
    look: Look
    records: Records
    loss: str = "loss"
    start: float = 0.0
    stride: float = 1.0
    line: Any = "-"

    def over_steps(self, key: str) -> Series:
        """The pretext steps (N,) and the values (N,) under `key`."""
        steps, values = series(self.records, key)
        return self.start + self.stride * steps, values


def pretext_losses(stages: Sequence[PretextStage]) -> Figure:
    """Pretext loss of every stage that has one over the pretext steps taken.

    Args:
        stages: in the order of drawing.

    Raises:
        UserError: if there is nothing to draw.
    """
    found = [(stage, stage.over_steps(stage.loss)) for stage in stages]
    require_any("pretext loss", *(losses for _, (_, losses) in found))
    figure, axes = canvas("pretext step", "pretext loss")
    for stage, points in found:
        curve(axes, points, stage.look.colour, stage.label, stage.line, stage.look.marker)
        if stage.start and len(points[0]):
            axes.axvline(stage.start, color=MUTED, linewidth=0.8, linestyle=":")
            axes.annotate(
                f"{stage.look.title} stage begins",
                (stage.start, 1),
                (-5, -4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right",
                va="top",
                color=MUTED,
                fontsize=8.5,
            )
    legend(axes)
    return figure


def embedding_collapse(stages: Sequence[PretextStage]) -> Figure:
    """Spread and effective rank of the embeddings over the pretext steps taken.

    Args:
        stages: in the order of drawing; those that have logged neither are left out.

    Raises:
        UserError: if there is nothing to draw.
    """
    keys = ("spread", "effective_rank")
    found = {key: [(stage, stage.over_steps(key)) for stage in stages] for key in keys}
    require_any("spread or effective rank of embeddings", *(y for key in keys for _, (_, y) in found[key]))
    figure = blank(4.2)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, key, xlabel in zip(panels, keys, ("", "pretext step"), strict=True):
        style(axes, xlabel, key.replace("_", " "))
        for stage, points in found[key]:
            curve(axes, points, stage.look.colour, stage.label, stage.line, stage.look.marker)
        highest = max((float(y) for _, (_, values) in found[key] for y in values if np.isfinite(y)), default=0.0)
        axes.set_ylim(0, 1.08 * highest or 1.0)  # also of what hardly changes
    legend(panels[0])
    return figure


def upper_level(bissl: Records) -> Figure:
    """Losses of both levels and the distance between both backbones, per alternation.

    Args:
        bissl: records of the BiSSL stage with `upper_loss`, `upper_loss_downstream`, `lower_loss`, `backbone_distance`.

    Raises:
        UserError: if there is nothing to draw.
    """
    implicit, direct = series(bissl, "upper_loss"), series(bissl, "upper_loss_downstream")
    distance = series(bissl, "backbone_distance")
    require_any("upper-level loss", implicit[1], direct[1])
    figure = blank(5.8)
    losses, lower, distances = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    style(losses, "", "downstream loss")
    style(lower, "", "pretext loss")
    style(distances, "alternation", "‖θ_D − θ_P‖")
    curve(losses, implicit, COLOURS[0], "of θ_P, the lower backbone, which BiSSL returns")
    curve(losses, direct, COLOURS[2], "of θ_D, the upper backbone")
    curve(lower, series(bissl, "lower_loss"), COLOURS[0], "of θ_P")
    curve(distances, distance, INK, "between the backbones")
    distances.set_ylim(bottom=0)
    legend(losses)
    return figure


def solver_residuals(bissl: Records, most: int = 8) -> Figure:
    """Relative residual of the linear solve, one line per number of products, over the alternations.

    Args:
        bissl: records of the BiSSL stage with `cg_residuals`, a list per alternation.
        most: draw at most this many lines, evenly chosen, the last always among them.

    Raises:
        UserError: if there is nothing to draw.
    """
    rows = [record for record in bissl if len(record.get("cg_residuals") or ()) > 1]
    require_any("CG residual", np.arange(len(rows)))
    products = min(len(record["cg_residuals"]) for record in rows) - 1
    chosen = np.unique(np.linspace(products, 1, min(products, most)).round().astype(int))
    steps = np.array([record["step"] for record in rows], dtype=float)
    residuals = np.array([record["cg_residuals"][: products + 1] for record in rows], dtype=float)
    figure, axes = canvas("alternation", "relative residual ‖b − Ax‖ / ‖b‖")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    shades = [to_rgba(COLOURS[0], alpha) for alpha in np.linspace(0.4, 1, len(chosen))]
    for count, shade in zip(chosen, shades, strict=True):
        curve(axes, (steps, residuals[:, count]), shade, f"{count}")
    axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=":")
    counted = "corrections" if any("products_rough" in record for record in rows) else "products"
    place = (1.005, 1.02)
    names = axes.legend(
        title=counted, frameon=False, loc="upper left", bbox_to_anchor=place, alignment="left", labelcolor=INK
    )
    names.get_title().set_color(INK)
    return figure


def largest_curvature(bissl: Records) -> Figure:
    """The largest eigenvalue that the solver's products have shown of the lower level's Hessian, per alternation.

    Args:
        bissl: records of the BiSSL stage with `curvature`.

    Raises:
        UserError: if there is nothing to draw.
    """
    found = series(bissl, "curvature")
    require_any("curvature", found[1])
    figure, axes = canvas("alternation", "largest Ritz value of ∇²L^P")
    curve(axes, found, COLOURS[0], "lower bound of λ_max")
    axes.set_ylim(bottom=min(0.0, float(found[1].min())))
    return figure


def finetuning_curves(arms: Sequence[tuple[Look, Sequence[Records]]]) -> Figure:
    """Validation score during fine-tuning: mean over the seeds with a band of one standard deviation.

    Args:
        arms: in the order of drawing; of each one list of epoch records per seed, with `epoch` and, in percent,
            `val_top1` or `val_map`.

    Raises:
        UserError: if there is nothing to draw.
    """
    keys = {key for _, runs in arms for run in runs for record in run for key in record}
    metric = next((metric for metric in METRICS if f"val_{metric.key}" in keys), METRICS[0])
    drawn = [(look, _over_seeds(runs, f"val_{metric.key}")) for look, runs in arms if runs]
    require_any("validation accuracy", *(epochs for _, (epochs, _) in drawn))
    figure, axes = canvas("fine-tuning epoch", f"validation {metric.words} (%)")
    for look, (epochs, scores) in drawn:
        if not len(epochs):
            continue
        mean = scores.mean(axis=0)
        label = f"{look.title}, {len(scores)} seed" + ("s" if len(scores) > 1 else "")
        axes.plot(epochs, mean, color=look.colour, linewidth=2, label=label, **marks(epochs, look.marker))
        if len(scores) > 1:
            std = scores.std(axis=0, ddof=1)
            axes.fill_between(epochs, mean - std, mean + std, color=look.colour, alpha=0.18, linewidth=0)
    legend(axes)
    return figure


def sample_views(images: NDArray[np.uint8], most: int = MOST_IMAGES) -> Figure:
    """Pretext images above the views that the backbone was trained on.

    Args:
        images: (k, n_views + 1, S, S, 3) uint8: the image, then its views.
        most: draw at most this many images.

    Raises:
        UserError: if the array is empty or of another shape.
    """
    if images.ndim != 5 or images.shape[-1] != 3 or 0 in images.shape:
        raise UserError(f"Sample views of shape {images.shape} cannot be drawn: expected (k, views, S, S, 3).")
    images = images[:most]
    columns, rows = images.shape[:2]
    figure = Figure(figsize=(WIDTH, WIDTH * rows / (columns + 0.5)), dpi=DOTS)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(left=0.5 / (columns + 0.5), right=0.998, bottom=0.01, top=0.99, wspace=0.04, hspace=0.04)
    for row, column in product(range(rows), range(columns)):
        cell = axes[row, column]
        cell.imshow(images[column, row], interpolation="none")
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
        if column == 0:
            cell.set_ylabel("image" if row == 0 else f"view {row}", color=INK, fontsize=9, labelpad=6)
    return figure


def class_marks() -> list[tuple[str, str]]:
    """The letter and the colour that stand for each class of a map which has a look of its own."""
    return [(CLASS_MARKERS[marker], colour) for marker, colour in product(CLASS_MARKERS, CLASS_COLOURS)]


def feature_maps(
    maps: Sequence[tuple[str, NDArray[np.float32]]], labels: NDArray[np.int64], columns: int | None = None
) -> Figure:
    """t-SNE maps of backbones' features, side by side (Figure 3 of the paper).

    Args:
        maps: title and points (N, 2) of each backbone.
        labels: (N,) class of each point. The first 32 classes have a colour and marker each; the others
            are grey.
        columns: of the maps, where two or three; else as many as there is room for.
    """
    if columns not in (2, 3):
        columns = len(maps) if len(maps) <= 3 else 2 if len(maps) == 4 else 3
    rows = -(-len(maps) // columns)
    figure = blank(rows * {1: 5.0, 2: 2.9, 3: 2.0}[columns])
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    looks = dict(zip(np.unique(labels).tolist(), product(CLASS_MARKERS, CLASS_COLOURS), strict=False))
    size = float(np.clip(4500 / len(labels), 5, 16)) * (0.6 if columns == 3 else 1)
    for axes, (title, points) in zip(grid, maps, strict=False):
        for label in np.unique(labels)[::-1].tolist():
            marker, colour = looks.get(label, ("o", "#c4c9d0"))
            x, y = points[labels == label].T
            axes.scatter(x, y, s=size, c=colour, marker=marker, alpha=0.75, linewidths=0)
        axes.set_title(title, color=INK, fontsize=10 if columns < 3 else 8.5)
        axes.set(xticks=[], yticks=[], box_aspect=1)
        axes.spines[:].set_color(RULE)
    for axes in grid[len(maps) :]:
        axes.remove()
    return figure


def _over_seeds(runs: Sequence[Records], key: str) -> Series:
    """Epochs (E,) that every seed has finished, and their values of a key (seeds, E)."""
    by_epoch = [{record["epoch"]: record[key] for record in run if {"epoch", key} <= record.keys()} for run in runs]
    epochs = sorted(set(by_epoch[0]).intersection(*by_epoch))
    scores = np.array([[run[epoch] for epoch in epochs] for run in by_epoch], dtype=float)
    return np.array(epochs, dtype=float), scores
