"""Figures of the report. Each function takes plain data and returns a matplotlib figure; none keeps state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from bissl_fast.errors import UserError
from bissl_fast.evaluation.metrics import METRICS

Records = Sequence[Mapping[str, Any]]
Series = tuple[NDArray[np.float64], NDArray[np.float64]]

BISSL, BASELINE = "#0072B2", "#D55E00"  # Okabe & Ito: told apart with every kind of colour vision
INK, MUTED, RULE = "#24292f", "#6b7280", "#e5e7eb"
CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#5D3A9B", "#8C6D31")
CLASS_MARKERS = ("o", "^", "s", "D")


def pretext_losses(warmup: Records, bissl: Records, baseline: Records, lower_steps: float) -> Figure:
    """Pretext loss of both arms over the pretext steps taken.

    Args:
        warmup: records of the pretext warm-up, with `loss`.
        bissl: records of the BiSSL stage, one per alternation, with `lower_loss`.
        baseline: records of the baseline's pretext stage, with `loss`.
        lower_steps: lower-level steps per alternation (N_L); puts both arms on one axis.

    Raises:
        UserError: if there is nothing to draw.
    """
    steps, losses = _series(warmup, "loss")
    start = float(steps[-1]) if len(steps) else 0.0
    alternations, lower = _series(bissl, "lower_loss")
    baseline_series = _series(baseline, "loss")
    _require("pretext loss", losses, lower, baseline_series[1])
    figure, axes = _canvas("pretext step", "NT-Xent loss")
    _curve(axes, baseline_series, BASELINE, "Only pretext (baseline)")
    _curve(axes, (steps, losses), BISSL, "BiSSL: pretext warm-up", linestyle=(0, (4, 1.5)))
    _curve(axes, (start + alternations * lower_steps, lower), BISSL, "BiSSL: lower level")
    if len(steps) and len(lower):
        axes.axvline(start, color=MUTED, linewidth=0.8, linestyle=":")
        axes.annotate(
            "BiSSL stage begins",
            (start, 1),
            (-5, -4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            va="top",
            color=MUTED,
            fontsize=8.5,
        )
    _legend(axes)
    return figure


def upper_level(bissl: Records) -> Figure:
    """Downstream losses and the distance between both backbones, per alternation.

    Args:
        bissl: records of the BiSSL stage with `upper_loss`, `upper_loss_downstream`, `backbone_distance`.

    Raises:
        UserError: if there is nothing to draw.
    """
    implicit, direct = _series(bissl, "upper_loss"), _series(bissl, "upper_loss_downstream")
    distance = _series(bissl, "backbone_distance")
    _require("upper-level loss", implicit[1], direct[1])
    figure = _figure(5.0)
    losses, distances = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _style(losses, "", "downstream loss")
    _style(distances, "alternation", r"$\Vert\theta_D - \theta_P\Vert$")
    _curve(losses, implicit, BISSL, r"at $\theta_P$, the lower backbone, which BiSSL returns")
    _curve(losses, direct, "#009E73", r"at $\theta_D$, the upper backbone")
    distances.plot(*distance, color=INK, linewidth=2, marker=_marker(distance[0]), markersize=4)
    distances.set_ylim(bottom=0)
    _legend(losses)
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
    _require("CG residual", np.arange(len(rows)))
    products = min(len(record["cg_residuals"]) for record in rows) - 1
    chosen = np.unique(np.linspace(products, 1, min(products, most)).round().astype(int))
    steps = np.array([record["step"] for record in rows], dtype=float)
    residuals = np.array([record["cg_residuals"][: products + 1] for record in rows], dtype=float)
    figure, axes = _canvas("alternation", r"relative residual $\Vert b - Ax\Vert / \Vert b\Vert$")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    shades = colormaps["viridis"](np.linspace(0.85, 0.08, len(chosen)))
    for count, shade in zip(chosen, shades, strict=True):
        _curve(axes, (steps, residuals[:, count]), shade, f"{count}")
    axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=":")
    axes.legend(title="products", frameon=False, loc="upper left", bbox_to_anchor=(1.005, 1.02), alignment="left")
    return figure


def finetuning_curves(bissl: Sequence[Records], baseline: Sequence[Records]) -> Figure:
    """Validation score during fine-tuning: mean over the seeds with a band of one standard deviation.

    Args:
        bissl: one list of epoch records per seed, with `epoch` and, in percent, `val_top1` or `val_map`.
        baseline: the same for fine-tuning after the baseline.

    Raises:
        UserError: if there is nothing to draw.
    """
    arms = (("Only FT (baseline)", baseline, BASELINE), ("BiSSL", bissl, BISSL))
    keys = {key for _, runs, _ in arms for run in runs for record in run for key in record}
    metric = next((metric for metric in METRICS if f"val_{metric.key}" in keys), METRICS[0])
    drawn = [(name, colour, _over_seeds(runs, f"val_{metric.key}")) for name, runs, colour in arms if runs]
    _require("validation accuracy", *(epochs for _, _, (epochs, _) in drawn))
    figure, axes = _canvas("fine-tuning epoch", f"validation {metric.words} (%)")
    for name, colour, (epochs, scores) in drawn:
        if not len(epochs):
            continue
        mean = scores.mean(axis=0)
        label = f"{name}, {len(scores)} seed" + ("s" if len(scores) > 1 else "")
        axes.plot(epochs, mean, color=colour, linewidth=2, label=label, marker=_marker(epochs), markersize=4)
        if len(scores) > 1:
            std = scores.std(axis=0, ddof=1)
            axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
    _legend(axes)
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


def feature_maps(baseline: NDArray[np.float32], bissl: NDArray[np.float32], labels: NDArray[np.int64]) -> Figure:
    """t-SNE maps of both backbones' features before fine-tuning, side by side (Figure 3 of the paper).

    Args:
        baseline: (N, 2) map of the features after pretext training only.
        bissl: (N, 2) map of the features after BiSSL.
        labels: (N,) class of each point. The first 32 classes have a colour and marker each; the others
            are grey.
    """
    figure = _figure(4.6)
    looks = dict(zip(np.unique(labels).tolist(), product(CLASS_MARKERS, CLASS_COLOURS), strict=False))
    size = float(np.clip(9000 / len(labels), 8, 26))
    for axes, points, title in zip(figure.subplots(1, 2), (baseline, bissl), ("Only pretext", "BiSSL"), strict=True):
        for label in np.unique(labels)[::-1].tolist():
            marker, colour = looks.get(label, ("o", "#c4c9d0"))
            x, y = points[labels == label].T
            axes.scatter(x, y, s=size, c=colour, marker=marker, alpha=0.75, linewidths=0)
        axes.set_title(title, color=INK, fontsize=11)
        axes.set(xticks=[], yticks=[], box_aspect=1)
        axes.spines[:].set_color(RULE)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes for the same figure."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(9.0, height), dpi=150, layout=ConstrainedLayoutEngine(hspace=0.06))
    FigureCanvasAgg(figure)
    return figure


def _canvas(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = _figure(4.0)
    axes = figure.subplots()
    _style(axes, xlabel, ylabel)
    return figure, axes


def _style(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.tick_params(colors=MUTED, length=0, labelcolor=INK, labelsize=9)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, labelcolor=INK, fontsize=9.5)


def _curve(axes: Axes, series: Series, colour: Any, label: str, linestyle: Any = "-") -> None:
    """Draw the values as a faint line under their running mean."""
    x, y = series
    if not len(x):
        return
    window = len(y) // 30
    if window > 1:
        axes.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
        y = _running_mean(y, window)
    axes.plot(x, y, color=colour, linewidth=2, linestyle=linestyle, label=label, marker=_marker(x), markersize=4)


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _marker(x: NDArray[np.float64]) -> str:
    return "o" if len(x) <= 12 else ""  # a single point has no line


def _series(records: Records, key: str) -> Series:
    pairs = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _over_seeds(runs: Sequence[Records], key: str) -> Series:
    """Epochs (E,) that every seed has finished, and their values of a key (seeds, E)."""
    by_epoch = [{record["epoch"]: record[key] for record in run if {"epoch", key} <= record.keys()} for run in runs]
    epochs = sorted(set(by_epoch[0]).intersection(*by_epoch))
    scores = np.array([[run[epoch] for epoch in epochs] for run in by_epoch], dtype=float)
    return np.array(epochs, dtype=float), scores


def _require(what: str, *series: NDArray[Any]) -> None:
    if not any(len(values) for values in series):
        raise UserError(f"No {what} has been logged yet.")
