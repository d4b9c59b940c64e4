"""Several ranks make a stage once: the first decides and writes, and all stop, fail and go on together."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.ops import Ranks
from bissl_fast.ops.collectives import summed
from bissl_fast.training.files import write_json
from bissl_fast.training.interruption import Interrupted
from bissl_fast.training.loop import LoopSettings, NonFiniteError, Values, run_loop
from bissl_fast.training.ranks.agreement import DistributedSettings, anywhere, lead_first, led
from bissl_fast.training.ranks.lead import is_lead
from bissl_fast.training.stage import run_stage
from tests.ranks import Processes

QUIET, CPU = Console(quiet=True), torch.device("cpu")


class Counting:
    """Adds to a number what all ranks have, and random numbers of the first."""

    images_per_step, log_every = 1, 1

    def __init__(self, ranks: Ranks | None, steps: int, at: int = -1, event: str = "") -> None:
        self.ranks, self.steps, self.at, self.event = ranks, steps, at, event
        self.total = torch.zeros(())

    def step(self, index: int) -> Values:
        own = self.ranks is not None and self.ranks.rank == 1 and index == self.at
        if own and self.event == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        drawn = torch.rand(())
        share = torch.ones(()) if self.ranks is None else summed(torch.full((), 0.5), self.ranks)
        self.total += share
        return {"loss": torch.tensor(float("nan")) if own and self.event == "nan" else share, "drawn": drawn}

    def state(self) -> dict[str, Any]:
        return {"total": self.total.clone()}

    def restore(self, state: dict[str, Any]) -> None:
        self.total = state["total"].clone()


def looped(ranks: Ranks | None, folder: Path, event: str = "") -> tuple[str, float, int, int]:
    """How a stage of five steps ends that meets an event on rank 1 in the third."""
    made, task = [], Counting(ranks, 5, 2, event)

    def body(inner: Path) -> None:
        made.append(inner)
        run_loop(task, inner, CPU, 0, LoopSettings(1e9), QUIET, ranks=ranks)
        if is_lead(ranks):
            (inner / "weights.safetensors").write_bytes(b"%f" % float(task.total))

    try:
        outcome = run_stage(folder / "pretext", {}, {}, body, console=QUIET, ranks=ranks).hash
    except (Interrupted, NonFiniteError) as error:
        outcome = f"{type(error).__name__}: {error}"
    return outcome, float(task.total), len(made), int(torch.initial_seed())


def test_a_stage_is_made_by_all_and_written_by_the_first(two_ranks: Processes, tmp_path: Path) -> None:
    first, second = two_ranks(looped, tmp_path)
    assert first[:3] == second[:3]
    assert first[1:3] == (5.0, 1)
    assert first[3] != second[3]  # layers draw numbers of their own
    again = two_ranks(looped, tmp_path)
    assert [(found[0], found[2]) for found in again] == [(first[0], 0)] * 2
    assert looped(None, tmp_path)[0] == first[0]


def test_a_stop_asked_of_one_rank_stops_all_and_one_process_goes_on(two_ranks: Processes, tmp_path: Path) -> None:
    for outcome, total, *_ in two_ranks(looped, tmp_path, "stop"):
        assert outcome.startswith("Interrupted")
        assert "after step 3 of 5" in outcome
        assert total == 3
    outcome, total, *_ = looped(None, tmp_path)
    assert total == 5
    assert (tmp_path / "pretext" / "weights.safetensors").read_bytes() == b"5.000000"
    assert len((tmp_path / "pretext" / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_number_that_is_not_finite_on_one_rank_stops_all(two_ranks: Processes, tmp_path: Path) -> None:
    first, second = two_ranks(looped, tmp_path, "nan")
    assert "another rank" in first[0]
    assert "loss became nan at step 3" in second[0]


def alone(ranks: Ranks, folder: Path) -> tuple[bool, str]:
    made = []

    def body(inner: Path) -> None:
        made.append(inner)
        (inner / "weights.safetensors").write_bytes(b"whole")

    found = run_stage(folder / "test", {}, {}, body, console=QUIET, ranks=ranks, alone=True)
    return bool(made), found.hash


def test_what_the_first_does_alone_the_others_wait_for(two_ranks: Processes, tmp_path: Path) -> None:
    first, second = two_ranks(alone, tmp_path)
    assert (first[0], second[0]) == (True, False)
    assert first[1] == second[1]


def agreed(ranks: Ranks, folder: Path) -> list[Any]:
    found: list[Any] = [led(lambda: f"rank {ranks.rank}, ä", ranks)]
    with lead_first(ranks):
        if is_lead(ranks):
            (folder / "cache").write_text("there")
        found.append((folder / "cache").read_text())
    found.append(anywhere([ranks.rank == 1, False], ranks))

    def failing() -> str:
        raise UserError("no room left")

    for failure in (lambda: led(failing, ranks), lambda: read_first(ranks, failing)):
        with pytest.raises(UserError, match="no room left"):
            failure()
    return found


def read_first(ranks: Ranks, read: Any) -> None:
    with lead_first(ranks):
        read()


def test_all_hear_what_the_first_has_found_and_how_it_has_failed(two_ranks: Processes, tmp_path: Path) -> None:
    for found in two_ranks(agreed, tmp_path):
        assert found == ["rank 0, ä", "there", [True, False]]


def elsewhere(ranks: Ranks, folder: Path) -> str:
    """Ranks whose folders are not the same one, of which only the first has begun."""
    own = folder / str(ranks.rank)
    own.mkdir()
    if ranks.rank == 0:
        with pytest.raises(Interrupted):
            run_loop(Stopping(None, 5), own, CPU, 0, LoopSettings(1e9), QUIET)
    with pytest.raises(UserError) as failure:
        run_loop(Counting(ranks, 5), own, CPU, 0, LoopSettings(1e9), QUIET, ranks=ranks)
    return str(failure.value)


class Stopping(Counting):
    def step(self, index: int) -> Values:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().step(index)


def test_ranks_that_find_different_checkpoints_are_refused(two_ranks: Processes, tmp_path: Path) -> None:
    for sentence in two_ranks(elsewhere, tmp_path):
        assert "of steps [1, 0]" in sentence
        assert "that all of them share" in sentence


def written(ranks: Ranks, folder: Path) -> None:
    write_json(folder / f"{ranks.rank}.json", {})


def test_of_all_that_write_the_same_only_the_first_does(two_ranks: Processes, tmp_path: Path) -> None:
    two_ranks(written, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["0.json"]


def waiting(ranks: Ranks) -> list[float]:
    """Seconds that collectives wait as --distributed.timeout says, by either name that torch has for it."""
    c10d, found = torch.distributed.distributed_c10d, []
    for absent, seconds in (("_set_pg_timeout", 501.0), ("set_timeout", 502.0)):
        with pytest.MonkeyPatch.context() as patch:
            if absent == "set_timeout" and hasattr(c10d, "set_timeout"):
                patch.setattr(c10d, "_set_pg_timeout", c10d.set_timeout)
            patch.delattr(c10d, absent, raising=False)
            DistributedSettings(timeout=seconds).ranks()
        found.append(c10d._get_default_group()._get_backend(CPU).options._timeout.total_seconds())
    DistributedSettings().ranks()
    return found


def test_the_time_that_ranks_wait_is_set_under_older_and_newer_torch(two_ranks: Processes) -> None:
    assert two_ranks(waiting) == [[501.0, 502.0]] * 2
