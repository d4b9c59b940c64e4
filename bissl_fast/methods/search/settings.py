"""The search for fine-tuning's learning rate and weight decay: what is searched, and which trial is chosen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from bissl_fast.errors import UserError
from bissl_fast.methods.checks import require
from bissl_fast.methods.search.databases import SQLITE, located_database, require_database

Sampler = Literal["random", "tpe"]
Rule = Literal["balanced", "accuracy"]
State = Literal["finished", "pruned", "diverged"]


@dataclass(frozen=True)
class SearchSettings:
    """The search for the rate and the decay that an arm's backbone is fine-tuned with (BiSSL, section 4.2.1).

    Attributes:
        trials: configurations tried for each arm, one model each (200 in the paper); 0: no search.
        learning_rate: range of the peak, whose logarithm is drawn uniformly.
        weight_decay: range likewise.
        sampler: `random`: every arm tries the same configurations, as in the paper; `tpe`: each draws by what its
            earlier trials have found.
        rule: which of them is chosen. `balanced`, footnote 2 of the paper: of those whose validation score is within
            one standard error of the highest, the one with the lowest validation loss; `accuracy`: the highest score.
        pruning: a trial ends early when its validation score is below the median of the others at that epoch; the
            paper has none.
        storage: database of the trials, `sqlite:///PATH` or, for many machines, `postgresql://USER@HOST/NAME`; left
            out: search.db in the run's folder.
        workers: processes that share this machine's threads.
        rates_of: a run whose rates, arm by arm, are taken in place of a search.
    """

    trials: int = 0
    learning_rate: tuple[float, float] = (1e-4, 1.0)
    weight_decay: tuple[float, float] = (1e-5, 1e-2)
    sampler: Sampler = "random"
    rule: Rule = "balanced"
    pruning: bool = False
    storage: str | None = None
    workers: int = 1
    rates_of: Path | None = None

    def __post_init__(self) -> None:
        require(self.trials >= 0, "search.trials", self.trials, "0 (no search) or more")
        require(self.workers >= 1, "search.workers", self.workers, "at least 1")
        for name in ("learning_rate", "weight_decay"):
            low, high = getattr(self, name)
            fits = math.isfinite(low + high) and 0 < low <= high
            require(fits, f"search.{name.replace('_', '-')}", f"{low} {high}", "two positive numbers, the lower first")
        if self.storage is not None:
            require_database(self.storage)

    @property
    def searched(self) -> bool:
        """Whether rates are found by trials, of this run or of another."""
        return self.trials > 0 or self.rates_of is not None

    @property
    def idle(self) -> dict[str, str]:
        """Fields that do nothing beside the values of the others, each with the words for where that is so."""
        names = ("learning_rate", "weight_decay", "sampler", "rule", "pruning", "storage", "workers")
        if self.rates_of is not None:
            return dict.fromkeys(("trials", *names), "with --search.rates-of")
        return {} if self.trials else dict.fromkeys(names, "without --search.trials")

    def database(self, run: Path) -> str:
        """Where the trials of the run in a folder are kept."""
        return self.storage or f"{SQLITE}{run.resolve() / 'search.db'}"

    def located(self) -> "SearchSettings":
        """The same with absolute paths."""
        storage = None if self.storage is None else located_database(self.storage)
        rates_of = None if self.rates_of is None else self.rates_of.expanduser().resolve()
        return replace(self, storage=storage, rates_of=rates_of)


@dataclass(frozen=True)
class Trial:
    """One configuration, and what one model fine-tuned with it has reached.

    Attributes:
        number: of the configuration, from 0.
        learning_rate: the peak.
        weight_decay: of the same.
        state: `finished`; `pruned`, ended early; `diverged`, where a number was no longer finite.
        epoch: with the highest validation score, the first of equal ones, from 1; 0 if none was reached.
        score: validation score after it, in percent.
        loss: validation loss after it.
    """

    number: int
    learning_rate: float
    weight_decay: float
    state: State
    epoch: int = 0
    score: float = 0.0
    loss: float = math.inf


def choose(trials: Sequence[Trial], rule: Rule, images: int) -> tuple[Trial, str]:
    """The trial whose rate and decay an arm is fine-tuned with.

    `balanced` makes footnote 2 of the paper precise ("an alternative configuration with a more favorable trade-off was
    selected" where the highest validation accuracy had a notably higher validation loss). Let a be the highest
    validation score as a share of 1 and n the number of validation images. All trials whose score is at least
    a − √(a (1 − a) / n) are told apart from the highest by less than one binomial standard error; the one with the
    lowest validation loss is chosen, of equal losses the one with the higher score. `accuracy` takes the highest score,
    of equal ones that with the lowest loss. What is still equal is settled by the lower number. Score and loss are
    those of a trial's best validation epoch; pruned and diverged trials are not chosen. For mean average precision the
    same formula stands for a standard error that it does not have.

    Args:
        trials: in any order.
        rule: `balanced` or `accuracy`.
        images: n.

    Returns:
        The trial, and why it was chosen, in a sentence.

    Raises:
        UserError: if no trial has finished.

    Example:
        >>> sharp = Trial(0, 0.1, 1e-3, "finished", 9, score=80.0, loss=0.9)
        >>> calm = Trial(1, 0.01, 1e-3, "finished", 7, score=79.0, loss=0.6)
        >>> choose([sharp, calm], "balanced", 400)[0].number, choose([sharp, calm], "accuracy", 400)[0].number
        (1, 0)
    """
    finished = [trial for trial in trials if trial.state == "finished"]
    if not finished:
        raise UserError(
            f"None of the {len(trials)} trials has trained to its end with finite numbers: lower the end of "
            "--search.learning-rate, or try more with --search.trials."
        )
    highest = min(finished, key=lambda trial: (-trial.score, trial.loss, trial.number))
    if rule == "accuracy":
        return highest, f"the highest validation score of {len(finished)} finished trials"
    share = highest.score / 100
    margin = 100 * math.sqrt(max(0.0, share * (1 - share)) / images)
    near = [trial for trial in finished if trial.score >= highest.score - margin]
    best = min(near, key=lambda trial: (trial.loss, -trial.score, trial.number))
    if best == highest:
        return best, (
            f"the highest validation score, and the lowest loss of the {len(near)} within one standard error "
            f"({margin:.2f} points) of it"
        )
    return best, (
        f"the lowest validation loss ({best.loss:.4f}) of {len(near)} trials within one standard error "
        f"({margin:.2f} points) of the highest validation score, {highest.score:.2f} of trial {highest.number}, "
        f"whose loss is {highest.loss:.4f}"
    )


def counted(trials: Sequence[Trial]) -> dict[str, int]:
    """How many trials ended in each state."""
    return {state: sum(trial.state == state for trial in trials) for state in get_args(State)}
