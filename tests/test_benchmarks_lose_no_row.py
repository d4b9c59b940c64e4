"""A benchmark that is cut off, or a part of which fails, has what it had measured on disk."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import upper_phase
from benchmarks.gpu_report import Report
from bissl_fast.bilevel import HessianOperator, ParameterVector
from bissl_fast.measuring.products import Problem
from tests.bilevel.networks import batches, contrastive, tiny_network

CPU = torch.device("cpu")


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return content


def test_a_row_is_on_disk_as_soon_as_it_is_known(tmp_path: Path) -> None:
    report = Report(tmp_path / "made" / "r", "Title", CPU, SimpleNamespace(pairs=3, output="r"))
    report.row("rows", lambda: {"ms": 1.5}, what="first")

    def killed() -> dict[str, Any]:
        assert read(report.path)["rows"] == [{"what": "first", "ms": 1.5}]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.row("rows", killed, what="second")
    assert read(report.path)["settings"] == {"pairs": "3"}
    assert "| first | 1.5 |" in report.path.with_suffix(".md").read_text()


def test_a_failure_is_a_row_and_the_next_is_measured(tmp_path: Path) -> None:
    report = Report(tmp_path / "r", "Title", CPU)

    def broken() -> dict[str, Any]:
        raise ValueError("no such thing")

    report.row("rows", broken, what="first")
    report.row("rows", lambda: {"ms": 1.0}, what="second")
    expected = [{"what": "first", "error": "ValueError: no such thing"}, {"what": "second", "ms": 1.0}]
    assert read(report.path)["rows"] == expected


def test_after_its_seconds_no_row_is_begun_and_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.gpu_report.time.monotonic", lambda: now[0])
    report = Report(tmp_path / "r", "Title", CPU, seconds=10)

    def slow() -> dict[str, Any]:
        now[0] = 11
        return {"ms": 1.0}

    report.row("rows", slow, what="first")
    report.row("rows", lambda: pytest.fail("begun"), what="second")
    assert read(report.path)["rows"][1] == {"what": "second", "left_out": "10 seconds were over"}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The benchmark of an upper phase on a tiny network."""

    def tiny(backbone: str, size: int, pairs: int, count: int, device: str) -> Problem:
        network = tiny_network().float()
        theta = ParameterVector(network, "backbone.")
        stored: list[Any] = batches(count, dtype=torch.float32)
        return Problem(network, copy.deepcopy(network), theta, contrastive, contrastive, stored, torch.ones(len(theta)))

    def run(*options: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["upper_phase", "--output", str(tmp_path / "phase"), *options])
        monkeypatch.setattr(upper_phase, "problem", tiny)
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        try:
            upper_phase.main()
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]
        return read(tmp_path / "phase")

    return run


def test_the_upper_phase_equals_the_reference_and_holds_one_operator_at_a_time(
    measured: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linearisations of 2x1024 images fill a GPU once, not twice."""
    operators: list[HessianOperator] = []
    update, matmat = HessianOperator.update, HessianOperator.matmat

    def watched_update(self: HessianOperator, *given: Any) -> None:
        operators.extend([] if self in operators else [self])
        update(self, *given)

    def watched(self: HessianOperator, vectors: torch.Tensor) -> torch.Tensor:
        assert all(other.retained == 0 for other in operators if other is not self)
        return matmat(self, vectors)

    monkeypatch.setattr(HessianOperator, "update", watched_update)
    monkeypatch.setattr(HessianOperator, "matmat", watched)
    content = measured("--batches", "2", "--steps", "2", "--iterations", "2", "--memory-budget", "1")
    assert len(operators) == 2
    reference, ours, *others = content["rows"]
    assert reference["what"] == "reference, fp32"
    assert ours["difference_from_reference"] < 1e-4
    assert [len(row["residuals"]) for row in content["rows"]] == [2] * 6
    assert all("error" not in row for row in others)
    assert content["setup"][0]["batches_kept"] == 2


def test_a_brief_upper_phase_tells_the_time_of_all_right_hand_sides(
    measured: Callable[..., dict[str, Any]],
) -> None:
    content = measured("--batches", "1", "--steps", "3", "--iterations", "2", "--brief")
    reference, paper, recycled = content["rows"]
    assert [len(row["residuals"]) for row in content["rows"]] == [1, 1, 2]
    assert paper["times_faster"] == pytest.approx(reference["seconds"] / paper["seconds"])
    assert paper["difference_from_reference"] < 1e-4
    assert recycled["products"] == [[1, 0]] * 3


def test_the_upper_phase_says_which_variants_its_budget_left_out(measured: Callable[..., dict[str, Any]]) -> None:
    content = measured("--budget-seconds", "0")
    assert len(content["rows"]) == 6
    assert all(row["left_out"] == "0 seconds were over" for row in content["rows"])
