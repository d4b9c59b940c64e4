"""What one rank reads off the roll: whether it has to end, in whose words, and who tells it."""

import time
from typing import Any

import pytest

from bissl_fast.training.ranks.roll import Farewell, Roll
from bissl_fast.training.ranks.watch import Verdict, verdict

FAILED, LOST = Farewell("failed", 2, "the disk is full"), Farewell("lost", 2)


def read(rank: int, left: dict[int, Farewell], silent: dict[int, int] | None = None) -> Verdict | None:
    """What one of four ranks reads off a roll that it has just heard."""
    roll = Roll(None, rank, 4)
    roll.left, roll.silent = left, roll.silent | (silent or {})
    return verdict(roll, 5, "rank 0")


def test_nobody_ends_while_all_are_there_or_done() -> None:
    assert read(1, {}) is None
    assert read(1, {0: Farewell("done", 0)}, {2: 4}) is None


def test_of_several_that_failed_the_lowest_is_quoted_by_the_lowest_that_is_left() -> None:
    found = [read(rank, {3: FAILED, 1: Farewell("failed", 7, "no such file")}) for rank in (0, 2)]
    assert [(each.text, each.status, each.of) for each in found if each] == [("rank 1: no such file", 7, 1)] * 2
    assert [each.speaks for each in found if each] == [True, False]


def test_a_rank_without_a_sign_is_named_before_those_that_lost_it() -> None:
    found = [read(rank, {3: LOST}, {0: 5}) for rank in (1, 2)]
    assert all(each is not None and each.text.startswith("rank 0 of 4 is gone") for each in found)
    assert [each.speaks for each in found if each] == [True, False]


@pytest.mark.parametrize(("broken", "unheard", "over"), [("", 5.0, False), ("reset", 5.0, True), ("", 60.0, True)])
def test_a_store_that_answers_with_errors_is_given_up_sooner_than_one_that_is_slow(
    broken: str, unheard: float, over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    roll: Any = Roll(None, 1, 4)
    roll.broken, now = broken, roll.heard + unheard
    monkeypatch.setattr(time, "monotonic", lambda: now)
    found = verdict(roll, 5, "rank 0")
    assert (found is not None and found.text.startswith("rank 0 is gone: the store")) == over
