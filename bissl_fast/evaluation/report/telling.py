"""What a figure of curves shows, in a sentence and in numbers: for those who cannot see it, or want to know exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bissl_fast.evaluation.grid import Cell, Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 4  # curves of one pair of axes that a sentence tells of
CAPTION = "Of every curve as drawn, with the place on the horizontal axis."


@dataclass(frozen=True)
class Curve:
    """A named line of a figure.

    Attributes:
        of: what its axes show.
        name: of the line.
        x: (N,), N ≥ 1.
        y: (N,), finite.
    """

    of: str
    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]

    def ends(self) -> str:
        """Its first and its last value."""
        first, last = (_short(float(value)) for value in (self.y[0], self.y[-1]))
        return first if len(self.y) == 1 else f"from {first} to {last}"

    def cells(self) -> tuple[Cell, ...]:
        """First, last, lowest and highest value, each with its place."""
        places = (0, len(self.y) - 1, int(self.y.argmin()), int(self.y.argmax()))
        return tuple(Cell(f"{_short(float(self.y[at]))} at {_short(float(self.x[at]))}") for at in places)


def curves(figure: Figure) -> list[Curve]:
    """The named lines of a figure, in the order of drawing."""
    return [curve for axes in figure.axes for curve in _of_axes(axes)]


def sentence(found: list[Curve]) -> str:
    """Where the curves begin and end; empty where there is none.

    Example:
        >>> sentence([Curve("loss", "BiSSL", np.array([1.0, 2.0]), np.array([4.0, 3.5]))])
        'Loss: BiSSL, from 4 to 3.5.'
    """
    said = []
    for of in dict.fromkeys(curve.of for curve in found):
        here = [curve for curve in found if curve.of == of]
        told = here if len(here) <= MOST else [here[0], here[-1]]
        words = "; ".join(f"{curve.name}, {curve.ends()}" for curve in told)
        said.append(f"{of[:1].upper()}{of[1:]}: {words}.")
    return " ".join(said)


def numbers(found: list[Curve]) -> Grid | None:
    """The curves as a table; none where there is no curve."""
    if not found:
        return None
    several = len({curve.of for curve in found}) > 1
    rows = tuple((Cell(f"{curve.of}: {curve.name}" if several else curve.name), *curve.cells()) for curve in found)
    columns = ("Curve" if several else found[0].of, "First", "Last", "Lowest", "Highest")
    return Grid(columns, rows, CAPTION)


def _of_axes(axes: Axes) -> Iterator[Curve]:
    legend = axes.get_legend()
    unit = "" if legend is None else legend.get_title().get_text()
    for line in axes.lines:
        name = str(line.get_label())
        points = np.asarray(line.get_xydata(), dtype=float)
        points = points[np.isfinite(points).all(axis=1)]
        if not name.startswith("_") and len(points):
            named = f"after {name} {unit.removesuffix('s') if name == '1' else unit}" if unit else name
            yield Curve(axes.get_ylabel(), named.replace(r"\$", "$"), points[:, 0], points[:, 1])


def _short(value: float) -> str:
    """In as many digits as people read."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
