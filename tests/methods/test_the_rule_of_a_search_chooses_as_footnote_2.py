"""Which of a search's trials is chosen, on cases made by hand, and which settings of a search cannot be meant."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bissl_fast.errors import UserError
from bissl_fast.methods.checks import without_effect
from bissl_fast.methods.config import ComparisonConfig, TrainConfig, load_config, save_config
from bissl_fast.methods.search import databases
from bissl_fast.methods.search.settings import Rule, SearchSettings, Trial, choose


def trial(number: int, score: float, loss: float, state: Any = "finished") -> Trial:
    return Trial(number, 0.1, 0.001, state, 1, score, loss)


SHARP = (trial(0, 80.0, 0.9), trial(1, 78.1, 0.6), trial(2, 77.9, 0.5), trial(3, 30.0, 0.1))


@pytest.mark.parametrize(
    ("rule", "images", "chosen"),
    [
        ("accuracy", 400, 0),
        ("balanced", 400, 1),  # one standard error is √(0.8 · 0.2 / 400), 2 points: down to 78
        ("balanced", 300, 2),  # 2.3 points: down to 77.7
        ("balanced", 500, 0),  # 1.8 points: down to 78.2
    ],
)
def test_balanced_takes_the_lowest_loss_within_one_standard_error_of_the_highest_score(
    rule: Rule, images: int, chosen: int
) -> None:
    assert choose(SHARP, rule, images)[0].number == chosen
    assert choose(SHARP[::-1], rule, images)[0].number == chosen


@pytest.mark.parametrize("rule", ["accuracy", "balanced"])
def test_equal_ones_are_settled_whatever_their_order(rule: Rule) -> None:
    ties = [trial(1, 100.0, 0.3), trial(4, 100.0, 0.2), trial(2, 100.0, 0.2), trial(0, 99.9, 0.0)]
    assert {choose(ties[k:] + ties[:k], rule, 50)[0].number for k in range(4)} == {2}


def test_of_equal_losses_within_a_standard_error_the_higher_score_is_taken() -> None:
    assert choose([trial(0, 79.0, 0.5), trial(1, 80.0, 0.5)], "balanced", 400)[0].number == 1


def test_a_score_above_100_by_rounding_is_one_of_100() -> None:
    assert choose([trial(0, 100.000008, 0.2), trial(1, 99.9, 0.1)], "balanced", 400)[0].number == 0


@pytest.mark.parametrize("rule", ["accuracy", "balanced"])
def test_trials_that_did_not_train_to_their_end_are_not_chosen(rule: Rule) -> None:
    others = [trial(0, 99.0, 0.0, "pruned"), trial(1, 98.0, 0.0, "diverged")]
    assert choose([*others, trial(2, 10.0, 2.0)], rule, 100)[0].number == 2
    with pytest.raises(UserError, match="None of the 2 trials has trained to its end"):
        choose(others, rule, 100)


def test_why_tells_what_the_highest_score_would_have_been() -> None:
    assert "80.00 of trial 0, whose loss is 0.9000" in choose(SHARP, "balanced", 400)[1]
    assert choose(SHARP[:1], "balanced", 400)[1].startswith("the highest validation score")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"trials": -1}, r"--search.trials must be 0 \(no search\) or more, found -1"),
        ({"workers": 0}, "--search.workers must be at least 1"),
        ({"learning_rate": (1.0, 1e-4)}, "--search.learning-rate must be two positive numbers, the lower first"),
        ({"learning_rate": (0.0, 1.0)}, "--search.learning-rate must be"),
        ({"weight_decay": (1e-5, math.inf)}, "--search.weight-decay must be"),
        ({"storage": "mysql://me@host/trials"}, "--search.storage must be sqlite:///PATH, or postgresql"),
        ({"storage": "trials.db"}, "found 'trials.db'"),
        ({"storage": "postgresql://me:secret@host/trials"}, "must not hold a password"),
        ({"storage": "mysql://me:secret@host/trials"}, "found 'mysql://me@host/trials'"),
    ],
)
def test_settings_that_cannot_be_meant_end_in_a_sentence(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        SearchSettings(**settings)


def test_a_server_without_its_driver_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs psycopg"):
        SearchSettings(storage="postgresql://me@host/trials")


def test_what_does_nothing_beside_the_other_settings_is_told() -> None:
    given = SearchSettings(rule="accuracy", pruning=True)
    assert [s.split()[0] for s in without_effect("search", given, given.idle)] == ["--search.rule", "--search.pruning"]
    searched = replace(given, trials=3)
    assert not without_effect("search", searched, searched.idle)
    other = replace(searched, rates_of=Path("other"))
    assert without_effect("search", other, other.idle)[0] == "--search.trials has no effect with --search.rates-of"
    with pytest.raises(UserError, match=r"--search-each repeats a search, and there is none"):
        ComparisonConfig(search_each=True)


def test_settings_of_a_search_are_kept_and_their_paths_mean_the_same_anywhere(tmp_path: Path) -> None:
    search = SearchSettings(3, (1e-3, 0.1), storage="sqlite:///here.db", rates_of=Path("other"))
    config = TrainConfig(search=search).located()
    (tmp_path / "config.yaml").write_text(save_config(config))
    assert load_config(tmp_path / "config.yaml", TrainConfig) == config
    assert config.search.storage == f"sqlite:///{Path('here.db').resolve()}"
    assert config.search.rates_of == Path("other").resolve()
