"""What is significant over pretext seeds is found from one number per pre-training, apart from fine-tuning's luck."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from bissl_fast.errors import UserError
from bissl_fast.evaluation.comparison import comparison_table, read_comparison
from bissl_fast.evaluation.plan import read_plan
from bissl_fast.evaluation.report.comparison import write_comparison
from bissl_fast.evaluation.statistics import bootstrap_interval, compare_all, holm
from bissl_fast.evaluation.verdict import verdict
from tests.evaluation.comparisons import cost, write_comparison_of

BISSL = [[53.0, 55.0], [50.0, 52.0], [53.0, 53.0]]  # means 54, 51, 53
GESSL = [[50.0, 50.5], [50.2, 50.3], [49.8, 50.6]]
BASE = [[49.0, 51.0], [51.0, 51.0], [50.0, 48.0]]  # means 50, 51, 49
THREE = {"bissl": BISSL, "gessl": GESSL, "baseline": BASE}


def test_the_test_is_welchs_of_the_means_of_the_pretext_seeds(tmp_path: Path) -> None:
    compared = read_comparison(write_comparison_of(tmp_path / "c", {"bissl": BISSL, "baseline": BASE}))
    over = compared.over_pretext_seeds
    assert over.arms[0].scores["top1"].scores == (54.0, 51.0, 53.0)
    (found,) = over.comparisons(over.metrics[0]).values()
    # By hand: differences of means 158/3 − 50, variances 7/3 and 1, so t = (8/3) / √(10/9) = 2.5298.
    assert found.p == pytest.approx(stats.ttest_ind([54, 51, 53], [50, 51, 49], equal_var=False).pvalue, rel=1e-12)
    statistic = (8 / 3) / (10 / 9) ** 0.5
    freedom = (10 / 9) ** 2 / (((7 / 9) ** 2 + (1 / 3) ** 2) / 2)
    assert found.p == pytest.approx(2 * stats.t.sf(statistic, freedom), rel=1e-12)
    every = stats.ttest_ind(sum(BISSL, []), sum(BASE, []), equal_var=False).pvalue  # noqa: RUF017
    assert every < 0.05 < found.p  # six scores of three pre-trainings are no six pre-trainings
    interval = bootstrap_interval([54, 51, 53], [50, 51, 49])  # likewise of the means, of which there are three
    assert found.interval == compared.to_json()["over_pretext_seeds"]["top1"]["bissl"]["interval"] == interval
    assert "BiSSL is not significantly" in verdict(over).replace("bissl", "BiSSL")
    assert "over pretext seeds" in verdict(over)


def test_several_arms_are_corrected_by_holm_over_pretext_seeds_and_within_each(tmp_path: Path) -> None:
    told = read_comparison(write_comparison_of(tmp_path / "c", THREE)).to_json()
    means = {arm: [sum(scores) / 2 for scores in of_arm] for arm, of_arm in THREE.items()}
    p = [stats.ttest_ind(means[arm], means["baseline"], equal_var=False).pvalue for arm in ("bissl", "gessl")]
    over = told["over_pretext_seeds"]["top1"]
    assert [over[arm]["p"] for arm in ("bissl", "gessl")] == pytest.approx(p, rel=1e-9)
    assert [over[arm]["p_corrected"] for arm in ("bissl", "gessl")] == pytest.approx(holm(p), rel=1e-9)
    for seed in range(3):
        within = told["within_pretext_seeds"][seed]["top1"]
        for arm, found in zip(("bissl", "gessl"), compare_all([BISSL[seed], GESSL[seed]], BASE[seed]), strict=True):
            assert within[arm]["p"] == found.p
            assert within[arm]["difference"] == found.difference


def test_scatter_between_and_within_pretext_seeds_is_told_apart(tmp_path: Path) -> None:
    scattered = [[53.0, 55.0], [50.0, 52.0], [51.0, 53.0, 55.0]]  # of the last one model more
    told = read_comparison(write_comparison_of(tmp_path / "c", {"bissl": scattered, "baseline": BASE})).to_json()
    scores = told["arms"]["bissl"]["scores"]["top1"]
    assert scores["between"] == pytest.approx((7 / 3) ** 0.5)
    assert scores["within"] == pytest.approx(((2 + 2 + 8) / 4) ** 0.5)
    assert scores["fine_tuned"] == scattered
    assert scores["means"] == [54.0, 51.0, 53.0]


def test_differences_within_a_seed_are_counted_by_their_sign(tmp_path: Path) -> None:
    apart = [[60.0, 60.1, 60.2], [40.0, 40.1, 40.2], [60.0, 60.2, 60.1]]
    base = [[50.0, 50.1, 50.2]] * 3
    table = comparison_table(read_comparison(write_comparison_of(tmp_path / "c", {"bissl": apart, "baseline": base})))
    row = next(line for line in table.grids[-1].to_markdown().splitlines() if line.startswith("| bissl"))
    assert row == "| bissl | 11.5 | 0.1 | 2 of 3 | 1 of 3 |"


def test_one_pretext_seed_is_shown_and_not_tested(tmp_path: Path) -> None:
    compared = read_comparison(write_comparison_of(tmp_path / "c", {"bissl": BISSL[:1], "baseline": BASE[:1]}))
    assert "one seed has no spread, so no test can be made" in verdict(compared.over_pretext_seeds)
    assert compared.to_json()["over_pretext_seeds"]["top1"]["bissl"]["p"] is None


def write_controls(run: Path, score: float) -> None:
    """A control beside the arms of a run, on two fine-tuning seeds."""
    controls = {"untrained": {"title": "Untrained", "scores": {"top1": [score - 1, score + 1]}}}
    file = run / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"controls": controls}))


def test_controls_stand_beside_the_arms_over_the_pretext_seeds(tmp_path: Path) -> None:
    folder = write_comparison_of(tmp_path / "c", {"bissl": BISSL, "baseline": BASE})
    for seed, score in enumerate((20.0, 22.0, 24.0)):
        write_controls(folder / f"seed-{seed}", score)
    report = write_comparison(folder).read_text()
    told = json.loads((folder / "compare.json").read_text())
    assert told["controls"]["untrained"]["scores"]["top1"]["means"] == [20.0, 22.0, 24.0]
    assert set(told["over_pretext_seeds"]["top1"]) == {"bissl"}  # in no comparison
    table = (folder / "table.md").read_text()
    assert "| Untrained | 22.0 ± 2.0 |" in table
    for shown in (table, report):
        assert "bissl 30.7 points above and baseline 28.0 points above untrained (22.0" in shown
    file = folder / "seed-2" / "results.json"
    results = json.loads(file.read_text())
    del results["controls"]
    file.write_text(json.dumps(results))
    assert read_comparison(folder).over_pretext_seeds.controls == ()  # a mean over other seeds would be no match


@pytest.mark.parametrize(("score", "shown"), [(20.0, True), (21.0, False)])
def test_controls_of_arms_in_runs_of_their_own_are_shown_where_they_are_the_same(
    tmp_path: Path, score: float, shown: bool
) -> None:
    folder = write_comparison_of(tmp_path / "c", {"bissl": BISSL[:1], "baseline": BASE[:1]})
    shutil.copytree(folder / "seed-0", folder / "own")
    plan = json.loads((folder / "plan.json").read_text())
    plan["rows"][0]["runs"] = {"0": "own"}
    (folder / "plan.json").write_text(json.dumps(plan))
    write_controls(folder / "own", 20.0)
    write_controls(folder / "seed-0", score)
    write_comparison(folder)
    assert ("Untrained" in (folder / "table.md").read_text()) == shown


def test_a_seed_that_has_not_run_for_every_arm_is_left_out_and_told(tmp_path: Path) -> None:
    folder = write_comparison_of(tmp_path / "c", {"bissl": BISSL, "baseline": BASE[:2]})
    page = write_comparison(folder).read_text()
    assert "Unfinished: 2 of 3 pretext seeds have run." in page
    assert json.loads((folder / "compare.json").read_text())["finished"] == [0, 1]
    nothing = write_comparison_of(tmp_path / "none", {"bissl": BISSL, "baseline": []})
    assert "No pretext seed" in write_comparison(nothing).read_text()
    assert not (nothing / "compare.json").exists()


def test_time_is_the_mean_over_the_seeds_and_memory_the_largest_of_them(tmp_path: Path) -> None:
    folder = write_comparison_of(tmp_path / "c", {"bissl": BISSL, "baseline": BASE})
    for seed, held in enumerate((2e9, 3e9, 1e9)):
        (folder / f"seed-{seed}" / "bissl" / "seconds.json").write_text(
            json.dumps({"seconds": 10.0 * (seed + 1), "peak_memory": held})
        )
    told = read_comparison(folder).to_json()["arms"]["bissl"]["cost"]
    assert (told["seconds"], told["memory"]) == (20.0, 3e9)
    (folder / "seed-1" / "bissl" / "seconds.json").unlink()  # as of an earlier version
    costs = {arm.name: arm.cost.seconds for arm in read_comparison(folder).over_pretext_seeds.arms}
    assert costs == {"bissl": None, "baseline": 20.0}


def test_an_arm_over_the_budget_is_marked_wherever_it_is_shown(tmp_path: Path) -> None:
    folder = write_comparison_of(tmp_path / "c", {"bissl": BISSL, "baseline": BASE}, kept=True)
    plan = json.loads((folder / "plan.json").read_text())
    plan["rows"][0] |= {"configured": cost(1230), "planned": cost(1230)}
    (folder / "plan.json").write_text(json.dumps(plan))
    sentence = "bissl as configured exceeds the budget by 23 % and runs as configured."
    assert sentence in read_plan(folder).sentences()
    page = write_comparison(folder).read_text()
    assert sentence in page
    assert page.count("bissl (over budget by 23 %)") >= 3
    plan["rows"][0]["planned"], plan["kept"] = cost(990), False
    (folder / "plan.json").write_text(json.dumps(plan))
    assert read_plan(folder).sentences() == ("bissl as configured exceeds the budget by 23 % and is shortened to it.",)
    assert "over budget by" not in write_comparison(folder).read_text()


class Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name == "href"]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_complete_in_itself_and_leads_to_every_run(tmp_path: Path) -> None:
    titles = {"gessl": "<script>$x$ of a very long name that would never fit beside an axis of a figure"}
    folder = write_comparison_of(tmp_path / "c", THREE, titles=titles)
    page = write_comparison(folder).read_text()
    assert write_comparison(folder).read_text() == page
    assert not re.search(r"https?:|@import|url\((?!#)|<script", page)
    assert page.count('<svg class="plot"') == 1
    found = Balance()
    found.feed(page)
    assert not found.open
    assert {f"seed-{seed}/report.html" for seed in range(3)} <= set(found.links)
    assert all((folder / link).is_file() for link in found.links if not link.startswith("#"))
    assert (folder / "figures" / "scores.png").stat().st_size > 1000


def test_an_arm_that_lacks_a_metric_has_a_dash_and_the_others_their_tests(tmp_path: Path) -> None:
    folder = write_comparison_of(tmp_path / "c", THREE)
    for path in folder.glob("seed-*/results.json"):
        content = json.loads(path.read_text())
        for arm in ("bissl", "baseline"):
            content["arms"][arm]["scores"]["top5"] = content["arms"][arm]["scores"]["top1"]
        path.write_text(json.dumps(content))
    compared = read_comparison(folder)
    lines = comparison_table(compared).grids[0].to_markdown().splitlines()
    assert lines[0] == "| Arm | Top-1 (%) | Top-1 diff | Top-1 p | Top-5 (%) | Top-5 diff | Top-5 p |"
    assert next(line for line in lines if line.startswith("| gessl")).endswith("| — | — | — |")
    assert set(compared.to_json()["over_pretext_seeds"]["top5"]) == {"bissl"}
    assert write_comparison(folder).is_file()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"rows": 3}'])
def test_a_damaged_plan_is_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"plan\.json"):
        write_comparison(tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"reference": "another"}, "no row is 'another'"),
        ({"rows": []}, "no row is 'baseline'"),
        ({"seeds": []}, "has no run of each seed"),
        ({"seeds": [0, 1, 2147483648]}, "has no run of each seed"),
        ({"seeds": [float("inf")]}, "cannot convert float infinity"),
        ({"runs": {"0": "../elsewhere"}}, "is no name of a folder"),
        ({"runs": {"0": "seed" * 100}}, "is no name of a folder"),
    ],
)
def test_a_plan_that_contradicts_itself_is_a_sentence(damage: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = write_comparison_of(tmp_path / "c", {"bissl": BISSL[:1], "baseline": BASE[:1]})
    plan = json.loads((folder / "plan.json").read_text())
    (plan["rows"][0] if "runs" in damage else plan).update(damage)
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=said):
        read_plan(folder)
