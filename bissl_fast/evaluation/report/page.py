"""The HTML of the report: one readable column, light or dark as the reader's system asks, no script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import BASELINE, listed, reference_of
from bissl_fast.evaluation.cost import duration, memory_words
from bissl_fast.evaluation.grid import Grid, ResultTable
from bissl_fast.evaluation.report.facts import Facts, command, facts
from bissl_fast.evaluation.report.style import STYLE
from bissl_fast.evaluation.results import Results
from bissl_fast.evaluation.run_folder import RunFolder, read_text
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import sentences
from bissl_fast.training.clock import active_seconds, peak_memory
from bissl_fast.version import __version__

ARRAYS = ("features", "tuned", "predictions", "confidences", "confused", "views")
"""What the test stage leaves beside scores."""


@dataclass(frozen=True)
class Section:
    """A figure under its heading.

    Attributes:
        name: anchor in the page.
        title: heading.
        caption: says how to read the figure.
        picture: the figure as HTML; empty where the run has not produced what it shows.
        told: says what is seen.
        numbers: what is drawn, as a table.
        missing: says what is absent where there is no picture.
    """

    name: str
    title: str
    caption: str
    picture: str = ""
    told: str = ""
    numbers: Grid | None = None
    missing: str = ""


def page(run: RunFolder, sections: Sequence[Section]) -> str:
    """The whole HTML document. Every text that comes from the run is escaped.

    Args:
        run: for the result, the settings, the environment and links to the raw files.
        sections: in the order of reading.
    """
    try:
        results = run.results()
        arms = listed([arm.title for arm in results.candidates] or [results.reference.title])
        title, outcome = f"{arms} on {results.dataset}", _outcome(results)
    except UserError as error:
        title, outcome = _without_results(run, error)
    body = "".join(map(section, sections))
    kind = "pretrain" if run.pretext_only else "train"
    files = f"{settings(run.path / 'config.yaml')}{environment(run)}{_files(run)}"
    ending = f"{again(kind)}<section><h2>Settings and files</h2>\n{files}</section>\n"
    return document(title, f"{outcome}{ran(facts(run))}", f"{body}{ending}")


def document(title: str, outcome: str, body: str) -> str:
    """The whole HTML document around what is already HTML.

    Args:
        title: as text.
        outcome: stands under the title.
        body: sections below.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f'<header><p class="over">bissl-fast {__version__}, report</p>'
        f"<h1>{escape(title)}</h1>{outcome}</header>\n{body}"
        "</main></body></html>\n"
    )


def _without_results(run: RunFolder, error: UserError) -> tuple[str, str]:
    """Heading and what stands in place of a table, of a run that has none yet or never will."""
    if run.pretext_only:
        task, images = run.setting("config.yaml", "task"), run.setting("config.yaml", "pretext_dataset")
        done = f"Pretext training of {task} on {images}" if task and images else "Pretext training"
        return done, "<p>The backbone of a pretext task alone, which no downstream task has tested.</p>\n"
    return f"{_arms(run)}, unfinished run", missing(f"No result yet: {error}")


def _arms(run: RunFolder) -> str:
    """What the run is about: its arms but the reference."""
    titles = run.titles()
    reference = reference_of(list(titles))
    return listed([title for name, title in titles.items() if name != reference] or list(titles.values()))


def _outcome(results: Results) -> str:
    names = {arm.name: arm.title for arm in results.arms}
    plain, seeds = "plain fine-tuning after pretext training alone", "Seeds vary the fine-tuning"
    if not results.fine_tuned:
        plain, seeds = "the pretext task alone", "Nothing is fine-tuned"
    baseline = f"“{names[BASELINE]}” is {plain}. " if BASELINE in names else ""
    if results.candidates:
        what = "test does not" if results.fine_tuned else "scores do not"
        seeds += f"; each arm is pre-trained once, so the {what} speak about luck in pre-training"
    return (
        f'<p class="lead">{escape(" ".join(sentences(results)))}</p>\n'
        f"{tables(results_table(results))}"
        f"<p>{escape(baseline)}{seeds}.</p>\n"
    )


def tables(table: ResultTable) -> str:
    """Tables, each of which scrolls within a box of its own where it is wider than the page."""
    return "".join(scrolling(grid.to_html(), grid.columns[0]) for grid in table.grids)


def scrolling(content: str, label: str) -> str:
    """A box that scrolls sideways, also by the keys."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{escape(label)}">{content}</div>\n'


def ran(told: Facts) -> str:
    """What was run, as terms and words."""
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>" for term, words in told)
    return f"<section><h2>What was run</h2>\n<dl>{rows}</dl></section>\n" if told else ""


def again(kind: str) -> str:
    """The command that repeats a run or a comparison; arguments as of :func:`command`."""
    return (
        f'<section id="again"><h2>To repeat it</h2>\n<pre>{escape(command(kind))}</pre>\n'
        "<p>It reads config.yaml, which lies beside this page and is printed below, and writes to a new folder. On the "
        "same number of threads of a like processor, with the same versions, the result has the same bits.</p>"
        "</section>\n"
    )


def section(shown: Section) -> str:
    """A section with its figure and the words beside it, or with what is missing."""
    if shown.picture:
        seen = f'<p class="seen">{escape(shown.told)}</p>' if shown.told else ""
        content = (
            f"<figure>{shown.picture}<figcaption>{seen}<p>{escape(shown.caption)}</p></figcaption></figure>"
            f"{_numbers(shown.numbers)}"
        )
    else:
        content = missing(f"Left out: {shown.missing}")
    return f'<section id="{escape(shown.name)}"><h2>{escape(shown.title)}</h2>\n{content}</section>\n'


def _numbers(grid: Grid | None) -> str:
    if grid is None:
        return ""
    return f"<details><summary>In numbers</summary>{scrolling(grid.to_html(), grid.columns[0])}</details>"


def plate(picture: str) -> str:
    """A card with a picture."""
    return f'<div class="plate">{picture}</div>'


def image(content: bytes, label: str) -> str:
    """A PNG within the page."""
    return f'<img src="data:image/png;base64,{b64encode(content).decode()}" alt="{escape(label)}">'


def missing(sentence: str) -> str:
    """A sentence about what is not there."""
    return f'<p class="missing">{escape(sentence)}</p>\n'


def settings(path: Path) -> str:
    """The settings in a file, folded."""
    try:
        content = read_text(path)
    except UserError as error:
        return missing(f"Left out: {error}")
    return f"<details><summary>Settings ({path.name})</summary><pre>{escape(content)}</pre></details>\n"


def environment(run: RunFolder) -> str:
    """Versions and machine of a run, folded."""
    try:
        facts = run.json("environment.json")
    except UserError as error:
        return missing(f"Left out: {error}")
    rows = "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(_words(value))}</dd>" for key, value in facts.items())
    return f"<details><summary>Environment</summary><dl>{rows}</dl></details>\n"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return str(value)


def _files(run: RunFolder) -> str:
    rows = []
    for stage in run.stages():
        state = "finished" if (run.path / stage / "DONE").exists() else "not finished"
        records = len(run.metrics(stage))
        link = _link(run, f"{stage}/metrics.jsonl")
        time, memory = duration(active_seconds(run.path / stage)), memory_words(peak_memory(run.path / stage))
        cells = "".join(f"<td>{cell}</td>" for cell in (state, str(records), time, memory, link))
        rows.append(f'<tr><th scope="row">{escape(stage)}</th>{cells}</tr>')
    raw = (
        "config.yaml",
        "environment.json",
        "results.json",
        "test/details.json",
        *(f"test/{name}.npz" for name in ARRAYS),
    )
    others = " · ".join(link for name in raw if (link := _link(run, name)))
    names = ("Stage", "State", "Records", "Time at work", "Peak memory", "Raw")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<details><summary>Stages and raw files</summary>{scrolling(table, 'Stages')}<p>{others}</p></details>\n"


def _link(run: RunFolder, name: str) -> str:
    """A link relative to the report, or nothing where the file is absent."""
    return f'<a href="{escape(quote(name))}">{escape(name)}</a>' if (run.path / name).is_file() else ""
