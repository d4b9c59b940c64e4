"""What a comparison is going to do: its arms, their runs, and what each may cost and does (`plan.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import listed
from bissl_fast.evaluation.cost import Cost, epochs_words
from bissl_fast.evaluation.grid import Cell, Grid
from bissl_fast.evaluation.run_folder import read_json

RULE = (
    "A model-epoch is a forward and a backward pass of the unlabelled set through one model. Products of second order "
    "are beside the budget."
)

LONGEST_NAME = 255
"""Bytes that file systems take, at most."""


@dataclass(frozen=True)
class Row:
    """One arm of a comparison.

    Attributes:
        label: its name, unlike that of all others.
        title: what people call it.
        method: by which it is made, as in `--methods`.
        runs: folders of its runs below the comparison's, by pretext seed.
        configured: cost of a backbone by the settings as they are.
        planned: likewise as it will run.
        settings: that make it differ from the other arms.
    """

    label: str
    title: str
    method: str
    runs: Mapping[int, str]
    configured: Cost
    planned: Cost
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Row:
        """Read a row of `plan.json`."""
        label, title, method = (" ".join(str(content[name]).split()) for name in ("label", "title", "method"))
        runs = {int(seed): str(folder) for seed, folder in content["runs"].items()}
        configured, planned = (Cost.from_json(content[name]) for name in ("configured", "planned"))
        return cls(label, title, method, runs, configured, planned, dict(content.get("settings") or {}))

    def told(self) -> dict[str, Any]:
        """As `plan.json` has it."""
        costs = {name: getattr(self, name).told() for name in ("configured", "planned")}
        return {"label": self.label, "title": self.title, "method": self.method, "runs": dict(self.runs), **costs} | {
            "settings": dict(self.settings)
        }


@dataclass(frozen=True)
class Plan:
    """A comparison before its first stage.

    Attributes:
        subject: what is compared, e.g. `methods` or the name of a study.
        dataset: the downstream set.
        seeds: pretext seeds, each a whole run.
        reference: label of the row that the others are measured against.
        rows: in the order of the table.
        budget: what every backbone may cost; None where there is none.
        budget_of: whose cost that is, in words.
        kept: whether rows run as configured, whatever they cost.
        search: how the rates of fine-tuning are found, in a sentence; empty where they are given.
    """

    subject: str
    dataset: str
    seeds: tuple[int, ...]
    reference: str
    rows: tuple[Row, ...]
    budget: Cost | None = None
    budget_of: str = ""
    kept: bool = False
    search: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """Read the content of `plan.json`.

        Raises:
            UserError: if a field is missing or of another type.
        """
        try:
            plan = cls(
                str(content["subject"]),
                str(content["dataset"]),
                tuple(map(int, content["seeds"])),
                str(content["reference"]),
                tuple(map(Row.from_json, content["rows"])),
                None if content["budget"] is None else Cost.from_json(content["budget"]),
                str(content["budget_of"]),
                bool(content["kept"]),
                str(content.get("search", "")),
            )
            plan._check()
            return plan
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise UserError(
                f"plan.json is not as `bissl-fast compare` writes it ({error!r}): run the same command again."
            ) from None

    def _check(self) -> None:
        """Raises ValueError: unless each row has a run of each seed in a folder of its own name, the reference too."""
        if self.reference not in [row.label for row in self.rows]:
            raise ValueError(f"no row is {self.reference!r}")
        for row in self.rows:
            if set(row.runs) != set(self.seeds) or not self.seeds:
                raise ValueError(f"{row.label} has no run of each seed")
            for name in row.runs.values():
                if name != Path(name).name or len(name.encode()) > LONGEST_NAME:
                    raise ValueError(f"{name[:40]!r} is no name of a folder")

    def told(self) -> dict[str, Any]:
        """As `plan.json` has it."""
        return {
            "subject": self.subject,
            "dataset": self.dataset,
            "seeds": list(self.seeds),
            "reference": self.reference,
            "budget": None if self.budget is None else self.budget.told(),
            "budget_of": self.budget_of,
            "kept": self.kept,
            "search": self.search,
            "rows": [row.told() for row in self.rows],
        }

    def over(self, row: Row) -> float:
        """By which share of the budget a row that runs as configured exceeds it; 0 where it does not."""
        share = self._share(row.planned)
        return 0.0 if share is None else max(0.0, share - 1)

    def title(self, row: Row) -> str:
        """What a row is called in tables: with a mark where it is over the budget."""
        return f"{row.title} (over budget by {percent(self.over(row))})" if self.over(row) else row.title

    def grid(self) -> Grid:
        """What every arm costs by its settings and as it will run, and which share of the budget that is."""
        budgeted = self.budget is not None
        columns: tuple[str, ...] = ("Arm", "Model-epochs", "Images", "Products")
        if budgeted:
            columns = ("Arm", "As configured", "Of budget", "Will run", "Of budget", "Products")
        caption = f"{self._budget_words()} {RULE}"
        return Grid(columns, tuple(self._cells(row, budgeted) for row in self.rows), caption)

    def sentences(self) -> tuple[str, ...]:
        """What is done about rows that would exceed the budget, or stay far below it, one sentence each, and how rates
        are found."""
        said = []
        for row in self.rows:
            share = self._share(row.configured)
            if share is None or share <= 1:
                continue
            done = "runs as configured" if self.kept else "is shortened to it"
            said.append(f"{row.title} as configured exceeds the budget by {percent(share - 1)} and {done}.")
        longer = [row.title for row in self.rows if _longer(row)]
        if longer:
            said.append(f"{listed(longer)} {'is' if len(longer) == 1 else 'are'} lengthened to it.")
        return (*said, self.search) if self.search else tuple(said)

    def _cells(self, row: Row, budgeted: bool) -> tuple[Cell, ...]:
        planned = row.planned.words()
        if not budgeted:
            return Cell(row.title), *(Cell(planned[column]) for column in ("Model-epochs", "Images", "Products"))
        words = [epochs_words(row.configured.model_epochs), self._percent(row.configured)]
        words += [planned["Model-epochs"], self._percent(row.planned), planned["Products"]]
        return (Cell(row.title), *map(Cell, words))

    def _share(self, cost: Cost) -> float | None:
        """Of the budget."""
        if self.budget is None or not self.budget.images or cost.images is None:
            return None
        return cost.images / self.budget.images

    def _percent(self, cost: Cost) -> str:
        share = self._share(cost)
        return "—" if share is None else percent(share)

    def _budget_words(self) -> str:
        if self.budget is None:
            return "No budget: every arm runs as configured."
        words = self.budget.words()
        spent = f"{words['Model-epochs']} model-epochs ({words['Images']} images)"
        return f"Budget of a backbone: {spent}, {self.budget_of}."


def read_plan(folder: Path) -> Plan:
    """What the comparison in a folder is to do.

    Raises:
        UserError: if there is no plan, or it cannot be read.
    """
    if not is_comparison(folder):
        raise UserError(f"{folder} holds no comparison (no plan.json): give the folder of `bissl-fast compare`.")
    return Plan.from_json(read_json(folder / "plan.json"))


def is_comparison(folder: Path) -> bool:
    """Whether a folder is that of a comparison, and not of a run."""
    return (folder / "plan.json").is_file()


def require_one_run(folder: Path) -> None:
    """Raises UserError: where a comparison has its folder; the message names its runs."""
    if is_comparison(folder):
        runs = [file.parent.name for file in sorted(folder.glob("*/config.yaml"))]
        raise UserError(f"{folder} is a comparison of several runs: give one of its folders ({', '.join(runs)}).")


def percent(share: float) -> str:
    """A share as people read it.

    Example:
        >>> percent(0.0123), percent(1.5)
        ('1.2 %', '150 %')
    """
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _longer(row: Row) -> bool:
    return (row.planned.images or 0) > (row.configured.images or 0)
