"""What BiSSL's paper prints: the numbers of Table 1, and the sets of its figures. Facts alone; nothing is run here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """One row of Table 1 by one metric: means and standard deviations over ten seeds, in percent.

    Attributes:
        dataset: as `bissl-fast data list` calls it.
        metric: its key, as in `results.json`.
        bissl: mean and standard deviation of BiSSL.
        baseline: likewise of "Only FT".
        bold: whether BiSSL's is in bold; the baseline's never is.
    """

    dataset: str
    metric: str
    bissl: tuple[float, float]
    baseline: tuple[float, float]
    bold: bool

    @property
    def difference(self) -> float:
        """The column "Avg Diff"."""
        return round(self.bissl[0] - self.baseline[0], 1)


TABLE_1 = (
    Printed("stl10", "top1", (90.6, 0.1), (90.3, 0.1), True),
    Printed("stl10", "top5", (99.7, 0.0), (99.6, 0.0), True),
    Printed("flowers", "top1", (74.8, 0.4), (73.4, 0.4), True),
    Printed("flowers", "top5", (90.0, 0.3), (90.0, 0.4), False),
    Printed("cars", "top1", (72.4, 0.3), (72.7, 0.5), False),
    Printed("cars", "top5", (91.2, 0.2), (91.4, 0.4), False),
    Printed("aircraft", "top1", (46.8, 0.8), (46.1, 0.9), False),
    Printed("aircraft", "top5", (78.5, 0.6), (79.3, 0.6), False),
    Printed("dtd", "top1", (52.1, 0.5), (49.3, 0.5), True),
    Printed("dtd", "top5", (79.5, 0.3), (79.1, 0.4), False),
    Printed("pets", "top1", (67.6, 0.4), (65.0, 0.5), True),
    Printed("pets", "top5", (91.9, 0.4), (90.7, 0.3), True),
    Printed("fashionmnist", "top1", (94.3, 0.1), (94.1, 0.1), False),
    Printed("fashionmnist", "top5", (100.0, 0.0), (100.0, 0.0), False),
    Printed("cifar10", "top1", (93.8, 0.2), (93.8, 0.1), False),
    Printed("cifar10", "top5", (99.9, 0.0), (99.8, 0.0), True),
    Printed("cifar100", "top1", (73.0, 0.2), (73.2, 0.2), False),
    Printed("cifar100", "top5", (93.7, 0.1), (92.8, 0.1), True),
    Printed("caltech101", "top1", (80.7, 0.5), (78.1, 0.5), True),
    Printed("caltech101", "top5", (95.3, 0.1), (94.7, 0.2), True),
    Printed("food101", "top1", (71.8, 0.2), (71.7, 0.2), False),
    Printed("food101", "top5", (90.5, 0.1), (90.4, 0.1), False),
    Printed("sun397", "top1", (41.0, 0.3), (40.0, 0.3), True),
    Printed("sun397", "top5", (71.0, 0.4), (69.9, 0.4), True),
    Printed("cub200", "top1", (45.6, 0.3), (45.7, 0.4), False),
    Printed("cub200", "top5", (75.2, 0.2), (70.7, 0.6), True),
    Printed("voc2007", "map", (60.4, 0.2), (58.6, 0.3), True),
)
"""In the order of the paper."""

DATASETS = tuple(dict.fromkeys(row.dataset for row in TABLE_1))
"""The 14 downstream sets, in the order of Table 1."""

FIGURE_3 = ("flowers",)
FIGURES_4_TO_11 = ("cifar10", "cub200", "caltech101", "stl10", "pets", "dtd", "aircraft", "cars")
"""Figures 4 to 11, one set each, in their order."""


def printed(dataset: str, metric: str) -> Printed | None:
    """The paper's row of a set by a metric, if it has one.

    Example:
        >>> printed("dtd", "top1").difference
        2.8
    """
    return next((row for row in TABLE_1 if (row.dataset, row.metric) == (dataset, metric)), None)
