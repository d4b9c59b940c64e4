"""What a launcher tells is taken at its word or refused in a sentence; without one nothing changes."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from bissl_fast.cli import main
from bissl_fast.errors import UserError
from bissl_fast.training.ranks.joining import joined
from bissl_fast.training.ranks.launch import take_gpu
from bissl_fast.training.ranks.launcher import Launch, as_one, many, restart_words
from bissl_fast.training.ranks.roll import Farewell, Roll, named
from bissl_fast.training.ranks.watch import MISSED, verdict

WHERE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what a launcher sets; ``None`` for what it leaves out."""

    def launched(**changed: str | None) -> None:
        for name, value in {**WHERE, **changed}.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return launched


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected 1 or more"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', expected 1 or more"),
        ({"RANK": None}, "RANK is not set, expected a number from 0 to 1"),
        ({"RANK": "2"}, "RANK is '2', expected a number from 0 to 1"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR, the host name of rank 0, is not set"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is '99999', expected a number from 1 to 65535"),
        ({"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE is '3', expected a number from 1 to 2"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1', expected 0 or more"),
    ],
)
def test_an_environment_that_cannot_be_meant_is_a_sentence(
    launched: Callable[..., None], capsys: pytest.CaptureFixture[str], changed: dict[str, str | None], told: str
) -> None:
    launched(**changed)
    assert main(["train"]) == 2
    assert told in capsys.readouterr().err


def test_one_process_is_none_of_many(launched: Callable[..., None]) -> None:
    for size in (None, "", "1"):
        launched(WORLD_SIZE=size)
        assert not many()
        assert restart_words() == ["bissl-fast"]


def test_what_a_rank_starts_is_no_rank(launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    launched(WORLD_SIZE="2")
    monkeypatch.setattr("os.environ", as_one())
    assert not many()


def test_help_and_refusals_are_told_by_one_rank(
    launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    statuses, told = [], []
    for rank in ("0", "1"):
        launched(RANK=rank)
        statuses += [main(["--version"]), main(["doctor"])]
        told.append(capsys.readouterr())
    assert statuses == [0, 2, 0, 2]
    assert "doctor is the work of one process, found 2 ranks" in told[0].err
    assert told[0].out
    assert told[1] == ("", "")


def test_the_way_to_go_on_names_the_launcher(launched: Callable[..., None]) -> None:
    launched(WORLD_SIZE="4", LOCAL_WORLD_SIZE="2", GROUP_WORLD_SIZE="2")
    assert restart_words() == "torchrun --nnodes 2 --nproc-per-node 2 -m bissl_fast.cli".split()  # noqa: SIM905


def started(port: int, ranks: list[int], seconds: float) -> dict[int, Any]:
    """What each rank of two finds in a store that is kept elsewhere, as torchrun keeps it."""
    found: dict[int, Any] = {}

    def join(rank: int) -> None:
        try:
            roll, store = joined(Launch(rank, 2, None, "127.0.0.1", port, agent=True), seconds)
            store.set(f"from/{rank}", "x")
            found[rank] = (roll, store)
        except (UserError, SystemExit) as error:
            found[rank] = error

    threads = [threading.Thread(target=join, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_ranks_that_are_started_again_hear_nothing_of_those_before() -> None:
    server = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=20), wait_for_workers=False)
    for _ in range(3):
        (first, store), (second, same) = started(server.port, [0, 1], 20.0).values()
        assert store.check(["from/0", "from/1"])
        assert same.check(["from/0", "from/1"])
        assert store.add("counted", 1) == 1
        assert not first.left
        for roll in (first, second):
            roll.leave(Farewell("failed", 2, "of this start"))
            roll.stop()


def test_a_rank_that_does_not_come_is_named_and_the_others_are_told() -> None:
    server = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=20), wait_for_workers=False)
    assert "rank 1 of 2 did not come within 1 s" in str(started(server.port, [0], 0.5 + 0.5)[0])


@pytest.mark.parametrize(("gpus", "taken"), [(2, [0, 1]), (1, ["ranks 0 and 1 would share a GPU"] * 2)])
def test_each_rank_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, gpus: int, taken: list[Any]) -> None:
    store, found = dist.HashStore(), {}
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(uuid=f"gpu-{index}"))
    monkeypatch.setattr("torch.cuda.set_device", lambda index: found.setdefault(threading.get_ident(), index))

    def take(rank: int) -> Any:
        try:
            take_gpu(Launch(rank, 2, rank, "127.0.0.1", 1, agent=True), store, rank)
        except UserError as error:
            return str(error).split(":")[0]
        return found[threading.get_ident()]

    with ThreadPoolExecutor(2) as ranks:
        assert list(ranks.map(take, range(2))) == taken


def test_the_roll_tells_the_silent_from_those_that_took_leave() -> None:
    store = dist.HashStore()
    first, second = (Roll(store, rank, 2) for rank in range(2))
    for roll in (first, second):
        roll._store.set(f"left/{roll.rank}", "")
        roll._store.set(f"answered/{roll.rank}", "")
        roll._store.set(f"beat/{roll.rank}", "0")
    second._exchange(counts=True)
    for _ in range(MISSED + 1):
        assert first.gone(MISSED) == ()
        first._exchange(counts=True)
    assert first.gone(MISSED) == (1,)
    found = verdict(first, MISSED, "rank 0")
    assert found is not None
    assert found.text.startswith("rank 1 of 2 is gone")
    second.leave(Farewell("failed", 2, "its own words"))
    second._exchange(counts=True)
    first._exchange(counts=True)
    found = verdict(first, MISSED, "rank 0")
    assert first.gone(MISSED) == ()
    assert found is not None
    assert (found.text, found.of, found.speaks) == ("rank 1: its own words", 1, True)


def test_ranks_are_named_as_one_says_them() -> None:
    assert [named(ranks) for ranks in ([4], {1, 0}, (2, 0, 7))] == ["rank 4", "ranks 0 and 1", "ranks 0, 2 and 7"]
