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
from bissl_fast.evaluation.cost import duration
from bissl_fast.evaluation.results import Results
from bissl_fast.evaluation.run_folder import RunFolder, read_text
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import verdict
from bissl_fast.training.clock import active_seconds


@dataclass(frozen=True)
class Section:
    """A figure under its heading.

    Attributes:
        name: anchor in the page.
        title: heading.
        caption: says how to read the figure.
        image: PNG; None where the run has not produced what the figure shows.
        missing: says what is absent where there is no image.
    """

    name: str
    title: str
    caption: str
    image: bytes | None
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
    body = "".join(map(figure, sections))
    files = f"{settings(run.path / 'config.yaml')}{environment(run)}{_files(run)}"
    return document(title, outcome, f"{body}<section><h2>Settings and files</h2>\n{files}</section>\n")


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
        f"<header><h1>{escape(title)}</h1>{outcome}</header>\n{body}"
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
        f'<p class="lead">{escape(verdict(results))}</p>\n'
        f'<div class="wide">{results_table(results).to_html()}</div>\n'
        f"<p>{escape(baseline)}{seeds}.</p>\n"
    )


def figure(section: Section) -> str:
    """A section with its figure, or with what is missing."""
    if section.image is None:
        content = missing(f"Left out: {section.missing}")
    else:
        source = "data:image/png;base64," + b64encode(section.image).decode()
        content = (
            f'<figure><img src="{source}" alt="{escape(section.title)}">'
            f"<figcaption>{escape(section.caption)}</figcaption></figure>"
        )
    return f'<section id="{escape(section.name)}"><h2>{escape(section.title)}</h2>\n{content}</section>\n'


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
        time = duration(active_seconds(run.path / stage))
        cells = "".join(f"<td>{cell}</td>" for cell in (state, str(records), time, link))
        rows.append(f'<tr><th scope="row">{escape(stage)}</th>{cells}</tr>')
    names = ("config.yaml", "environment.json", "results.json", "test/features.npz", "test/views.npz")
    others = " · ".join(link for name in names if (link := _link(run, name)))
    return (
        '<details><summary>Stages and raw files</summary><div class="wide"><table><thead><tr>'
        '<th scope="col">Stage</th><th scope="col">State</th><th scope="col">Records</th>'
        '<th scope="col">Time at work</th><th scope="col">Raw</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f"<p>{others}</p></details>\n"
    )


def _link(run: RunFolder, name: str) -> str:
    """A link relative to the report, or nothing where the file is absent."""
    return f'<a href="{escape(quote(name))}">{escape(name)}</a>' if (run.path / name).is_file() else ""


STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #fff; --ink: #1f2328; --muted: #59636e; --rule: #d9dee3;
  --tint: #f6f8fa; --link: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1317; --card: #171c21; --ink: #e6eaee; --muted: #98a3ae;
  --rule: #2d343b; --tint: #171c21; --link: #6cb6e6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Roboto, sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: clamp(1.25rem, 5vw, 4rem) clamp(1rem, 4vw, 2rem); }
h1 { font-size: clamp(1.6rem, 4vw, 2.2rem); line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 .75rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; letter-spacing: -0.005em; margin: 3.25rem 0 .75rem; }
p { margin: .75rem 0; max-width: 44rem; }
.lead { font-size: 1.2rem; line-height: 1.5; margin-bottom: 1.75rem; overflow-wrap: anywhere; }
.missing { color: var(--muted); border-left: 3px solid var(--rule); padding: .15rem 0 .15rem .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
table + table { margin-top: 2rem; }
caption { caption-side: bottom; text-align: left; color: var(--muted); font-size: .875rem; padding-top: .75rem; }
caption span { display: block; position: sticky; left: 0; max-width: calc(100vw - 2 * clamp(1rem, 4vw, 2rem)); }
th, td { padding: .5rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 500; }
thead th { color: var(--muted); font-size: .875rem; border-bottom: 2px solid var(--rule); }
@media (max-width: 40rem) { th, td { padding-inline: .35rem; font-size: .85rem; } }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--rule);
  border-radius: 8px; padding: clamp(.25rem, 1.5vw, 1rem); }
figcaption { color: var(--muted); font-size: .9rem; line-height: 1.55; margin-top: .75rem; max-width: 46rem; }
details { border-top: 1px solid var(--rule); padding: .65rem 0; }
details:last-of-type { border-bottom: 1px solid var(--rule); }
summary { cursor: pointer; font-weight: 500; }
pre { background: var(--tint); border-radius: 8px; padding: 1rem; overflow-x: auto; font-size: .85rem;
  line-height: 1.5; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .35rem 1.5rem; font-size: .9rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
a { color: var(--link); }
"""
