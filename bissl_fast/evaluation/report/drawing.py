"""The look that all figures share: canvas, axes, curves, and colours that every kind of colour vision tells apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bissl_fast.errors import UserError

Records = Sequence[Mapping[str, Any]]
Series = tuple[NDArray[np.float64], NDArray[np.float64]]

INK, MUTED, RULE = "#24292f", "#6b7280", "#e5e7eb"
# Six of Okabe & Ito, Color Universal Design, and two dark ones.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#3B1F6B", "#5C3A00")
OWN = {"bissl": 0, "baseline": 1, "gessl": 2, "fussl": 3, "abrl": 4}  # an arm has one colour in every report
MARKERS = ("", "s", "^", "D")  # of arms beyond the colours
LONGEST = 32  # of a name in a legend, in letters
WIDTH = 5.4  # inches: so narrow that ten-point words can still be read where a phone shows the figure
DOTS = 200  # per inch of a PNG


@dataclass(frozen=True)
class Look:
    """How an arm is drawn.

    Attributes:
        title: in legends and above maps.
        colour: of its lines.
        marker: sparsely on its lines, where the colours do not suffice.
    """

    title: str
    colour: str
    marker: str = ""


def looks(titles: Mapping[str, str]) -> dict[str, Look]:
    """A look for each arm, by name.

    Args:
        titles: by name.

    Example:
        >>> [look.colour for look in looks({"bissl": "BiSSL", "mine": "Mine"}).values()]
        ['#0072B2', '#009E73']
    """
    own = {name: OWN[name] for name in titles if name in OWN}
    free = [index for index in range(len(COLOURS) * len(MARKERS)) if index not in {0, 1, *own.values()}]
    others = (name for name in titles if name not in OWN)
    place = own | {name: free[index % len(free)] for index, name in enumerate(others)}
    return {
        name: Look(plain(title), COLOURS[place[name] % len(COLOURS)], MARKERS[place[name] // len(COLOURS)])
        for name, title in titles.items()
    }


def plain(text: str) -> str:
    """Text from outside as a figure shows it: cut where it is long, and no mathematics in it."""
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return text.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes for the same figure."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def blank(height: float) -> Figure:
    """A figure of the report's width, `height` inches high."""
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS, layout=ConstrainedLayoutEngine(hspace=0.06))
    FigureCanvasAgg(figure)
    return figure


def canvas(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = blank(3.2)
    axes = figure.subplots()
    style(axes, xlabel, ylabel)
    return figure, axes


def style(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Quiet axes with integers below."""
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.tick_params(colors=MUTED, length=0, labelcolor=INK, labelsize=9)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def rows(height: float, xlabel: str) -> tuple[Figure, Axes]:
    """A figure with one row above the other, the first on top."""
    figure = blank(height)
    axes = figure.subplots()
    style(axes, xlabel, "")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    return figure, axes


def legend(axes: Axes) -> None:
    """The names of the curves, above the axes, side by side where they are short."""
    longest = max((len(str(label)) for label in axes.get_legend_handles_labels()[1]), default=1)
    columns = max(1, min(3, 66 // (longest + 7)))
    place = (-0.02, 1.0)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=place, ncols=columns, labelcolor=INK, fontsize=9)


def curve(axes: Axes, points: Series, colour: Any, label: str, linestyle: Any = "-", marker: str = "") -> None:
    """Draw the values as a faint line under their running mean."""
    x, y = points
    if not len(x):
        return
    window = len(y) // 30
    if window > 1:
        axes.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
        y = _running_mean(y, window)
    axes.plot(x, y, color=colour, linewidth=2, linestyle=linestyle, label=label, **marks(x, marker))


def marks(x: NDArray[np.float64], marker: str = "") -> dict[str, Any]:
    """Markers of a line over `x`: at every point of a short one, since a single point has no line; else sparse."""
    short = len(x) <= 12
    return {"marker": marker or ("o" if short else ""), "markersize": 4, "markevery": 1 if short else len(x) // 8}


def series(records: Records, key: str) -> Series:
    """Steps (N,) and values (N,) of the records that have a number under `key`."""
    pairs = [(record["step"], record[key]) for record in records if isinstance(record.get(key), int | float)]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def require_any(what: str, *values: NDArray[Any]) -> None:
    """Raise where there is nothing to draw."""
    if not any(len(found) for found in values):
        raise UserError(f"No {what} has been logged yet.")


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
