"""`bench scaling` writes what is sent, what GPUs would gain, and its predictions beside ranks that really ran."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bissl_fast.cli import main
from bissl_fast.cli.bench import scaling as command
from bissl_fast.errors import UserError
from bissl_fast.measuring import forecast
from bissl_fast.measuring.forecast import LOCAL, Local
from bissl_fast.measuring.local_ranks import Case, Seconds, Share
from bissl_fast.measuring.rank_work import UNITS
from bissl_fast.measuring.scaling import KINDS, Curve, Link
from bissl_fast.measuring.traffic import Line, Traffic

TRAFFIC = Traffic((Line("gather", True, 1e3, 0, 20, 0), Line("sum", True, 4e7, 0, 1, 0)), (500, 1400, 12))
CURVE = Curve(((4, 0.1), (12, 0.3), (32, 0.8)))


def in_two_rates(case: Case, ranks: int, shares: list[Share]) -> Iterator[Seconds]:
    """Ranks that take as long as predicted, and products twice as long, where there are two."""
    for share in shares:
        turns = max(1, ranks // 2)
        yield {u: turns * CURVE.at(share.images) * (2 if ranks == 2 and u == "product" else 1) for u in UNITS}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    curves, links = dict.fromkeys(UNITS, CURVE), {(k, r): Link(0.0, 1e30) for k in KINDS for r in LOCAL[1:]}
    monkeypatch.setattr(command, "recorded_traffic", lambda case: dict.fromkeys(UNITS, TRAFFIC))
    monkeypatch.setattr(command, "measured_apart", lambda *given: Local(2, curves, curves, 1.0, links))
    monkeypatch.setattr(forecast, "together", lambda *given: list(in_two_rates(*given)))


@pytest.mark.usefixtures("measured")
def test_predictions_stand_beside_what_was_measured(tmp_path: Path) -> None:
    main(["bench", "scaling", "--output", str(tmp_path / "scaling.md")])
    text, kept = (tmp_path / "scaling.md").read_text(), json.loads((tmp_path / "scaling.json").read_text())
    rows = {(row["unit"], row["scaling"], row["ranks"]): row for row in kept["Predicted, then run"]}
    assert set(rows) == {(unit, scaling, r) for unit in UNITS for scaling in ("strong", "weak") for r in LOCAL}
    assert rows["product", "strong", 1]["efficiency"] == [1, 1]
    assert rows["product", "strong", 2]["efficiency"] == pytest.approx([1, 0.5])
    assert rows["pretext step", "weak", 4]["efficiency"] == pytest.approx([0.5, 0.5])
    assert "| product | strong | 2 | 16 | 400 | 0 | 0 | 400 | 800 | -50 % | 100 % | 50 % |" in text
    assert "| strong | alternation | 64 | 16 |" in text
    assert "| call | 2.3e-05 | assumed |" in text


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("wrong", [["--pairs", "12"], ["--gpus", "1"], ["--machine", "nowhere"]])
def test_what_cannot_be_forecast_is_refused_before_anything_is_measured(
    wrong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "recorded_traffic", lambda case: pytest.fail("it was measured"))
    with pytest.raises(UserError, match=wrong[0][2:]):
        command.run(wrong)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_ranks_of_this_machine_really_run(tmp_path: Path) -> None:
    case = ["--backbone", "conv4", "--size", "32", "--pairs", "16", "--rounds", "1"]
    main(["bench", "scaling", *case, "--output", str(tmp_path / "scaling.md")])
    kept: dict[str, Any] = json.loads((tmp_path / "scaling.json").read_text())
    assert all(row["seconds"] > 0 and row["predicted"]["computing"] > 0 for row in kept["Predicted, then run"])
    assert {(kind, ranks) for kind, ranks, _ in kept["Collectives"]} == {(k, r) for k in KINDS for r in LOCAL[1:]}
