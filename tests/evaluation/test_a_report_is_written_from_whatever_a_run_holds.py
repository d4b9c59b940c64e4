from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bissl_fast.errors import UserError
from bissl_fast.evaluation import run_folder
from bissl_fast.evaluation.report import run as report
from bissl_fast.evaluation.report.run import PLATES, write_report
from bissl_fast.evaluation.run_folder import RunFolder
from bissl_fast.plain import parse_yaml
from bissl_fast.training.log import read_metrics
from tests.evaluation.conftest import CLASSES, make_arms

MakeRun = Callable[..., Path]
VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Collects tags and fails where they do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return parser


@pytest.fixture(autouse=True)
def no_pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty PNG files beside the page, half of a report's time, but for the one test that looks into them."""
    if request.function is not test_a_complete_run_gives_every_figure_in_one_self_contained_page:
        monkeypatch.setattr(report, "png", lambda figure: b"")


def test_a_complete_run_gives_every_figure_in_one_self_contained_page(make_run: MakeRun) -> None:
    run = make_run()
    page = write_report(run).read_text()
    assert sorted(path.name for path in (run / "figures").iterdir()) == sorted(f"{p.name}.png" for p in PLATES)
    for path in (run / "figures").iterdir():
        assert min(Image.open(path).size) > 300
    assert 'class="missing"' not in page
    assert page.count('<svg class="plot"') == len(PLATES)
    assert "BiSSL is significantly better" in page
    assert "lower_steps: 4" in page
    assert "threads 2" in page
    assert re.search(r"<b>class &lt;\d+&gt;</b> taken for <b>class &lt;\d+&gt;</b>", page)
    assert "bissl-fast train --config config.yaml --output again" in page
    assert "<script" not in page
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    values = [str(value) for name, value in parse(page).attributes if name == "href"]
    links = [value for value in values if not value.startswith(("#", "data:"))]
    assert len(links) > 10
    assert all((run / link).is_file() for link in links)


def test_the_same_folder_gives_the_same_bytes(make_run: MakeRun) -> None:
    run = make_run()
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_an_unfinished_run_gives_a_report_that_says_what_is_missing(make_run: MakeRun) -> None:
    run = make_run()
    write_report(run)
    for stage in (
        "bissl",
        "test",
        "pretext-baseline",
        *(f"finetune-{arm}-{k}" for arm in ("bissl", "baseline") for k in range(3)),
    ):
        shutil.rmtree(run / stage)
    for name in ("results.json", "environment.json"):
        (run / name).unlink()
    page = write_report(run).read_text()
    parse(page)
    drawn = sorted(path.name for path in (run / "figures").iterdir())
    assert drawn == ["collapse.png", "pretext.png"]  # no figure of the earlier report
    for sentence in (
        "No result yet: results.json has not been written yet.",
        "Left out: environment.json has not been written yet.",
        "Left out: test/features.npz has not been written yet.",
        "Left out: test/views.npz has not been written yet.",
        "Left out: No CG residual has been logged yet.",
        "Left out: No validation accuracy has been logged yet.",
    ):
        assert sentence in page


def test_damaged_files_are_named_and_do_not_stop_the_report(make_run: MakeRun) -> None:
    run = make_run()
    (run / "results.json").write_text('{"dataset": "dt')
    (run / "environment.json").write_text("[]")
    (run / "config.yaml").write_bytes(b"\xff\xfe\x00")
    (run / "test" / "features.npz").write_bytes((run / "test" / "features.npz").read_bytes()[:200])
    np.savez(run / "test" / "views.npz", images=np.zeros((0, 3, 8, 8, 3), np.uint8))
    page = write_report(run).read_text()
    parse(page)
    assert "results.json is not valid JSON" in page
    assert "environment.json holds a list" in page
    assert "config.yaml cannot be read" in page
    assert "features.npz cannot be read" in page
    assert "cannot be drawn" in page


def test_stages_of_one_record_and_one_seed_are_drawn(make_run: MakeRun) -> None:
    run = make_run(seeds=1, alternations=1)
    page = write_report(run).read_text()
    assert 'class="missing"' not in page
    assert "one seed has no spread" in page


def test_a_hostile_name_is_escaped_everywhere(make_run: MakeRun) -> None:
    run = make_run(dataset="<script>alert(1)</script>\"'&")
    (run / "config.yaml").write_text("dataset: </pre><script>alert(2)</script>\n")
    (run / "environment.json").write_text(json.dumps({"<script>": {"<b>": "</dl><script>"}}))
    page = write_report(run).read_text()
    parse(page)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_last_line_is_ignored(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    assert [record["step"] for record in read_metrics(log)] == [1, 2]


def test_a_resumed_log_counts_every_step_once(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 5}\n{"ste{"step": 2}\n{"step": 2, "loss": 1}\n7\n')
    assert read_metrics(log) == [{"step": 1, "loss": 2}, {"step": 2, "loss": 1}]


def test_an_absent_log_is_empty(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_seeds_are_ordered_by_number(make_run: MakeRun) -> None:
    run = make_run(seeds=1)
    for seed in (10, 2):
        shutil.copytree(run / "finetune-bissl-0", run / f"finetune-bissl-{seed}")
    stages = RunFolder(run).stages()
    assert stages[:4] == ["pretext-warmup", "head-warmup", "bissl", "pretext-baseline"]  # as they are run
    assert stages[4:7] == ["finetune-bissl-0", "finetune-bissl-2", "finetune-bissl-10"]


def test_a_run_of_many_arms_tells_of_every_one(make_run: MakeRun) -> None:
    run = make_run(arms=("gessl", "bissl", "mine", "baseline"), images=24)
    page = write_report(run).read_text()
    parse(page)
    assert 'class="missing"' not in page
    assert page.count('<svg class="plot"') == len(PLATES)
    assert "<h1>Arm gessl, Arm bissl and Arm mine on textures</h1>" in page
    for name in ("gessl", "bissl", "mine", "baseline"):
        assert page.count(f'<th scope="row">Arm {name}</th>') >= 2  # scores and costs
    assert "Budgets are not equal: Arm baseline took the most model-epochs, 13.0, and Arm gessl the fewest" in page
    assert write_report(run).read_text() == page


def test_a_run_without_bissl_has_no_place_for_what_bissl_alone_has(make_run: MakeRun) -> None:
    run = make_run(images=24)
    write_report(run)
    make_arms(run, ("mine",))
    page = write_report(run).read_text()
    parse(page)
    assert 'class="missing"' not in page
    assert "Both levels of BiSSL" not in page
    assert "“Only FT”" not in page
    assert sorted(path.stem for path in (run / "figures").iterdir()) == sorted(p.name for p in PLATES if not p.arm)
    assert "there is no other arm to compare it with" in page


def test_a_run_of_pretext_training_alone_tells_of_that_and_waits_for_nothing(make_run: MakeRun) -> None:
    whole = make_run(images=24)
    run = whole.parent / "pretrained"
    run.mkdir()
    (whole / "pretext-warmup").rename(run / "pretext")
    (whole / "environment.json").rename(run / "environment.json")
    (run / "config.yaml").write_text("pretext_dataset: <photos>\npretext:\n  task: byol\n")
    page = write_report(run).read_text()
    parse(page)
    assert "<h1>Pretext training of byol on &lt;photos&gt;</h1>" in page
    assert "unfinished" not in page
    assert 'class="missing"' not in page
    assert page.count('<svg class="plot"') == 2
    assert sorted(path.name for path in (run / "figures").iterdir()) == ["collapse.png", "pretext.png"]


def test_a_hostile_title_is_escaped_in_page_and_figures(make_run: MakeRun) -> None:
    run = make_run(arms=("bissl", "mine", "baseline"), images=24)
    results = json.loads((run / "results.json").read_text())
    results["arms"]["mine"]["title"] = "<script>$x_{$" + "y" * 200
    (run / "results.json").write_text(json.dumps(results))
    page = write_report(run).read_text()
    parse(page)
    assert "<script" not in page
    assert page.count('<svg class="plot"') == len(PLATES)


def test_arms_are_those_of_the_methods_and_else_those_that_the_folders_show(make_run: MakeRun) -> None:
    run = make_run(arms=("mine", "bissl", "baseline"), images=24)
    assert RunFolder(run).arms() == ["mine", "bissl", "baseline"]
    assert RunFolder(run).titles()["mine"] == "Arm mine"
    for listed in ("dataset: dtd\n", "methods: 7\n", "methods: []\n", "[", "\x00"):
        (run / "config.yaml").write_text(listed)
        assert RunFolder(run).arms() == ["bissl", "mine", "baseline"]
    (run / "results.json").unlink()
    assert RunFolder(run).titles() == {"bissl": "BiSSL", "mine": "mine", "baseline": "Only FT"}


def test_before_an_arm_shows_a_run_is_of_the_two_of_the_paper(tmp_path: Path) -> None:
    (tmp_path / "pretext-warmup").mkdir()
    (tmp_path / "pretext-warmup" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert RunFolder(tmp_path).arms() == ["bissl", "baseline"]


def test_stages_of_many_arms_are_listed_arm_by_arm(make_run: MakeRun) -> None:
    stages = RunFolder(make_run(arms=("mine", "bissl", "baseline"), images=24)).stages()
    assert stages[:5] == ["pretext-warmup", "head-warmup", "mine", "bissl", "pretext-baseline"]
    assert stages[5:] == [f"finetune-{arm}-{k}" for arm in ("mine", "bissl", "baseline") for k in range(3)] + ["test"]


def test_features_of_no_arm_are_a_sentence(make_run: MakeRun) -> None:
    run = make_run(images=24)
    np.savez(run / "test" / "features.npz", labels=np.arange(24) % 3)
    assert "features.npz has the features of no arm of this run" in write_report(run).read_text()


def test_predictions_of_no_arm_or_none_at_all_leave_no_place_for_confused_classes(make_run: MakeRun) -> None:
    run = make_run(images=24)
    assert "Classes most often confused" in write_report(run).read_text()
    kept = dict(np.load(run / "test" / "predictions.npz"))
    np.savez(run / "test" / "predictions.npz", labels=kept["labels"], classes=kept["classes"])
    assert "Classes most often confused" not in write_report(run).read_text()
    (run / "test" / "confused.npz").unlink()
    page = write_report(run).read_text()
    assert "Classes most often confused" not in page
    assert 'class="missing"' not in page


def test_classes_and_calibration_are_told_in_words_and_numbers_and_have_no_place_where_the_test_kept_none(
    make_run: MakeRun,
) -> None:
    run = make_run(images=24)
    page = write_report(run).read_text()
    details = json.loads((run / "test" / "details.json").read_text())["arms"]["bissl"]
    mean, spread = np.mean(details["ece"]), np.std(details["ece"], ddof=1)
    assert f"BiSSL {mean:.1f} ± {spread:.1f}\u00a0%, " in page
    by_class = np.mean(details["per_class"], axis=0)
    assert f"BiSSL: mean {np.mean(details['mean_per_class']):.1f} ± " in page
    assert f"to {by_class.max():.1f}\u00a0% (class &lt;{by_class.argmax()}&gt;)" in page
    assert page.split('<section id="classes">')[1].split("</section>")[0].count('<th scope="row">') == CLASSES
    filled = sum(count > 0 for count in details["reliability"]["counts"])
    assert filled <= len(re.findall(r'<th scope="row">\d+\.\d to \d+\.\d', page)) <= 15
    for content in ("{}", '{"classes": [], "arms": {"bissl": 7}}', "[", None):
        (run / "test" / "details.json").write_text(content) if content else (run / "test" / "details.json").unlink()
        page = write_report(run).read_text()
        parse(page)
        assert "calibration error" not in page
        assert 'class="missing"' not in page
        assert not (run / "figures" / "calibration.png").exists()


def test_a_run_that_has_logged_no_spread_has_no_place_for_it(make_run: MakeRun) -> None:
    run = make_run(images=24)
    assert "effective rank" in write_report(run).read_text()
    for stage in ("pretext-warmup", "bissl", "pretext-baseline"):
        log = run / stage / "metrics.jsonl"
        records = [json.loads(line) for line in log.read_text().splitlines()]
        kept = [{k: v for k, v in r.items() if k not in ("spread", "effective_rank")} for r in records]
        log.write_text("".join(f"{json.dumps(record)}\n" for record in kept))
    page = write_report(run).read_text()
    assert "effective rank" not in page
    assert 'class="missing"' not in page
    assert not (run / "figures" / "collapse.png").exists()


def test_the_table_lies_beside_the_report_as_markdown(make_run: MakeRun) -> None:
    run = make_run()
    write_report(run)
    text = (run / "table.md").read_text()
    assert text.startswith("| Test accuracy (%) | BiSSL | Only FT |")
    assert "than fine-tuning only" in text or "from fine-tuning only" in text


def test_arrays_and_logs_of_strange_shapes_and_values_do_not_stop_the_report(make_run: MakeRun) -> None:
    run = make_run(seeds=1, alternations=3, images=14)
    test = run / "test"
    np.savez(test / "confused.npz", pairs=np.array([[10**12, -3]]), indices=np.array(3), images=np.zeros((1, 2)))
    np.savez(test / "views.npz", images=np.zeros(3))
    np.savez(test / "features.npz", bissl=np.zeros((2, 3)), baseline=np.array("a"), labels=np.zeros((4, 4)))
    strange = ['{"step": 1, "loss": "high"}', '{"step": 2, "loss": [[]]}', "[" * 100_000, '{"step": true, "loss": {}}']
    for stage in ("pretext-warmup", "bissl", "finetune-bissl-0"):
        (run / stage / "metrics.jsonl").write_text("\n".join(strange))
    (run / "config.yaml").write_text("a: &a [*a]")
    (run / "environment.json").write_text("[" * 100_000)
    page = write_report(run).read_text()
    assert "What is drawn here is not as a run writes it" in page
    assert "environment.json is not valid JSON (it is nested too deeply)" in page


def test_a_hostile_class_is_escaped_in_page_and_figures(make_run: MakeRun) -> None:
    run = make_run(seeds=1, alternations=3, images=24)
    predictions = dict(np.load(run / "test" / "predictions.npz"))
    predictions["classes"] = np.array([f"<script>{k}</script><img src=x onerror=alert(1)>" for k in range(12)])
    np.savez(run / "test" / "predictions.npz", **predictions)
    page = write_report(run).read_text()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<img src=x" not in page


def test_settings_are_parsed_once_for_a_report_and_anew_where_they_have_changed(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(run_folder, "parse_yaml", lambda text: parsed.append(text) or parse_yaml(text))
    run = make_run()
    text = (run / "config.yaml").read_text() + "seed: 417\n"
    (run / "config.yaml").write_text(text)
    write_report(run)
    assert parsed.count(text) == 1
    (run / "config.yaml").write_text(text.replace("417", "418"))
    assert RunFolder(run).settings()["seed"] == 418
