"""What making an arm's backbone cost, in numbers that people read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

ALIKE = 0.02  # model-epochs that differ by no more count as one budget


@dataclass(frozen=True)
class Cost:
    """Cost of one backbone, over all its stages before fine-tuning. None is what the run has not stated.

    Attributes:
        images: pushed through a forward-backward pass; an image of several views counts once.
        passes: forward-backward passes of a whole batch.
        products: second-order products, counted apart from the passes.
        model_epochs: images over the size of the unlabelled set.
        seconds: in which its stages were at work.
        memory: bytes that one of these held at its peak, of the GPU where there is one.
    """

    images: float | None = None
    passes: float | None = None
    products: float | None = None
    model_epochs: float | None = None
    seconds: float | None = None
    memory: float | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None) -> Cost:
        """Read the `cost` of an arm; what it lacks is None.

        Raises:
            TypeError: if a cost is no number.
            ValueError: if one is negative or not finite.

        Example:
            >>> Cost.from_json({"images": 12345, "model_epochs": 12.5}).words()["Model-epochs"]
            '12.5'
        """
        content = {} if content is None else content
        return cls(**{field.name: _number(content.get(field.name)) for field in fields(cls)})

    def told(self) -> dict[str, float]:
        """As JSON has it: what is known."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def words(self) -> dict[str, str]:
        """The costs as text, by the columns of a table, a dash for what is not known."""
        return {
            "Images": _count(self.images),
            "Passes": _count(self.passes),
            "Products": _count(self.products),
            "Model-epochs": epochs_words(self.model_epochs),
            "Time": duration(self.seconds),
            "Peak memory": memory_words(self.memory),
        }


def uneven_budgets(costs: Mapping[str, Cost]) -> str:
    """A sentence where the model-epochs of arms, by their titles, differ by more than 2 %; else empty.

    Example:
        >>> print(uneven_budgets({"BiSSL": Cost(model_epochs=12.5), "Only FT": Cost(model_epochs=10)}).split(",")[0])
        Budgets are not equal: BiSSL took 12.5 model-epochs and Only FT 10.0
    """
    known = {title: cost.model_epochs for title, cost in costs.items() if cost.model_epochs is not None}
    if not known:
        return ""
    most, least = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
    if known[most] <= (1 + ALIKE) * known[least]:
        return ""
    high, low = epochs_words(known[most]), epochs_words(known[least])
    ends = f"{most} took {high} model-epochs and {least} {low}"
    if len(known) > 2:
        ends = f"{most} took the most model-epochs, {high}, and {least} the fewest, {low}"
    return f"Budgets are not equal: {ends}, so a better score may come from longer training."


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a cost is {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"a cost is {value!r}")
    return value


def _count(value: float | None) -> str:
    if value is None:
        return "—"
    for unit, name in ((1e9, "bn"), (1e6, "M")):
        if value >= 0.99995 * unit:
            return f"{value / unit:.1f} {name}"
    return f"{value:,.0f}"


def epochs_words(value: float | None) -> str:
    """Model-epochs in as many digits as people read."""
    if value is None:
        return "—"
    return f"{value:.3g}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def duration(seconds: float | None) -> str:
    """A time as people tell it.

    Example:
        >>> duration(3.21), duration(75), duration(7325), duration(None)
        ('3.2 s', '1 min 15 s', '2 h 2 min', '—')
    """
    if seconds is None:
        return "—"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory_words(size: float | None) -> str:
    """Bytes as people tell them.

    Example:
        >>> memory_words(1.26e9), memory_words(5e6), memory_words(None)
        ('1.3 GB', '5 MB', '—')
    """
    if size is None:
        return "—"
    return f"{size / 1e9:.1f} GB" if size >= 0.9995e9 else f"{size / 1e6:.0f} MB"
