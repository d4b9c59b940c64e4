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
from bissl_fast.evaluation.report import PLATES, write_report
from bissl_fast.evaluation.run_folder import RunFolder, read_metrics

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


def test_a_complete_run_gives_every_figure_in_one_self_contained_page(make_run: MakeRun) -> None:
    run = make_run()
    page = write_report(run).read_text()
    assert sorted(path.name for path in (run / "figures").iterdir()) == sorted(f"{p.name}.png" for p in PLATES)
    for path in (run / "figures").iterdir():
        assert min(Image.open(path).size) > 300
    assert 'class="missing"' not in page
    assert page.count("data:image/png;base64,") == len(PLATES)
    assert "BiSSL is significantly better" in page
    assert "lower_steps: 4" in page
    assert "threads 2" in page
    assert "<script" not in page
    assert not re.search(r"https?:|@import|url\(", page)
    links = [value for name, value in parse(page).attributes if name == "href"]
    assert len(links) > 10
    assert all((run / str(link)).is_file() for link in links)


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
    assert [path.name for path in (run / "figures").iterdir()] == ["pretext.png"]  # no figure of the earlier report
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


def test_the_table_lies_beside_the_report_as_markdown(make_run: MakeRun) -> None:
    run = make_run()
    write_report(run)
    text = (run / "table.md").read_text()
    assert text.startswith("| Test accuracy (%) | BiSSL | Only FT |")
    assert "than fine-tuning only" in text or "from fine-tuning only" in text
