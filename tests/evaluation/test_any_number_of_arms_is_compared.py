from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.evaluation.results import Results
from bissl_fast.evaluation.statistics import compare
from bissl_fast.evaluation.table import results_table
from bissl_fast.evaluation.verdict import verdict

GOOD, LIKE, BASE = [52.0, 52.6, 51.7], [50.0, 50.6, 49.3], [49.3, 49.9, 48.9]


def arm(top1: list[float], **about: Any) -> dict[str, Any]:
    return {"scores": {"top1": top1}, **about}


def results(**arms: dict[str, Any]) -> Results:
    return Results.from_json({"dataset": "dtd", "classes": 10, "arms": arms})


def terminal(found: Results, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(results_table(found).to_rich())
    return console.export_text()


def test_two_arms_read_as_a_file_of_before_reads() -> None:
    scores = {"bissl": {"top1": GOOD, "top5": [79.0]}, "baseline": {"top1": BASE, "top5": [78.0]}}
    old = Results.from_json({"dataset": "dtd", "classes": 10, **scores})
    new = results(**{name: {"scores": found} for name, found in scores.items()})
    assert new == old
    assert results_table(new).to_markdown().startswith("| Test accuracy (%) | BiSSL | Only FT | Avg diff | Welch's p |")


def test_more_than_two_arms_have_a_row_each_in_the_order_of_the_methods() -> None:
    markdown = results_table(results(bissl=arm(GOOD), baseline=arm(BASE), mine=arm(LIKE, title="Mine"))).to_markdown()
    assert markdown.splitlines()[:5] == [
        "| Arm | Top-1 (%) | Top-1 diff | Top-1 p |",
        "| --- | ---: | ---: | ---: |",
        "| BiSSL | **52.1 ± 0.5** | +2.7 [2.1, 3.4] | 0.002 * |",
        "| Only FT | 49.4 ± 0.5 |  |  |",
        "| Mine | 50.0 ± 0.7 | +0.6 [−0.2, 1.4] | 0.279 |",
    ]
    assert "Holm's correction for the 2 comparisons per metric" in markdown


def test_the_reference_is_bold_only_where_it_beats_all_others() -> None:
    def reference(*others: list[float]) -> str:
        found = results(**{f"m{index}": arm(scores) for index, scores in enumerate(others)}, baseline=arm(BASE))
        return next(line for line in results_table(found).to_markdown().splitlines() if line.startswith("| Only FT"))

    low = [40.0, 40.1, 40.2]
    assert reference(low, low).startswith("| Only FT | **49.4 ± 0.5**")
    assert reference(low, LIKE).startswith("| Only FT | 49.4 ± 0.5")


def test_without_a_baseline_the_last_arm_is_the_reference() -> None:
    assert results(bissl=arm(GOOD), gessl=arm(BASE)).reference.name == "gessl"
    assert results(baseline=arm(BASE), bissl=arm(GOOD)).reference.name == "baseline"
    found = results(bissl=arm(GOOD), gessl=arm(BASE))
    assert verdict(found).startswith("BiSSL is significantly better than GeSSL on dtd: 52.1 ± 0.5")
    assert "Avg diff is BiSSL minus GeSSL" in results_table(found).caption


def test_the_word_significantly_is_holms_and_not_each_tests_own() -> None:
    near = [50.4, 50.9, 50.3]
    alone, among = results(gessl=arm(near), baseline=arm(BASE)), [results_of_many(near, k) for k in (1, 2)]
    p = compare(near, BASE).p
    assert p is not None
    assert 0.05 / 2 < p < 0.05
    assert "GeSSL is significantly better" in verdict(alone)
    for found in among:
        assert "GeSSL is not significantly different" in verdict(found)
        row = next(line for line in results_table(found).to_markdown().splitlines() if line.startswith("| GeSSL"))
        assert row.endswith("| 0.036 |")  # Welch's own, without the mark
    assert verdict(among[1]).endswith("; 3 comparisons (Welch's t-test with Holm's correction).")


def results_of_many(near: list[float], others: int) -> Results:
    alike = {f"m{index}": arm([49.0, 50.0, 49.5]) for index in range(others)}
    return results(gessl=arm(near), **alike, baseline=arm(BASE))


def test_the_verdict_of_many_names_each_arm_once() -> None:
    found = results(bissl=arm(GOOD), gessl=arm(LIKE), abrl=arm([40.0, 40.1, 40.2]), baseline=arm(BASE))
    assert verdict(found).replace("\u00a0", " ") == (
        "Against fine-tuning only (49.4 ± 0.5 % top-1 accuracy) on dtd, BiSSL is significantly better (52.1 ± 0.5 %), "
        "GeSSL is not significantly different (50.0 ± 0.7 %) and ABRL is significantly worse (40.1 ± 0.1 %); "
        "3 comparisons (Welch's t-test with Holm's correction)."
    )


def test_an_arm_that_cannot_be_tested_is_named_and_is_not_counted_in_the_correction() -> None:
    found = results(bissl=arm([52.0]), gessl=arm(GOOD), baseline=arm(BASE))
    text = verdict(found)
    assert "BiSSL is ahead (52.0" in text
    assert "GeSSL is significantly better" in text
    assert text.endswith(
        "; 2 comparisons, 1 tested (Welch's t-test); BiSSL: one seed has no spread, so no test can be made."
    )
    caption = results_table(found).caption
    assert "Top-1 of BiSSL: one seed has no spread" in caption
    assert "seeds per arm: 1 (BiSSL), 3 (GeSSL) and 3 (Only FT)" in caption
    assert list(found.comparisons(found.metrics[0]).values())[1].corrected is None


def test_one_arm_alone_is_shown_and_compared_with_nothing() -> None:
    found = results(bissl=arm(GOOD))
    markdown = results_table(found).to_markdown()
    assert markdown.startswith("| Test accuracy (%) | BiSSL |\n| --- | ---: |\n| Top-1 | 52.1 ± 0.5 |\n")
    assert "Welch" not in markdown + verdict(found)
    assert verdict(found).replace("\u00a0", " ") == (
        "BiSSL reaches 52.1 ± 0.5 % top-1 accuracy on dtd: there is no other arm to compare it with."
    )


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_terminal_shows_every_cell_in_eighty_columns(count: int) -> None:
    names = ["baseline", "bissl", "gessl", "fussl", "abrl", "an-arm-of-a-very-long-name"][:count]
    cost = {"images": 999_999, "passes": 123_456, "products": 123_456, "model_epochs": 1234.5}
    arms = {
        name: {"scores": {"top1": [100.0 - 20 * k, 88.0 - 20 * k], "top5": [100.0, 100.0]}, "cost": cost}
        for k, name in enumerate(names)
    }
    found = results(**arms)
    shown = terminal(found)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for grid in results_table(found).grids:
        for row in grid.rows:
            assert all(cell.text in shown for cell in row[1:])


def test_costs_are_shown_in_numbers_that_people_read_and_a_dash_where_unknown() -> None:
    bissl = {"images": 1_234_567, "passes": 12345, "products": 180, "model_epochs": 12.5}
    markdown = results_table(
        results(bissl=arm(GOOD, cost=bissl), baseline=arm(BASE, cost={"passes": 9, "products": 0}))
    ).to_markdown()
    assert "| Cost | Images | Passes | Products | Model-epochs |" in markdown
    assert "| BiSSL | 1.2 M | 12,345 | 180 | 12.5 |" in markdown
    assert "| Only FT | — | 9 | 0 | — |" in markdown
    assert "Budgets" not in markdown  # of one that is not known nothing is said
    partly = results_table(results(bissl=arm(GOOD, cost={"products": 5}), baseline=arm(BASE))).to_markdown()
    assert "| Cost | Products |" in partly


def test_what_no_arm_states_is_no_table() -> None:
    assert "Cost" not in results_table(results(bissl=arm(GOOD), baseline=arm(BASE, cost={}))).to_markdown()


@pytest.mark.parametrize(("epochs", "told"), [(102.0, False), (102.1, True), (97.9, True), (0.0, True)])
def test_budgets_that_differ_by_more_than_two_percent_are_told_everywhere(epochs: float, told: bool) -> None:
    costs = ({"model_epochs": epochs}, {"model_epochs": 100.0})
    table = results_table(results(bissl=arm(GOOD, cost=costs[0]), baseline=arm(BASE, cost=costs[1])))
    for text in (table.to_markdown(), table.to_html()):
        assert ("Budgets are not equal" in text) == told


def test_of_many_unequal_budgets_the_ends_are_named() -> None:
    arms = {name: arm(GOOD, cost={"model_epochs": n}) for name, n in (("bissl", 12), ("gessl", 15), ("baseline", 10))}
    assert (
        "GeSSL took the most model-epochs, 15.0, and Only FT the fewest, 10.0" in results_table(results(**arms)).caption
    )


def test_a_hostile_title_stays_text_in_its_cell() -> None:
    hostile = arm(GOOD, title="<script>a|b\n| c</script>[red]")
    for arms in ({"x": hostile, "baseline": arm(BASE)}, {"x": hostile, "y": arm(LIKE), "baseline": arm(BASE)}):
        found = results(**arms)
        table = results_table(found)
        lines = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
        assert "<script>" not in table.to_markdown() + table.to_html()
        assert "[red]" in terminal(found, width=200)


@pytest.mark.parametrize(
    "arms",
    [
        {},
        [],
        {"bissl": {"title": "BiSSL"}},
        {"bissl": {"scores": {"top1": GOOD}}, "baseline": {"scores": {"top5": BASE}}},
        {"bissl": {"scores": {"top1": GOOD}, "cost": {"images": "many"}}},
        {"bissl": {"scores": {"top1": GOOD}, "cost": {"images": -1}}},
        {"bissl": {"scores": {"top1": GOOD}, "cost": {"images": float("nan")}}},
        {"bissl": {"scores": {"top1": GOOD}, "cost": [1]}},
    ],
)
def test_arms_of_another_shape_are_refused(arms: Any) -> None:
    with pytest.raises(UserError, match=r"results\.json is not as the test stage writes it"):
        Results.from_json({"dataset": "dtd", "classes": 10, "arms": arms})
