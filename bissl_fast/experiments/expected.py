"""What the runs of a reproduction will cost on this machine: counted work times measured seconds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bissl_fast.evaluation.grid import Cell, Grid
from bissl_fast.experiments.paper_runs import Found, PaperRun
from bissl_fast.methods.costs.units import Measured
from bissl_fast.methods.costs.work import Work, stages_of

Kind = Literal["Pretext", "BiSSL", "Search", "Tuning", "Features"]
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_OF: Mapping[str, Kind] = {
    "pretext": "Pretext",
    "head": "BiSSL",
    "bissl": "BiSSL",
    "search": "Search",
    "finetune": "Tuning",
    "test": "Tuning",
    "features": "Features",
}
"""By the first word of a stage's name."""


@dataclass(frozen=True)
class Stage:
    """A stage of a run before it is made.

    Attributes:
        run: the run's name.
        name: its own.
        work: that it is made of.
        shared_with: the earlier run that it is copied from, if there is one.
        done: whether its folder holds it already.
    """

    run: str
    name: str
    work: Work
    shared_with: str = ""
    done: bool = False

    @property
    def kind(self) -> Kind:
        """The column that it is told in."""
        return KIND_OF[self.name.partition("-")[0]]

    @property
    def left(self) -> bool:
        """Whether there is anything to be done."""
        return not self.done and not self.shared_with


def planned(
    runs: Iterable[tuple[PaperRun, Found]], folder: Path, tuned: bool, kept: int | None = None
) -> tuple[Stage, ...]:
    """All stages of all runs; pretext stages that another run makes are made once.

    Runs of one reproduction differ by set, fine-tuning and pretext epochs alone, so that pretext stages of equal
    numbers of steps are the same. What lies finished in a run's folder counts as done; a run makes it again if it is
    of other settings.

    Args:
        runs: with what their sets hold.
        folder: of all runs.
        tuned: as of :func:`stages_of`.
        kept: likewise.
    """
    first: dict[tuple[str, int], str] = {}
    stages = []
    for run, found in runs:
        name = str(run.config.name)
        for stage, work in stages_of(run.config, found.sizes, tuned, kept).items():
            maker = name
            if stage.startswith("pretext"):
                maker = first.setdefault((stage, work["pretext step"]), name)
            done = (folder / name / stage / "DONE").is_file()
            stages.append(Stage(name, stage, work, "" if maker == name else maker, done))
    return tuple(stages)


@dataclass(frozen=True)
class Expected:
    """What all runs will cost.

    Attributes:
        stages: of all of them.
        measured: what a unit takes.
        where: the machine, in words.
    """

    stages: tuple[Stage, ...]
    measured: Measured
    where: str

    @property
    def seconds(self) -> float:
        """Of all that is left."""
        return sum(self.measured.of(stage.work) for stage in self.stages if stage.left)

    def grid(self) -> Grid:
        """A row for each run, a column for each kind of stage that there is; shared stages are counted once."""
        kinds = [kind for kind in KINDS if self._of(None, kind)]
        runs = dict.fromkeys(stage.run for stage in self.stages)
        rows = [(Cell(run), *(Cell(self._words(run, kind)) for kind in kinds), self._cell(run)) for run in runs]
        totals = (Cell(self._words(None, kind)) for kind in kinds)
        rows.append((Cell("all"), *totals, self._cell(None)))
        return Grid(("Run", *kinds, "Together"), tuple(rows), self.caption)

    @property
    def caption(self) -> str:
        """How the table was made."""
        units = ", ".join(
            f"{unit} {short_duration(took)}" for unit, took in self.measured.seconds.items() if took >= 0.05
        )
        return (
            f"Time on {self.where}, as counted steps times what one took in a probe of {self.measured.images} images a "
            f"batch ({units or 'all of them below 0.1 s'}). Reading and decoding of the sets, checkpoints and reports "
            "are not in it, and other work on the machine makes it longer. Shared: made by a run above. Tuning: of all "
            "seeds, with the test."
        )

    def told(self) -> dict[str, Any]:
        """As `expected-WHAT.json` has it."""
        stages = [
            {
                "run": stage.run,
                "stage": stage.name,
                "work": dict(stage.work),
                "seconds": self.measured.of(stage.work),
                "shared_with": stage.shared_with or None,
                "done": stage.done,
            }
            for stage in self.stages
        ]
        unit = dict(self.measured.seconds)
        return {"where": self.where, "seconds_left": self.seconds, "seconds_of_a_unit": unit, "stages": stages}

    def _cell(self, run: str | None) -> Cell:
        return Cell(short_duration(sum(self._left(run, kind) for kind in KINDS)))

    def _of(self, run: str | None, kind: Kind) -> list[Stage]:
        return [stage for stage in self.stages if stage.kind == kind and run in (None, stage.run)]

    def _left(self, run: str | None, kind: Kind) -> float:
        return sum(self.measured.of(stage.work) for stage in self._of(run, kind) if stage.left)

    def _words(self, run: str | None, kind: Kind) -> str:
        """What is left of a kind, or why nothing is."""
        stages = self._of(run, kind)
        if not stages:
            return "—"
        if any(stage.left for stage in stages):
            return short_duration(self._left(run, kind))
        shared = run is not None and any(stage.shared_with and not stage.done for stage in stages)
        return "shared" if shared else "done"


def short_duration(seconds: float) -> str:
    """A time in one unit.

    Example:
        >>> short_duration(3.21), short_duration(75), short_duration(7325), short_duration(3.6e6)
        ('3.2 s', '1.2 min', '2.0 h', '1,000 h')
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.0f} {unit}" if seconds >= 100 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
