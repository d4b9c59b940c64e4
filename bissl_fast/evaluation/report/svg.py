"""A figure as SVG within a page: its colours are the page's, light or dark, and its words are text."""

from __future__ import annotations

import re
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from matplotlib import rc_context

from bissl_fast.evaluation.report.drawing import INK, MUTED, RULE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DARK = {
    INK: "#e6eaee",
    MUTED: "#9aa5b0",
    RULE: "#2d343b",
    "#0072b2": "#529fee",
    "#d55e00": "#ea6c16",
    "#009e73": "#2ffca9",
    "#cc79a7": "#ad5187",
    "#e69f00": "#ffeb23",
    "#56b4e9": "#cdf4fe",
    "#3b1f6b": "#804efd",
    "#5c3a00": "#827246",
    "#5d3a9b": "#a98be0",
    "#8c6d31": "#c9a55a",
    "#c4c9d0": "#4a525b",
}
"""On dark paper, by the colour on white."""


def _name(colour: str) -> str:
    return f"--{colour[1:].lower()}"


def _declared(colours: dict[str, str]) -> str:
    return " ".join(f"{_name(colour)}: {shown};" for colour, shown in colours.items())


STYLE = f"""
:root {{ {_declared({colour: colour for colour in DARK})} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_declared(DARK)} }} }}
.plot {{ display: block; width: 100%; height: auto; font-family: inherit; }}
.plot * {{ stroke-linejoin: round; stroke-linecap: butt; }}
.plot image {{ image-rendering: pixelated; }}
"""
"""What a page's style needs for the figures in it."""


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an `<svg>` element, the same text for the same figure.

    Args:
        figure: to draw.
        name: of the figure, unlike those of the others on the page: it begins the ids.
        label: what is said in place of the figure to those who cannot see it.
    """
    buffer = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    size = re.search(r'viewBox="[^"]*"', text)
    assert size is not None
    body = text[text.index("</defs>", text.index("<style")) + len("</defs>") : text.rindex("</svg>")]
    for pattern, shown in _REWRITTEN:
        body = re.sub(pattern, shown, body)
    body = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", body)
    for colour in DARK:
        body = re.sub(f"(?i){colour}", f"var({_name(colour)})", body)
    return f'<svg class="plot" role="img" aria-label="{escape(label)}" {size[0]}>{body}</svg>'


_REWRITTEN = (
    (r'<g id="[^"]*"/>', ""),
    (r'<g id="[^"]*">', "<g>"),
    (r"\s*font-family: [^;\"]*;", ""),
    (r"font: (\d+px) [^;\"]*", r"font-size: \1"),
    (r'\s*transform="rotate\(-0 [^"]*"', ""),
    (r"xlink:href", "href"),
    (r"(\d\.\d\d)\d+", r"\1"),
    (r"\n\s*", "\n"),
)
"""What is shorter, or the page's matter: groups' names, fonts, decimals that nobody sees."""
