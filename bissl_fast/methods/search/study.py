"""The trials of a search in a database that several processes share: what is finished, and what is tried next.

Only finished trials are kept in the database, each in one transaction; a trial at work is no more than a lease, which
ends with its process. So a kill leaves nothing behind that somebody would have to find.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from bissl_fast.errors import UserError
from bissl_fast.methods.search.databases import (
    SQLITE,
    Held,
    Leases,
    connect_arguments,
    hidden,
    leases_of,
    with_driver,
)
from bissl_fast.methods.search.settings import SearchSettings, State, Trial
from bissl_fast.training.files import make_folder
from bissl_fast.training.seeds import derive_seed

STATES: dict[State, TrialState] = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.FAIL,
}
OPEN_SECONDS = 60.0

Work = Callable[["Attempt"], None]
"""Trains the model of an attempt, and tells it what comes out."""


class Attempt:
    """A trial at work, in this process alone, beside a copy of all that are finished.

    Attributes:
        number: of the configuration.
        learning_rate: of it.
        weight_decay: of it.
        best: epoch, validation score and loss of the best epoch so far.
        state: how it ends, unless something else is said.
    """

    def __init__(self, number: int, study: optuna.Study, settings: SearchSettings) -> None:
        self.number, self._study = number, study
        self._trial = study.ask()
        low, high = settings.learning_rate
        self.learning_rate = self._trial.suggest_float("learning_rate", low, high, log=True)
        low, high = settings.weight_decay
        self.weight_decay = self._trial.suggest_float("weight_decay", low, high, log=True)
        self.best = (0, -1.0, float("inf"))
        self.state: State = "finished"

    def report(self, epoch: int, score: float, loss: float) -> bool:
        """Take down a validation; whether the trial is to go on."""
        if score > self.best[1]:
            self.best = (epoch, score, loss)
        self._trial.report(score, epoch)
        if self._trial.should_prune():
            self.state = "pruned"
        return self.state == "finished"

    def frozen(self) -> FrozenTrial:
        """The trial as the database keeps it."""
        epoch, score, loss = self.best
        told: dict[str, float] = {"configuration": self.number}
        told |= {"epoch": epoch, "score": score, "loss": loss} if epoch else {}
        for name, value in told.items():
            self._trial.set_user_attr(name, value)
        return self._study.tell(self._trial, score if self.state == "finished" else None, STATES[self.state])


@contextmanager
def serving(url: str) -> Iterator[None]:
    """What goes wrong with a database, as a sentence."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        first = str(getattr(cause, "orig", None) or cause or error).strip().splitlines()[0]
        raise UserError(
            f"the database of the search, {hidden(url)}, does not serve ({first.rstrip('.')}): mend it or name another "
            "with --search.storage, then run the same command again; finished trials are kept."
        ) from None


def require_answer(url: str) -> None:
    """Refuse a server that does not answer, before work of hours finds out.

    Raises:
        UserError: if there is one, and it does not.
    """
    if not url.startswith(SQLITE):
        with serving(url), leases_of(url, "tables").take("asked"):
            pass


class SearchStudy:
    """The trials of one arm.

    Args:
        url: of the database.
        name: of the study in it, which stands for everything that determines a trial's result.
        settings: of the search.
        seed: that configurations are drawn by: the k-th of the sampler `random` is a function of it and k alone.
        epochs: of a trial.

    Raises:
        UserError: if the database cannot be opened.
    """

    def __init__(self, url: str, name: str, settings: SearchSettings, seed: int, epochs: int) -> None:
        self.url, self.name, self.settings, self.seed, self.epochs = url, name, settings, seed, epochs
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with serving(self.url):
            self._leases: Leases = leases_of(url, name)
            self._study = self._open()

    def trials(self) -> dict[int, Trial]:
        """All that are finished, by the number of their configuration."""
        return {number: _trial(number, frozen) for number, frozen in sorted(self._frozen().items())}

    def unfinished(self) -> list[int]:
        """Configurations that are still to be tried, or at work."""
        finished = self._frozen()
        return [number for number in range(self.settings.trials) if number not in finished]

    def step(self, work: Work) -> int | None:
        """Make one trial that nobody else is at; returns its number, or None if there is none.

        Args:
            work: trains its model.
        """
        for number in self.unfinished():
            with self._lease(f"trial-{number}") as held:
                if not held() or number in self._frozen():  # finished since, and given free
                    continue
                attempt = self.attempt(number)
                work(attempt)
                self._keep(attempt, held)
                return number
        return None

    def attempt(self, number: int) -> Attempt:
        """A trial of a configuration, drawn beside the trials that are finished now."""
        seed = derive_seed(self.seed, f"configuration-{number}") % 2**32
        tpe = self.settings.sampler == "tpe"
        sampler = optuna.samplers.TPESampler(seed=seed) if tpe else optuna.samplers.RandomSampler(seed=seed)
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if self.settings.pruning:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=self.epochs // 4)
        scratch = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        if tpe or self.settings.pruning:
            scratch.add_trials([frozen for _, frozen in sorted(self._frozen().items())])
        return Attempt(number, scratch, self.settings)

    def _keep(self, attempt: Attempt, held: Held) -> None:
        """Write a finished trial into the database, unless a broken connection has given it to somebody else."""
        with serving(self.url):
            if held() and attempt.number not in self._frozen():
                self._study.add_trial(attempt.frozen())

    def _frozen(self) -> dict[int, FrozenTrial]:
        with serving(self.url):
            trials = self._study.get_trials(deepcopy=False)
        return {trial.user_attrs["configuration"]: trial for trial in reversed(trials) if _is_ours(trial)}

    def _open(self) -> optuna.Study:
        """The study, made if it is not there; tables are made by one process at a time."""
        if self.url.startswith(SQLITE):
            make_folder(Path(self.url.removeprefix(SQLITE)).parent)
        until, leases = time.monotonic() + OPEN_SECONDS, leases_of(self.url, "tables")
        while True:
            with leases.take("made") as held:
                if held() or time.monotonic() > until:
                    arguments = {"connect_args": connect_arguments(self.url), "poolclass": NullPool}
                    storage = optuna.storages.RDBStorage(with_driver(self.url), arguments)
                    return optuna.create_study(
                        storage=storage, study_name=self.name, direction="maximize", load_if_exists=True
                    )
            time.sleep(0.05)

    @contextmanager
    def _lease(self, name: str) -> Iterator[Held]:
        with serving(self.url):
            lease = self._leases.take(name)
            held = lease.__enter__()
        try:
            yield held
        finally:
            lease.__exit__(None, None, None)


def _is_ours(frozen: FrozenTrial) -> bool:
    """Whether a trial is one that was kept here: a database is open to other programs, too."""
    told = {**frozen.params, **frozen.user_attrs}
    found = [told.get(name) for name in ("configuration", "learning_rate", "weight_decay")]
    found += [told.get(name, 0) for name in ("epoch", "score", "loss")]
    return frozen.state in STATES.values() and all(isinstance(value, int | float) for value in found)


def _trial(number: int, frozen: FrozenTrial) -> Trial:
    state = next(name for name, theirs in STATES.items() if theirs == frozen.state)
    told = {name: frozen.user_attrs[name] for name in ("epoch", "score", "loss") if name in frozen.user_attrs}
    return Trial(number, frozen.params["learning_rate"], frozen.params["weight_decay"], state, **told)
