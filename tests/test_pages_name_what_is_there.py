"""What the pages of docs/ say about the code by name: tables from papers to code, the API, the commands."""

import re
from importlib import import_module
from operator import attrgetter

import griffe
import pytest

import bissl_fast
from bissl_fast.cli import COMMANDS
from tests.shown import ROOT

DOCS = ROOT / "docs"
REFERENCE = re.compile(r"`([\w/]+)\.py`: ((?:`[\w.]+`(?:, )?)+)")
ROOMS = ("ops", "bilevel", "pretext", "models", "evaluation.protocols")


@pytest.mark.parametrize("page", ["bissl", "gessl", "fussl", "abrl"])
def test_every_name_beside_a_papers_equation_is_in_its_file(page: str) -> None:
    references = REFERENCE.findall((DOCS / f"{page}.md").read_text())
    assert len(references) > 6
    for path, names in references:
        module = import_module(f"bissl_fast.{path.replace('/', '.')}")
        for name in re.findall(r"`([\w.]+)`", names):
            assert attrgetter(name)(module).__module__ == module.__name__, f"{path}.py: {name}"


@pytest.fixture(scope="module")
def package() -> griffe.Module:
    """The code as the pages of the API read it, without importing it."""
    found = griffe.load("bissl_fast", search_paths=[str(ROOT)])
    assert isinstance(found, griffe.Module)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_of_a_room_is_on_its_page(room: str, package: griffe.Module) -> None:
    page = (DOCS / "api" / f"{room.split('.')[-1]}.md").read_text()
    assert f"::: bissl_fast.{room}\n" in page
    exports = import_module(f"bissl_fast.{room}").__all__
    for name in exports:
        member = package[f"{room}.{name}"]
        if member.is_module:  # a file of that name hides it
            assert re.search(rf"^::: bissl_fast\.{room}(\.\w+)*\.{name}(\.\w+)*\.{name}$", page, re.M), name


def test_every_name_of_the_package_is_in_the_table_of_the_api() -> None:
    assert set(bissl_fast.__all__) == set(re.findall(r"`(\w+)`", (DOCS / "api" / "index.md").read_text()))


def test_the_page_of_commands_has_them_all() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", (DOCS / "commands.md").read_text(), re.M)) == set(COMMANDS)
