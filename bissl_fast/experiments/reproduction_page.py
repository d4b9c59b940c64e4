"""What a reproduction leaves: a page that is complete in itself, its tables as Markdown, its numbers as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from bissl_fast.errors import UserError
from bissl_fast.evaluation.features import embed
from bissl_fast.evaluation.grid import Cell, Grid
from bissl_fast.evaluation.report import figures
from bissl_fast.evaluation.report.drawing import canvas, legend, looks, png
from bissl_fast.evaluation.report.facts import differing
from bissl_fast.evaluation.report.mapped import mapped_of, neighbours_told
from bissl_fast.evaluation.report.page import Section, document, missing, plate, scrolling, section, tables
from bissl_fast.evaluation.report.svg import svg
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.evaluation.statistics import Sample
from bissl_fast.experiments.beside_paper import TITLES, Beside, beside, beside_table, claim
from bissl_fast.experiments.paper_runs import Asked, PaperRun, Rates, lasting, scaled
from bissl_fast.methods.config import TrainConfig, save_config
from bissl_fast.methods.presets import preset_config
from bissl_fast.plain import parse_yaml
from bissl_fast.training.files import make_folder, write_atomic, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADINGS = {
    "table1": "Table 1 of BiSSL",
    "figure2": "Figure 2 of BiSSL",
    "figure3": "Figure 3 of BiSSL",
    "figures4-11": "Figures 4 to 11 of BiSSL",
}
NO_POINTS = "The paper shows its Figure 2 as a picture and prints none of its numbers, so none stand beside ours."
FEATURES = (
    "Test images in the feature space of the backbone after pretext training alone and of BiSSL's lower level, before "
    "any fine-tuning, mapped to the plane by t-SNE, 400 of them at most; one colour and marker per class. Batch-norm "
    "statistics have met the downstream training images first. Section 4.4 and Appendix C.1 of the paper, which shows "
    "pictures and no numbers."
)
MAP_TITLES = {"bissl": "BiSSL", "baseline": "Only pretext"}


@dataclass(frozen=True)
class Reproduced:
    """What there is to be shown.

    Attributes:
        asked: what is reproduced.
        folder: of all runs.
        runs: those whose sets are there.
        absent: why the others cannot be made, by set.
    """

    asked: Asked
    folder: Path
    runs: tuple[PaperRun, ...]
    absent: Mapping[str, str]

    @property
    def departures(self) -> dict[str, dict[str, str]]:
        """Settings of the first run that are not the paper's, with both values."""
        run = self.runs[0]
        told = {"here": run.config, "paper": _paper(run, self.asked.rates)}
        return differing({name: parse_yaml(save_config(config)) for name, config in told.items()})

    @property
    def note(self) -> str:
        """Whether our numbers can be compared with the paper's."""
        if not self.departures:
            return ""
        return (
            f"Settings are not the paper's (scale {self.asked.scale:g}; {self.asked.what}.html lists them): its "
            "numbers cannot be compared with ours."
        )

    def cells(self) -> tuple[Beside, ...]:
        """The scores, beside the paper's."""
        return beside(self.folder, self.asked, self.runs)


def write_reproduction(made: Reproduced) -> Path:
    """Write `WHAT.html`, and of scores `WHAT.md` and `WHAT.json`, from what the runs have so far.

    Returns:
        The path of the page.
    """
    what = made.asked.what
    make_folder(made.folder)
    if made.asked.tuned:
        lead, content = _scores(made)
    else:
        lead, content = _feature_maps(made)
    page = made.folder / f"{what}.html"
    outcome = f'<p class="lead">{escape(lead)}</p>\n{missing(made.note) if made.note else ""}'
    write_atomic(page, document(f"{HEADINGS[what]}, reproduced", outcome, content + _ending(made)).encode())
    return page


def _scores(made: Reproduced) -> tuple[str, str]:
    """The sentence and the tables; leaves them as Markdown and JSON, too."""
    what, cells = made.asked.what, made.cells()
    note = made.note if what == "table1" else " ".join(filter(None, (NO_POINTS, made.note)))
    table, lead = beside_table(cells, made.asked, note), claim(cells, comparable=not made.note)
    write_atomic(made.folder / f"{what}.md", f"{table.to_markdown()}\n{lead}\n".encode())
    told = {"asked": asdict(made.asked), "comparable": not made.departures, "claim": lead}
    write_json(made.folder / f"{what}.json", {**told, "cells": [cell.told() for cell in cells]})
    drawn = _by_epochs(cells) if what == "figure2" else ""
    return lead, tables(table) + drawn


def _by_epochs(cells: Sequence[Beside]) -> str:
    """Figure 2: top-1 accuracy over pretext epochs."""
    title = "Top-1 accuracy over pretext epochs"
    caption = "Test accuracy of the fine-tuned models: mean over the seeds, and one standard deviation."
    ended = [cell for cell in cells if cell.metric.key != "top5" and cell.ours is not None]
    if not ended:
        return section(Section("epochs", title, caption, missing="No run has ended yet."))
    figure, axes = canvas("pretext epochs, as the paper counts them", "test top-1 accuracy (%)")
    drawn, told = looks(TITLES), []
    for arm, title_of_arm in TITLES.items():
        found = [(cell.run.epochs, _arm(cell, arm)) for cell in ended]
        epochs, scores = [point for point, _ in found], [score for _, score in found]
        deviations = [score.std or 0.0 for score in scores]
        means = [score.mean for score in scores]
        axes.errorbar(epochs, means, deviations, color=drawn[arm].colour, label=title_of_arm, capsize=3, marker="o")
        told.append(f"{title_of_arm}: {', '.join(f'{score} at {at:g}' for at, score in found)}")
    axes.set_xticks(sorted({cell.run.epochs for cell in ended}))
    legend(axes)
    words = f"{'; '.join(told)}."
    return section(Section("epochs", title, caption, plate(svg(figure, "epochs", f"{title}. {words}")), words))


def _arm(cell: Beside, arm: str) -> Sample:
    assert cell.ours is not None
    return cell.ours.candidate if arm == "bissl" else cell.ours.baseline


def _feature_maps(made: Reproduced) -> tuple[str, str]:
    """A map for each set that has features; leaves each as a PNG, too."""
    sections, told = [], []
    for run in made.runs:
        title = f"Features of {run.dataset}"
        try:
            figure, words = feature_map(made.folder / str(run.config.name))
        except UserError as error:
            sections.append(Section(run.dataset, title, FEATURES, missing=str(error)))
            continue
        make_folder(made.folder / "figures")
        write_atomic(made.folder / "figures" / f"features-{run.dataset}.png", png(figure))
        picture = plate(svg(figure, f"features-{run.dataset}", f"{title}. {words}"))
        sections.append(Section(run.dataset, title, FEATURES, picture, words))
        told.append(run.dataset)
    lead = f"Backbone features before fine-tuning of {', '.join(told)}." if told else "No run has ended yet."
    return lead, "".join(map(section, sections))


def feature_map(folder: Path) -> tuple[Figure, str]:
    """The maps of a run's backbones side by side, and what they show.

    Raises:
        UserError: if the run has no features yet, or none that can be mapped.
    """
    found = mapped_of(RunFolder(folder), "features/features.npz", MAP_TITLES)
    drawn = figures.feature_maps([(each.title, embed(each.features, seed=0)) for each in found], found[0].labels)
    return drawn, neighbours_told(found)


def _ending(made: Reproduced) -> str:
    """What was left out, what departs from the paper, and where the runs lie."""
    lost = "".join(missing(f"{name}: {reason}") for name, reason in made.absent.items())
    absent = f"<section><h2>Sets that are not there</h2>\n{lost}</section>\n" if lost else ""
    names = [str(run.config.name) for run in made.runs]
    reports = [name for name in names if (made.folder / name / "report.html").is_file()]
    links = " · ".join(f'<a href="{escape(name)}/report.html">{escape(name)}</a>' for name in reports)
    files = f"<section><h2>The runs</h2>\n<p>{links}</p></section>\n" if links else ""
    return f"{absent}{_departing(made)}{files}"


def _departing(made: Reproduced) -> str:
    heading = "<section><h2>What departs from the paper's settings</h2>\n"
    if not made.departures:
        return f"{heading}<p>Nothing; docs/reproducing.md tells what the paper leaves open.</p></section>\n"
    rows = tuple((Cell(name), Cell(values["here"]), Cell(values["paper"])) for name, values in made.departures.items())
    grid = Grid(("Setting", "Here", "Paper"), rows, f"Of the run on {made.runs[0].dataset}.")
    return f"{heading}{scrolling(grid.to_html(), 'Settings')}</section>\n"


def _paper(run: PaperRun, rates: Rates) -> TrainConfig:
    """The paper's settings of a run, in whichever place, on whichever machine; the rates that it prints are its own."""
    paper = lasting(scaled(preset_config("paper", run.dataset), 1.0, rates), run.epochs, 1.0)
    own = run.config
    kept = ("name", "output", "data_root", "cache_dir", "device", "threads", "seed", "loop", "track", "tracking")
    images = replace(paper.images, pipeline=own.images.pipeline, resident_share=own.images.resident_share)
    return replace(paper, images=images, **{name: getattr(own, name) for name in kept})
