"""Fine-tuned models class by class, and how far their confidence can be believed: two figures of the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bissl_fast.errors import UserError
from bissl_fast.evaluation.answers import BINS
from bissl_fast.evaluation.arms import listed, reference_first
from bissl_fast.evaluation.grid import Cell, Grid
from bissl_fast.evaluation.report.drawing import MUTED, Look, canvas, legend, looks, marks
from bissl_fast.evaluation.statistics import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bissl_fast.evaluation.run_folder import RunFolder

FILE = "test/details.json"
PERCENT = "\u00a0%"
CONVENTIONS = {"ignored": "difficult objects ignored", "present": "difficult objects present"}


@dataclass(frozen=True)
class Tested:
    """What the test has found of one arm's models.

    Attributes:
        look: of the arm.
        rates: (classes,) mean over the seeds in percent; NaN where a class has no test image.
        means: over the classes, of each seed, by what difficult objects count as; by "" where there are none.
        errors: expected calibration error of each seed; empty of several classes per image.
        counts: (15,) test images of all seeds by confidence; likewise.
        confidence: (15,) their mean confidence in percent, NaN in an empty bin.
        accuracy: (15,) in percent, likewise.
    """

    look: Look
    rates: NDArray[np.float64]
    means: Mapping[str, tuple[float, ...]]
    errors: tuple[float, ...]
    counts: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def name(self) -> str:
        """As people read it."""
        return self.look.title.replace(r"\$", "$")


def classes_drawn(run: RunFolder) -> Figure:
    """Every class, in the order of the reference's models."""
    _, arms = _read(run)
    order, several = _order(arms), not arms[0].errors
    figure, axes = canvas(f"class, in the order of {arms[0].look.title}", f"test {'AP' if several else 'accuracy'} (%)")
    x = np.arange(1.0, len(order) + 1)
    for arm in arms:
        axes.plot(
            x, arm.rates[order], color=arm.look.colour, linewidth=1.5, label=arm.look.title, **marks(x, arm.look.marker)
        )
    legend(axes)
    return figure


def classes_told(run: RunFolder) -> str:
    """The worst and the best class, and the mean."""
    names, arms = _read(run)
    said = []
    for arm in arms:
        shown = np.flatnonzero(~np.isnan(arm.rates))
        worst, best = shown[arm.rates[shown].argmin()], shown[arm.rates[shown].argmax()]
        means = listed([f"{Sample(values)}{PERCENT}{_where(way)}" for way, values in arm.means.items()])
        said.append(
            f"{arm.name}: mean {means}, from {arm.rates[worst]:.1f}{PERCENT} ({names[worst]}) to "
            f"{arm.rates[best]:.1f}{PERCENT} ({names[best]})."
        )
    return " ".join(said)


def classes_numbers(run: RunFolder) -> Grid:
    """A row for each class."""
    names, arms = _read(run)
    rows = tuple((Cell(names[row]), *(Cell(_number(arm.rates[row])) for arm in arms)) for row in _order(arms))
    return Grid(("Class", *(arm.name for arm in arms)), rows, "Percent, mean over the seeds; a dash: no test image.")


def calibration_drawn(run: RunFolder) -> Figure:
    """A reliability diagram.

    Raises:
        UserError: if images have several classes.
    """
    _, arms = _read(run)
    if not arms[0].errors:
        raise UserError("Images have several classes, so no one confidence.")
    figure, axes = canvas("confidence (%)", "share that is right (%)")
    axes.plot((0, 100), (0, 100), color=MUTED, linewidth=1, linestyle=":", label="_as sure as right")
    for arm in arms:
        filled = arm.counts > 0
        x, y = arm.confidence[filled], arm.accuracy[filled]
        axes.plot(x, y, color=arm.look.colour, linewidth=1.5, label=arm.look.title)
        sizes = 120 * np.sqrt(arm.counts[filled] / arm.counts.sum())
        axes.scatter(x, y, s=sizes, color=arm.look.colour, marker=arm.look.marker or "o", linewidths=0)
    axes.set(xlim=(0, 102), ylim=(0, 102))
    legend(axes)
    return figure


def calibration_told(run: RunFolder) -> str:
    """The errors, and to which side they are."""
    said = []
    for arm in _read(run)[1]:
        filled = arm.counts > 0
        sure, right = (
            float(values[filled] @ arm.counts[filled] / arm.counts.sum()) for values in (arm.confidence, arm.accuracy)
        )
        error = f"{Sample(arm.errors)}{PERCENT}"
        said.append(f"{arm.name} {error}, {sure:.1f}{PERCENT} sure and {right:.1f}{PERCENT} right")
    return f"Expected calibration error: {'; '.join(said)}."


def calibration_numbers(run: RunFolder) -> Grid:
    """A row for each bin."""
    _, arms = _read(run)
    columns = [column for arm in arms for column in (arm.accuracy, 100 * arm.counts / arm.counts.sum())]
    rows = [
        (
            Cell(f"{100 * k / BINS:.1f} to {100 * (k + 1) / BINS:.1f}{PERCENT}"),
            *(Cell(_number(column[k])) for column in columns),
        )
        for k in range(BINS)
        if any(arm.counts[k] for arm in arms)
    ]
    heads = (head for arm in arms for head in (f"{arm.name}, right", f"{arm.name}, images"))
    return Grid(("Confidence", *heads), tuple(rows), "Percent, of the test images of all seeds.")


def _read(run: RunFolder) -> tuple[list[str], list[Tested]]:
    """Names of the classes, and what was found of each arm, the reference first.

    Raises:
        UserError: if the test has not told, or it cannot be understood.
    """
    content, shown = run.json(FILE), looks(run.titles())
    try:
        judged = str(run.json("results.json").get("difficult", "ignored"))
        names = [str(name) for name in content["classes"]]
        found = {
            arm: _tested(shown[arm], content["arms"][arm], judged)
            for arm in reference_first(run.arms())
            if arm in content["arms"]
        }
        if not found or any(arm.rates.shape != (len(names),) for arm in found.values()):
            raise ValueError("of no arm of this run" if not found else "of other classes")
        return names, list(found.values())
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f"{FILE} is not as the test stage writes it ({error!r}).") from None


def _tested(look: Look, told: Mapping[str, Any], judged: str) -> Tested:
    several = "map" in told
    rates = np.array(told["per_class"][judged] if several else told["per_class"], dtype=float)  # (seeds, classes)
    means = told["map"] if several else {"": told["mean_per_class"]}
    bins = {} if several else told["reliability"]
    return Tested(
        look,
        rates.mean(axis=0),
        {way: tuple(map(float, values)) for way, values in means.items()},
        tuple(map(float, told.get("ece", ()))),
        *(np.array(bins.get(key, ()), dtype=float) for key in ("counts", "confidence", "accuracy")),
    )


def _order(arms: list[Tested]) -> NDArray[np.int64]:
    """From the class that the reference knows worst; those without a test image last."""
    return np.argsort(arms[0].rates, kind="stable")


def _where(way: str) -> str:
    return f" ({CONVENTIONS.get(way, way)})" if way else ""


def _number(value: float) -> str:
    return "—" if np.isnan(value) else f"{value:.1f}"
