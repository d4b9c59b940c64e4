"""scripts/kill_runs.py, which kills 200 times by itself, with a few kills; and that it would find what is wrong."""

import json
import sys
from pathlib import Path

from scripts.kill_runs import Chain, differing, main, outcome, summary
from tests.forks import forked


def kill(*options: str) -> None:
    """The script with these options, one run after the other, each forked."""
    sys.argv = ["kill_runs", "--jobs", "1", "--cold", "0", "--seed", "3", *options]
    sys.exit(main())


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    process = forked(kill, "--runs", "baseline", "--kills", "4", "--output", str(tmp_path / "kills"))
    process.daemon = False  # it has children
    process.start()
    process.join(280)
    record = json.loads((tmp_path / "kills.json").read_text())
    assert process.exitcode == 0, record["failures"]
    assert record["kills"] == record["rows"]["baseline"]["kills"] >= 4
    assert record["rows"]["baseline"]["same_bits"] == record["rows"]["baseline"]["runs"]
    assert "SIGKILLs" in (tmp_path / "kills.md").read_text()


def test_other_bits_and_missing_ones_are_differences(tmp_path: Path) -> None:
    stage = tmp_path / "runs" / "run" / "pretext"
    stage.mkdir(parents=True)
    (stage / "DONE").write_text('{"outputs": {"weights.safetensors": "12"}}')
    (stage.parent / "results.json").write_text("{}")
    found = outcome(tmp_path)
    assert set(found) == {"run/pretext", "run/results.json"}
    assert differing(found, found) == []
    assert differing(found, found | {"run/results.json": "[]"}) == ["run/results.json"]
    assert differing(found, found | {"run/test": "34"}) == ["run/test"]


def test_failures_are_counted_apart_from_runs_that_went_well() -> None:
    found = summary([Chain("bissl", ["bissl", "head"]), Chain("bissl", ["bissl"], failure="other bits in run/bissl")])
    assert found["rows"]["bissl"] == {"runs": 2, "kills": 3, "same_bits": 1, "places": {"bissl": 2, "head": 1}}
    assert [failure["failure"] for failure in found["failures"]] == ["other bits in run/bissl"]
