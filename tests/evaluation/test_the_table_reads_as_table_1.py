from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.evaluation.results import Results
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import verdict

HOSTILE = "<script>alert('x')</script>[red]"


def results(**changes: Any) -> Results:
    content = {
        "dataset": "dtd",
        "classes": 10,
        "bissl": {"top1": [52.0, 52.6, 51.7], "top5": [79.0, 79.5, 80.0]},
        "baseline": {"top1": [49.3, 49.9, 48.9], "top5": [79.54, 79.0, 80.0]},
    }
    return Results.from_json(content | changes)


def test_markdown_of_a_known_input() -> None:
    assert results_table(results()).to_markdown() == (
        "| Test accuracy (%) | BiSSL | Only FT | Avg diff | Welch's p |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| Top-1 | **52.1 ± 0.5** | 49.4 ± 0.5 | +2.7 [2.1, 3.4] | 0.002 * |\n"
        "| Top-5 | 79.5 ± 0.5 | 79.5 ± 0.5 | 0.0 [−0.7, 0.7] | 0.976 |\n"
        "\n"
        "dtd, 10 classes, fine-tuning seeds per arm: 3. Mean ± sample standard deviation over the seeds. "
        "Avg diff is BiSSL minus Only FT, in percentage points; in brackets its 95 % bootstrap interval (percentiles "
        "over the seeds, three at least), which with few seeds is too narrow. Bold, as in the paper's Table 1: the "
        "intervals mean ± "
        "standard deviation do not overlap. *: significantly different by Welch's t-test at 5 %.\n"
    )


def test_a_multi_label_set_has_its_map_in_place_of_the_accuracies() -> None:
    voc = results(
        dataset="voc2007", classes=20, bissl={"map": [52.0, 52.6, 51.7]}, baseline={"map": [49.3, 49.9, 48.9]}
    )
    markdown = results_table(voc).to_markdown()
    assert markdown.startswith("| Test precision (%) | BiSSL | Only FT |")
    assert "| mAP | **52.1 ± 0.5** | 49.4 ± 0.5 | +2.7 [2.1, 3.4] | 0.002 * |" in markdown
    assert markdown.endswith("mAP: mean over the classes of VOC2007's 11-point average precision.\n")
    assert verdict(voc).endswith(
        "52.1 ± 0.5\u00a0% against 49.4 ± 0.5\u00a0% 11-point mAP (Welch's t-test, p = 0.002)."
    )


def test_terminal_and_html_carry_the_same_cells() -> None:
    table = results_table(results())
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table.to_rich())
    terminal, html = capture.get(), table.to_html()
    for cell in ("52.1 ± 0.5", "49.4 ± 0.5", "+2.7 [2.1, 3.4]", "0.002", "0.976"):
        assert cell in terminal
        assert cell in html
    assert html.count("<b>") == 1
    assert "<b>52.1 ± 0.5</b>" in html


def test_the_baseline_is_bold_where_it_wins() -> None:
    worse = results(
        bissl={"top1": [40.0, 40.1, 40.2], "top5": [80.0, 80.0]},
        baseline={"top1": [45.0, 45.1, 45.2], "top5": [80.0, 80.0]},
    )
    markdown = results_table(worse).to_markdown()
    assert "| Top-1 | 40.1 ± 0.1 | **45.1 ± 0.1** | −5.0 [−5.1, −4.9] | < 0.001 * |" in markdown
    assert "| Top-5 | 80.0 ± 0.0 | 80.0 ± 0.0 | 0.0 | 1.000 |" in markdown


def row(ours: list[float], theirs: list[float]) -> str:
    scores = {"bissl": {"top1": ours}, "baseline": {"top1": theirs}}
    return results_table(results(**scores)).to_markdown().splitlines()[2]


def test_the_two_marks_stand_each_for_itself() -> None:
    wide = [49.0, 50.0, 51.0]
    assert row([x + 1.2 for x in wide * 5], wide * 5).endswith(
        "| 51.2 ± 0.8 | 50.0 ± 0.8 | +1.2 [0.6, 1.8] | < 0.001 * |"
    )
    assert row([52.0, 54.0], [50.0, 51.0]).startswith("| Top-1 | **53.0 ± 1.4** | 50.5 ± 0.7 | +2.5 | 0.199 |")
    assert row([51.0, 53.0], [50.0, 51.0]).startswith("| Top-1 | 52.0 ± 1.4 | 50.5 ± 0.7 | +1.5 | 0.3")
    assert row([50.0] * 3, [50.00000001] * 3) == "| Top-1 | 50.0 ± 0.0 | 50.0 ± 0.0 | 0.0 | 1.000 |"


def test_difficult_objects_that_count_are_told() -> None:
    voc = {"bissl": {"map": [52.0]}, "baseline": {"map": [49.3]}}
    assert "Difficult" not in results_table(results(**voc, difficult="ignored")).caption
    assert "Difficult objects count as present" in results_table(results(**voc, difficult="present")).caption


def test_one_seed_is_shown_without_spread_and_the_caption_says_why() -> None:
    markdown = results_table(
        results(bissl={"top1": [52.0], "top5": [79.0]}, baseline={"top1": [49.0], "top5": [79.0]}, classes=4)
    ).to_markdown()
    assert "| Top-1 | 52.0 | 49.0 | +3.0 | — |" in markdown
    assert "one seed has no spread" in markdown
    assert "top-5 is 100 % by definition" in markdown


@pytest.mark.parametrize(
    ("ours", "sentence"),
    [
        ([60.0, 60.1, 60.2], "BiSSL is significantly better than fine-tuning only on dtd: 60.1 ± 0.1"),
        ([40.0, 40.1, 40.2], "BiSSL is significantly worse than fine-tuning only on dtd: 40.1 ± 0.1"),
        ([49.0, 50.0, 49.5], "BiSSL is not significantly different from fine-tuning only on dtd: 49.5 ± 0.5"),
        ([60.0], "BiSSL is ahead of fine-tuning only on dtd: 60.0"),
        ([40.0], "BiSSL is behind fine-tuning only on dtd: 40.0"),
    ],
)
def test_the_verdict_says_in_words_who_won(ours: list[float], sentence: str) -> None:
    text = verdict(results(bissl={"top1": ours, "top5": ours}))
    assert text.startswith(sentence)
    assert ("one seed" in text) == (len(ours) == 1)


def test_a_hostile_name_stays_a_name() -> None:
    table = results_table(results(dataset=HOSTILE))
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table.to_rich())
    assert "[red]" in capture.get()
    assert "<script>" not in table.to_html() + table.to_markdown()


@pytest.mark.parametrize("content", [{}, {"dataset": "dtd", "classes": 3, "bissl": [], "baseline": []}])
def test_a_results_file_of_another_shape_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"results\.json"):
        Results.from_json(content)
