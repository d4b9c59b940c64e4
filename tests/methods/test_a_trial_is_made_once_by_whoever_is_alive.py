"""Several processes share a search: none makes a trial that another is at or has finished, and no death loses one."""

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from scipy.stats import kstest, pearsonr
from sqlalchemy import text

from bissl_fast.errors import UserError
from bissl_fast.methods.search.databases import ServerLeases, engine
from bissl_fast.methods.search.settings import SearchSettings, Trial
from bissl_fast.methods.search.study import Attempt, SearchStudy
from tests.methods.postgres import postgresql

TRIALS = 8


def take_part(url: str, log: Path, seconds: float) -> None:
    """What a process does, once it may: make trials of so many seconds until all are finished, and say so."""

    def write(*words: object) -> None:
        with open(log, "ab", buffering=0) as file:
            file.write(f"{' '.join(map(str, words))}\n".encode())

    def work(attempt: Attempt) -> None:
        write("begin", attempt.number, os.getpid())
        time.sleep(seconds)
        attempt.report(1, attempt.number, 1.0)
        write("end", attempt.number, os.getpid())

    study = SearchStudy(url, "study", SearchSettings(TRIALS), 0, 1)
    write("ready", "-", os.getpid())
    while not log.with_name("go").exists():
        time.sleep(0.01)
    while study.unfinished():
        if study.step(work) is None:
            time.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'search.db'}"
    else:
        with postgresql() as server:
            yield server


def lines(log: Path) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(log: Path, word: str, pid: int | None) -> str:
    """The trial of which a process says so."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for said, number, by in lines(log):
            if (said, by) == (word, str(pid)):
                return number
        time.sleep(0.02)
    raise AssertionError(f"no {word!r} of {pid}")


def test_two_processes_never_make_one_trial_and_what_a_killed_one_was_at_is_made_again(
    url: str, tmp_path: Path
) -> None:
    log, fork = tmp_path / "log", multiprocessing.get_context("fork")
    doomed, *others = (fork.Process(target=take_part, args=(url, log, seconds)) for seconds in (3600, 0.1, 0.1))
    try:
        for process in (doomed, *others):
            process.start()
            wait_for(log, "ready", process.pid)
        (tmp_path / "go").touch()
        lost = wait_for(log, "begin", doomed.pid)
        wait_for(log, "end", others[0].pid)
        doomed.kill()
        for process in (doomed, *others):
            process.join(60)
        assert [process.exitcode for process in (doomed, *others)] == [-signal.SIGKILL, 0, 0]
    finally:
        for process in (doomed, *others):
            process.kill()
    at_work: dict[str, str] = {}
    ended = []
    for said, number, pid in lines(log):
        if said == "begin":
            assert at_work.get(number, str(doomed.pid)) == str(doomed.pid)
            at_work[number] = pid
        elif said == "end":
            assert at_work.pop(number) == pid
            ended.append(number)
    assert sorted(ended, key=int) == [str(number) for number in range(TRIALS)]
    assert [number for said, number, _ in lines(log) if said == "begin"].count(lost) == 2
    trials = SearchStudy(url, "study", SearchSettings(TRIALS), 0, 1).trials()
    assert [(number, trial.score) for number, trial in trials.items()] == [(k, float(k)) for k in range(TRIALS)]


def finish(study: SearchStudy, *scores: float) -> None:
    """Make a trial, with an epoch for each score; NaN: diverged."""

    def work(attempt: Attempt) -> None:
        for epoch, score in enumerate(scores, 1):
            if math.isnan(score):
                attempt.state = "diverged"
                return
            if not attempt.report(epoch, score, loss=1 / epoch):
                return

    assert study.step(work) is not None


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'search.db'}"


def configurations(study: SearchStudy) -> list[tuple[float, float]]:
    return [(attempt.learning_rate, attempt.weight_decay) for attempt in map(study.attempt, range(TRIALS))]


def test_the_kth_configuration_is_a_function_of_seed_and_k_and_the_same_for_every_arm(database: str) -> None:
    settings = SearchSettings(TRIALS, (1e-3, 0.1), (1e-4, 1e-2))
    bissl, baseline = (SearchStudy(database, arm, settings, 5, 1) for arm in ("bissl", "baseline"))
    before = configurations(bissl)
    finish(bissl, 3.0)
    assert configurations(bissl) == configurations(baseline) == before
    assert len(set(before)) == TRIALS
    assert all(1e-3 <= rate <= 0.1 and 1e-4 <= decay <= 1e-2 for rate, decay in before)
    assert not set(before) & set(configurations(SearchStudy(database, "bissl", settings, 6, 1)))
    more = SearchStudy(database, "bissl", SearchSettings(2 * TRIALS, (1e-3, 0.1), (1e-4, 1e-2)), 5, 1)
    assert configurations(more) == before
    assert len(more.unfinished()) == 2 * TRIALS - 1  # more trials do not make the first ones again


def test_rates_and_decays_are_log_uniform_over_the_papers_ranges(database: str) -> None:
    attempts = list(map(SearchStudy(database, "study", SearchSettings(1), 0, 1).attempt, range(200)))
    rates = [math.log10(attempt.learning_rate) / 4 + 1 for attempt in attempts]  # 1e-4 … 1 to 0 … 1
    decays = [(math.log10(attempt.weight_decay) + 5) / 3 for attempt in attempts]
    assert kstest(rates, "uniform").pvalue > 0.01
    assert kstest(decays, "uniform").pvalue > 0.01
    assert abs(pearsonr(rates, decays).statistic) < 0.2


def test_tpe_draws_by_what_is_finished(database: str) -> None:
    settings = SearchSettings(20, sampler="tpe")
    study, other = (SearchStudy(database, name, settings, 0, 1) for name in ("study", "other"))
    for number in range(12):
        finish(study, float(number))
        finish(other, float(-number))
    assert study.attempt(12).learning_rate != other.attempt(12).learning_rate
    assert study.attempt(12).learning_rate == study.attempt(12).learning_rate


def test_a_trial_below_the_median_is_pruned_and_one_that_diverges_is_finished_too(database: str) -> None:
    study = SearchStudy(database, "study", SearchSettings(9, pruning=True), 0, epochs=8)
    for score in (50.0, 60.0, 70.0, 80.0, 90.0):
        finish(study, score, score, score, score)
    finish(study, 65.0, 66.0, 99.0, 99.0)
    finish(study, 10.0, math.nan)
    finish(study, math.nan)
    found = study.trials()
    assert found[5].state == "pruned"
    assert (found[5].epoch, found[5].score) == (2, 66.0)
    assert (found[6].state, found[6].epoch) == ("diverged", 1)
    assert (found[7].state, found[7].epoch) == ("diverged", 0)
    assert study.unfinished() == [8]


def test_the_first_of_the_best_epochs_is_a_trials_result(database: str) -> None:
    study = SearchStudy(database, "study", SearchSettings(1), 0, 1)
    finish(study, 40.0, 60.0, 60.0, 50.0)
    (trial,) = study.trials().values()
    assert trial == Trial(0, trial.learning_rate, trial.weight_decay, "finished", 2, 60.0, 0.5)


def test_trials_that_another_program_has_put_into_the_study_are_left_alone(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'search.db'}"
    study = SearchStudy(database, "arm", SearchSettings(2), 0, 1)
    theirs = optuna.load_study(study_name="arm", storage=database)
    theirs.enqueue_trial({"learning_rate": 0.1})
    theirs.ask()
    words = optuna.trial.create_trial(value=1.0, user_attrs={"configuration": "1", "epoch": [], "score": "high"})
    theirs.add_trials([optuna.trial.create_trial(value=1.0), words])
    assert study.unfinished() == [0, 1]
    assert study.step(lambda attempt: attempt.report(1, 50.0, 1.0)) == 0
    assert list(study.trials()) == [0]


def test_a_database_that_does_not_serve_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("this is no database, and it is longer than a header of SQLite " * 20)
    with pytest.raises(UserError, match=r"no\.db, does not serve \(file is not a database\): mend it"):
        SearchStudy(f"sqlite:///{tmp_path / 'no.db'}", "study", SearchSettings(1), 0, 1)
    with pytest.raises(UserError, match=r"does not serve \(.*(No such file|refused)"):
        SearchStudy(f"postgresql://me@/db?host={tmp_path}", "study", SearchSettings(1), 0, 1)


def test_a_lease_is_lost_with_its_connection_unless_it_can_be_had_again(tmp_path: Path) -> None:
    with postgresql() as url:
        ours, theirs = (ServerLeases(engine(url), "group") for _ in range(2))
        with ours.take("trial") as held, theirs.take("trial") as refused, theirs.take("other") as other:
            assert (held(), refused(), other()) == (True, False, True)
            end_connections(url)
            assert held()
            assert not refused()
            end_connections(url)
            with theirs.take("trial") as taken:
                assert taken()
                assert not held()


def end_connections(url: str) -> None:
    """End those that hold leases, and wait until they are gone."""
    those = "SELECT {} FROM pg_locks WHERE locktype = 'advisory'"
    with engine(url).connect() as session:
        ended = session.execute(text(those.format("pid, pg_terminate_backend(pid)"))).all()
        while {pid for pid, _ in ended} & set(session.execute(text(those.format("pid"))).scalars()):
            time.sleep(0.01)
