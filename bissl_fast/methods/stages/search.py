"""The search for rate and decay of an arm's fine-tuning (BiSSL, section 4.2.1 and footnote 2)."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bissl_fast.errors import UserError
from bissl_fast.methods.run import Run
from bissl_fast.methods.search.settings import SearchSettings, Trial, choose, counted
from bissl_fast.methods.search.workers import workers
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.finetune import finetuning, finetuning_key
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.plain import parse_json
from bissl_fast.training.console import ProgressBar
from bissl_fast.training.files import write_atomic, write_json
from bissl_fast.training.interruption import Interrupted, Interruption
from bissl_fast.training.loop import NonFiniteError
from bissl_fast.training.memory import keep_freed_memory
from bissl_fast.training.ranks.lead import is_lead
from bissl_fast.training.stage import StageOutput, stage_key

if TYPE_CHECKING:
    from bissl_fast.methods.search.study import Attempt, SearchStudy

BEST, TRIALS = "best.json", "trials.csv"
ANNOUNCED = "search.json"
"""Of a run that has come to its searches: by arm, the stage that holds its backbone, and the name of its study."""
PURPOSE = "search"
"""What every trial of every arm draws its seeds by: head, order of the images and their views are the same in all."""
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Search:
    """The search of one arm in a run.

    Attributes:
        run: the run.
        arm: its name.
        downstream: the task.
        backbone: the arm's.
        sgd: whose momentum and final share all trials have.
        settings: of the search.
    """

    run: Run
    arm: str
    downstream: Downstream
    backbone: StageOutput
    sgd: SGDSettings
    settings: SearchSettings

    @property
    def name(self) -> str:
        """Of its stage."""
        return f"search-{self.arm}"

    def rates(self) -> tuple[SGDSettings, dict[str, Any]]:
        """The SGD that is found, and what the results tell of it: of this run, or of the one that is to be asked."""
        other = self.settings.rates_of
        told = told_rates(self.stage().folder if other is None else other / self.name)
        sgd = replace(self.sgd, learning_rate=told["learning_rate"], weight_decay=told["weight_decay"])
        return sgd, told | {"of": None if other is None else other.name}

    def stage(self) -> StageOutput:
        """The stage ``search-ARM``: make the trials that are left, with whoever else is at them, and choose one.

        Each rank of the run makes trials of its own.
        """

        def body(folder: Path) -> None:
            if not is_lead(self.run.ranks):
                self.make()
                return
            with workers(self.run.folder, self.arm, self.settings.workers, folder) as tell:
                trials = self.make()
                tell(self.run.say)
            write_atomic(folder / TRIALS, _table(trials).encode())
            write_json(folder / BEST, self._best(trials))

        key, inputs = self._key()
        chosen = {"trials": self.settings.trials, "rule": self.settings.rule}
        return self.run.stage(self.name, {**key, **chosen}, inputs, body, (BEST, TRIALS))

    def study(self) -> SearchStudy:
        """Its trials, in the database that is shared."""
        from bissl_fast.methods.search.study import SearchStudy

        url, epochs = self.settings.database(self.run.folder), self.downstream.settings.epochs
        return SearchStudy(url, self.study_name, self.settings, self.run.seed(PURPOSE), epochs)

    @property
    def study_name(self) -> str:
        """What the trials are found by: it stands for all that determines their results."""
        key, inputs = self._key()
        return f"{self.name}-{stage_key(self.name, {**self.run.shared, **key}, inputs)[0][:16]}"

    def make(self) -> list[Trial]:
        """Make trials until all are finished, here or elsewhere; returns them."""
        study, total, told = self.study(), self.settings.trials, False
        with ProgressBar(self.run.console, self.name, total, total - len(study.unfinished())) as progress:
            while left := study.unfinished():
                if study.step(self.fine_tune) is not None:
                    progress.update(total - len(study.unfinished()), note="trials")
                    continue
                if not told:
                    self.run.say(f"{self.name}: waits for trials of other processes ({_numbers(left)})", "dim")
                    told = True
                time.sleep(POLL_SECONDS)
        return [trial for number, trial in study.trials().items() if number < total]

    def fine_tune(self, attempt: Attempt) -> None:
        """Train the model of one trial from its start: equal bits, whoever does it and however often."""
        rates = {"learning_rate": attempt.learning_rate, "weight_decay": attempt.weight_decay}
        keep_freed_memory()
        torch.manual_seed(self.run.seed(PURPOSE))
        task_of = finetuning(self.run, self.downstream, self.backbone, replace(self.sgd, **rates), PURPOSE)
        losses: list[Any] = []
        with task_of as task, Interruption() as interruption:
            for index in range(task.steps):
                if interruption.requested:
                    raise Interrupted(
                        f"{self.name} stopped on request in trial {attempt.number}, which will be made again; finished "
                        "ones are kept."
                    )
                try:
                    losses.append(task.step(index)["loss"])
                except NonFiniteError:
                    attempt.state = "diverged"
                    return
                if (index + 1) % task.log_every:
                    continue
                if not torch.stack(losses).isfinite().all():
                    attempt.state = "diverged"
                    return
                losses.clear()
                found, epoch = task.validated, (index + 1) // task.log_every
                if not attempt.report(epoch, found.score, found.loss):
                    return

    def _best(self, trials: list[Trial]) -> dict[str, Any]:
        images = len(self.run.data.splits.val)
        chosen, why = choose(trials, self.settings.rule, images)
        return {
            **{name: getattr(chosen, name) for name in ("learning_rate", "weight_decay", "epoch", "score", "loss")},
            "trial": chosen.number,
            "rule": self.settings.rule,
            "why": why,
            "sampler": self.settings.sampler,
            "validation_images": images,
            "trials": len(trials),
            **counted(trials),
        }

    def _key(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What determines a trial's result, but for its number."""
        key, inputs = finetuning_key(self.run, self.downstream, self.backbone)
        fixed = {
            name: value for name, value in asdict(self.sgd).items() if name not in ("learning_rate", "weight_decay")
        }
        names = ("learning_rate", "weight_decay", "sampler", "pruning")
        return {**key, **fixed, "search": {name: getattr(self.settings, name) for name in names}}, inputs


def told_rates(folder: Path) -> dict[str, Any]:
    """What the stage of a search has left.

    Raises:
        UserError: if it has left nothing.
    """
    try:
        told: dict[str, Any] = parse_json((folder / BEST).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} tells no rates ({error}): make the search of that run first, or leave out --search.rates-of."
        ) from None
    return told


def announce(searches: Sequence[Search]) -> None:
    """Leave in the run's folder what `bissl-fast sweep` has to know of its searches."""
    run = searches[0].run
    told = {search.arm: {"backbone": search.backbone.folder.name, "study": search.study_name} for search in searches}
    write_json(run.folder / ANNOUNCED, {"validation_images": len(run.data.splits.val), "arms": told})


def _table(trials: list[Trial]) -> str:
    """All trials as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [field.name for field in fields(Trial)]
    writer.writerow(names)
    for trial in trials:
        values: Mapping[str, Any] = asdict(trial)
        reached = trial.epoch > 0
        writer.writerow([values[n] if reached or n not in ("epoch", "score", "loss") else "" for n in names])
    return file.getvalue()


def _numbers(left: list[int]) -> str:
    return ", ".join(map(str, left[:5])) + (", …" if len(left) > 5 else "")
