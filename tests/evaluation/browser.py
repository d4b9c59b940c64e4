"""A page in headless Chromium: how it looks is measured by a script beside it, and the page stays as it is."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1300,1000"),
    *("--allow-file-access-from-files", "--enable-logging=stderr", "--dump-dom"),
]

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

SCRIPT = """
const words = (element) => (element ? element.textContent.trim() : "");
const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
const every = (page, selector) => [...page.querySelectorAll(selector)];
function measured(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, width = page.documentElement.clientWidth;
  const shown = every(page, "figure svg text").filter((text) => words(text));
  return {
    width, needed: page.documentElement.scrollWidth,
    title: page.title,
    figures: every(page, "figure").length,
    uncaptioned: every(page, "figure").filter((f) => words(f.querySelector("figcaption")).length < 40).length,
    unnamed: every(page, "img:not([alt]), img[alt=''], svg:not([aria-label])").length,
    unscoped: every(page, "th:not([scope])").length,
    fetched: every(page, "[src], link, image, use").map((e) => e.getAttribute("src") ?? e.getAttribute("href") ?? "")
      .filter((from) => !from.startsWith("data:") && !from.startsWith("#")),
    paper: light(view.getComputedStyle(page.body).backgroundColor),
    ink: shown.map((text) => light(view.getComputedStyle(text).fill)),
    unread: every(page, "img").filter((image) => !image.naturalWidth).length,
  };
}
addEventListener("load", () => {
  document.getElementById("found").textContent =
    JSON.stringify([...document.querySelectorAll("iframe")].map(measured));
});
"""


@dataclass(frozen=True)
class Seen:
    """What Chromium made of some pages.

    Attributes:
        pages: measures of each.
        messages: of the console, errors of scripts and of loading among them.
    """

    pages: list[dict[str, Any]]
    messages: list[str]


def look(pages: list[Path], width: int, scratch: Path, dark: bool = False) -> Seen:
    """Open pages, each in a frame of a window of its own.

    Args:
        pages: HTML files.
        width: of the frames, in pixels.
        scratch: an empty folder.
        dark: whether the reader asks for dark pages.
    """
    assert CHROMIUM is not None
    frames = "".join(
        f'<iframe style="width: {width}px; height: 800px; border: 0" src="{escape(page.resolve().as_uri())}"></iframe>'
        for page in pages
    )
    desk = scratch / "desk.html"
    head = '<!doctype html><html><head><meta charset="utf-8"><meta name="color-scheme" content="light dark"></head>'
    desk.write_text(f'{head}<body><pre id="found"></pre>{frames}<script>{SCRIPT}</script></body></html>')
    flags = [*FLAGS, f"--user-data-dir={scratch / 'profile'}", f"--blink-settings=preferredColorScheme={int(not dark)}"]
    done = subprocess.run([CHROMIUM, *flags, desk.as_uri()], capture_output=True, text=True, timeout=100, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    messages = [line.split("] ", 1)[-1] for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(json.loads(unescape(found[1])), messages)
