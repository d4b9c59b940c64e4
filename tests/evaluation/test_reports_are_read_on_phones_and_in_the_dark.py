"""Reports in a real browser: of a run, of a comparison, of many runs, and of a figure of the paper made again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bissl_fast.evaluation.report.comparison import write_comparison
from bissl_fast.evaluation.report.run import PLATES, write_report
from bissl_fast.evaluation.report.runs import write_runs
from bissl_fast.experiments.paper_runs import Asked, runs_of
from bissl_fast.experiments.reproduction_page import Reproduced, write_reproduction
from bissl_fast.methods.config import TrainConfig, save_config
from tests.evaluation.browser import look, needs_chromium
from tests.evaluation.comparisons import write_comparison_of
from tests.evaluation.conftest import write_run

HOSTILE = "<script>throw 1</script>" + "y" * 60
SCORES = {"bissl": [[30.0, 31.0], [32.0, 30.0]], "baseline": [[28.0, 29.0], [27.0, 28.0]]}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A report of each kind, with names that are long and hostile."""
    root = tmp_path_factory.mktemp("reports")
    runs = [
        write_run(root / name, dataset=HOSTILE, images=36, alternations=12)
        for name in ("one", f"other {HOSTILE[8:18]}")
    ]
    compared = write_comparison_of(root / "compared", SCORES, titles={"bissl": HOSTILE})
    asked, again = Asked("figure2", ("flowers",), epochs=(600.0,)), root / "again"
    reproduced = Reproduced(asked, again, runs_of(asked, smaller), {HOSTILE: HOSTILE})
    flowers = write_run(again / "flowers", dataset="flowers", images=36)
    (flowers / "config.yaml").write_text(save_config(reproduced.runs[0].config))  # results of others are not shown
    return [write_report(runs[0]), write_comparison(compared), write_runs(runs), write_reproduction(reproduced)]


def smaller(config: TrainConfig) -> TrainConfig:
    """The config with a setting that departs from the paper's."""
    return replace(config, images=replace(config.images, size=64))


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_every_page_whole_its_figures_told_in_words_and_nothing_fetched(
    pages: list[Path], dark: bool, tmp_path: Path
) -> None:
    seen = look(pages, 400, tmp_path, dark)
    assert seen.messages == []
    assert [page["figures"] for page in seen.pages] == [len(PLATES) + 1, 1, 1, 1]  # the classes confused are one more
    for page in seen.pages:
        assert any(name in page["title"] for name in (HOSTILE, "dtd", "Figure 2"))
        assert page["needed"] <= page["width"] <= 400
        assert page["fetched"] == []
        assert page["uncaptioned"] == page["unnamed"] == page["unscoped"] == page["unread"] == 0
        assert (page["paper"] < 0.2) == dark
        assert page["ink"]
        assert all(abs(ink - page["paper"]) > 0.4 for ink in page["ink"])


@needs_chromium
def test_what_would_be_wrong_with_a_page_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><title>bad</title><body style='background: #fff'><div style='width: 700px'>wide</div>"
        "<table><th>a</th></table><figure><svg><text style='fill: #eee'>pale</text></svg><img src='gone.png'></figure>"
        "<script>throw new Error('broken')</script></body>"
    )
    seen = look([page], 400, tmp_path)
    assert any("broken" in message for message in seen.messages)
    (found,) = seen.pages
    assert found["needed"] >= 700 > found["width"]
    assert found["fetched"] == ["gone.png"]
    assert (found["uncaptioned"], found["unnamed"], found["unscoped"], found["unread"]) == (1, 2, 1, 1)
    assert found["paper"] - found["ink"][0] < 0.4


def test_a_page_of_several_runs_sets_their_arms_beside_each_other_and_tells_what_differs(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    first = make_run(images=24)
    second = write_run(tmp_path / "b", images=24)
    (second / "config.yaml").write_text("dataset: dtd\nname: b\nbissl:\n  lower_steps: 9\n")
    unfinished = write_run(tmp_path / "c", images=24)
    (unfinished / "results.json").unlink()
    page = write_runs([first, second, unfinished, second / ".." / "b"]).read_text()  # one is given twice
    assert "3 runs, 2 of them with results: of 2 comparisons" in page
    assert "significantly better in 2 and worse in none" in page
    for name in ("run: BiSSL", "run: Only FT", "b: BiSSL", "b: Only FT"):
        assert page.count(f'<th scope="row">{name}</th>') == 2  # score and cost
    assert '<th scope="row">c</th>' in page
    assert '<th scope="row">bissl.lower_steps</th><td>4</td><td>9</td><td>4</td>' in page
    assert '<th scope="row">name</th>' not in page
    assert "bissl-fast train --config b/config.yaml --output again" in page
