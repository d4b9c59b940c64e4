"""Figures of the report. Each function takes plain data and returns a matplotlib figure; none keeps state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from bissl_fast.errors import UserError
from bissl_fast.evaluation.drawing import (
    COLOURS,
    INK,
    MUTED,
    RULE,
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
from bissl_fast.evaluation.metrics import METRICS

CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#5D3A9B", "#8C6D31")
CLASS_MARKERS = ("o", "^", "s", "D")


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
    figure = blank(4.6)
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
    """Downstream losses and the distance between both backbones, per alternation.

    Args:
        bissl: records of the BiSSL stage with `upper_loss`, `upper_loss_downstream`, `backbone_distance`.

    Raises:
        UserError: if there is nothing to draw.
    """
    implicit, direct = series(bissl, "upper_loss"), series(bissl, "upper_loss_downstream")
    distance = series(bissl, "backbone_distance")
    require_any("upper-level loss", implicit[1], direct[1])
    figure = blank(5.0)
    losses, distances = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    style(losses, "", "downstream loss")
    style(distances, "alternation", r"$\Vert\theta_D - \theta_P\Vert$")
    curve(losses, implicit, COLOURS[0], r"at $\theta_P$, the lower backbone, which BiSSL returns")
    curve(losses, direct, COLOURS[2], r"at $\theta_D$, the upper backbone")
    distances.plot(*distance, color=INK, linewidth=2, **marks(distance[0]))
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
    figure, axes = canvas("alternation", r"relative residual $\Vert b - Ax\Vert / \Vert b\Vert$")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    shades = colormaps["viridis"](np.linspace(0.85, 0.08, len(chosen)))
    for count, shade in zip(chosen, shades, strict=True):
        curve(axes, (steps, residuals[:, count]), shade, f"{count}")
    axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=":")
    counted = "corrections" if any("products_rough" in record for record in rows) else "products"
    axes.legend(title=counted, frameon=False, loc="upper left", bbox_to_anchor=(1.005, 1.02), alignment="left")
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


def sample_views(images: NDArray[np.uint8], most: int = 10) -> Figure:
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
    figure = Figure(figsize=(9.0, 9.0 * rows / (columns + 0.6)), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(left=0.6 / (columns + 0.6), right=0.998, bottom=0.01, top=0.99, wspace=0.04, hspace=0.04)
    for row, column in product(range(rows), range(columns)):
        cell = axes[row, column]
        cell.imshow(images[column, row], interpolation="lanczos")
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
        if column == 0:
            cell.set_ylabel("image" if row == 0 else f"view {row}", color=INK, fontsize=10, labelpad=6)
    return figure


def feature_maps(maps: Sequence[tuple[str, NDArray[np.float32]]], labels: NDArray[np.int64]) -> Figure:
    """t-SNE maps of the backbones' features before fine-tuning, side by side (Figure 3 of the paper).

    Args:
        maps: title and points (N, 2) of each backbone.
        labels: (N,) class of each point. The first 32 classes have a colour and marker each; the others
            are grey.
    """
    columns = len(maps) if len(maps) <= 3 else 2 if len(maps) == 4 else 3
    rows = -(-len(maps) // columns)
    figure = blank(rows * {1: 4.6, 2: 4.6, 3: 3.3}[columns])
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    looks = dict(zip(np.unique(labels).tolist(), product(CLASS_MARKERS, CLASS_COLOURS), strict=False))
    size = float(np.clip(9000 / len(labels), 8, 26)) * (0.6 if columns == 3 else 1)
    for axes, (title, points) in zip(grid, maps, strict=False):
        for label in np.unique(labels)[::-1].tolist():
            marker, colour = looks.get(label, ("o", "#c4c9d0"))
            x, y = points[labels == label].T
            axes.scatter(x, y, s=size, c=colour, marker=marker, alpha=0.75, linewidths=0)
        axes.set_title(title, color=INK, fontsize=11)
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
