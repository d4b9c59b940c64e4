"""What the arms of a run are judged by: fine-tuning, or few-shot tasks on a set with other classes to test."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bissl_fast.errors import UserError
from bissl_fast.evaluation import protocols
from bissl_fast.evaluation.arms import BASELINE, listed
from bissl_fast.evaluation.protocols import ProtocolName
from bissl_fast.evaluation.results import FEW_SHOT, FINE_TUNING
from bissl_fast.methods.checks import require_parts, without_effect
from bissl_fast.methods.run import Run
from bissl_fast.methods.search.settings import SearchSettings
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.finetune import finetune
from bissl_fast.methods.stages.protocols import score
from bissl_fast.methods.stages.search import Search, announce, told_rates
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.methods.stages.test import test, test_controls
from bissl_fast.training.stage import StageOutput

Found = dict[str, dict[str, Any]]
"""Of an arm, as `results.json` has it: `scores` in percent by key, a list each, `intervals` of those over
episodes, and `search`, what the search for its rates has found."""


class Judge(Protocol):
    """How backbones become scores."""

    def require(self, run: Run, supervised: Sequence[str]) -> None:
        """Refuse what cannot work, before the first stage.

        Args:
            run: the run.
            supervised: methods of the run that use labels of the downstream set.

        Raises:
            UserError: if there is any such thing.
        """

    def begin(self, run: Run, arms: Sequence[str]) -> None:
        """Refuse what would be missed after the backbones only, as the run begins, and tell how rates are found.

        Args:
            run: the run.
            arms: of the run.

        Raises:
            UserError: for rates of another run that has not found them, or trials in a database that does not answer.
        """

    def scores(self, run: Run, backbones: Mapping[str, StageOutput], rates: Mapping[str, SGDSettings]) -> Found:
        """What each arm has reached.

        Args:
            run: the run.
            backbones: by arm.
            rates: SGD of the fine-tuning, likewise.
        """

    def controls(self, run: Run, backbones: Mapping[str, StageOutput], rate: SGDSettings) -> Found:
        """What other backbones have reached, likewise; they are in no comparison.

        Args:
            run: the run.
            backbones: by what they are called.
            rate: SGD of the fine-tuning.
        """

    def about(self, run: Run) -> dict[str, Any]:
        """What `results.json` tells of all scores: `judged_by`, and how many `classes` the test has."""

    def title(self, arm: str, title: str) -> str:
        """What an arm is called, given what its method is called."""


def judge_of(run: Run, downstream: Downstream, chosen: tuple[ProtocolName, ...], search: SearchSettings) -> Judge:
    """The judge that a run's set asks for.

    Args:
        run: the run.
        downstream: its task.
        chosen: protocols that are asked for.
        search: for rates of fine-tuning.
    """
    return ByFewShots(chosen) if run.data.splits.disjoint else ByFineTuning(downstream, chosen, search)


@dataclass(frozen=True)
class ByFineTuning:
    """Fine-tuning over several seeds, and its test; protocols on the backbones before it stand beside.

    Attributes:
        downstream: the task.
        chosen: the protocols.
        search: for rates of fine-tuning.
    """

    downstream: Downstream
    chosen: tuple[ProtocolName, ...]
    search: SearchSettings

    def require(self, run: Run, supervised: Sequence[str]) -> None:
        """As :class:`Judge`; tells which settings the search leaves without effect."""
        if "finetune" in self.chosen:
            raise UserError("--protocols finetune: a run fine-tunes the backbone of every arm as it is; leave it out.")
        for name in self.chosen:
            protocols.require(name, run.data.splits)
        require_parts(self.downstream.settings.batch_size, "finetune.batch-size", run.ranks)
        for sentence in without_effect("search", self.search, self.search.idle):
            run.say(sentence)

    def begin(self, run: Run, arms: Sequence[str]) -> None:
        """As :class:`Judge`."""
        if self.search.searched:
            run.say(
                "fine-tuning: learning rates and weight decays are searched; those of --finetune-bissl and "
                "--finetune-baseline have no effect, momentum and final share have"
            )
        if self.search.rates_of is not None:
            for arm in arms:
                told_rates(self.search.rates_of / f"search-{arm}")
        elif self.search.trials and self.search.storage is not None:
            from bissl_fast.methods.search.study import require_answer  # Optuna takes a second

            require_answer(self.search.storage)

    def scores(self, run: Run, backbones: Mapping[str, StageOutput], rates: Mapping[str, SGDSettings]) -> Found:
        """As :class:`Judge`."""
        found = self._searched(run, backbones, rates)
        models = self._finetuned(run, backbones, {**rates, **{arm: sgd for arm, (sgd, _) in found.items()}})
        tested = test(run, self.downstream, backbones, models)
        beside = self._beside(run, backbones, json.loads((tested.folder / "results.json").read_text()))
        told = {arm: {"search": told} for arm, (_, told) in found.items()}
        return {arm: {**scores, **told.get(arm, {})} for arm, scores in beside.items()}

    def controls(self, run: Run, backbones: Mapping[str, StageOutput], rate: SGDSettings) -> Found:
        """As :class:`Judge`."""
        models = self._finetuned(run, backbones, dict.fromkeys(backbones, rate))
        return self._beside(run, backbones, test_controls(run, self.downstream, models))

    def _searched(
        self, run: Run, backbones: Mapping[str, StageOutput], rates: Mapping[str, SGDSettings]
    ) -> dict[str, tuple[SGDSettings, dict[str, Any]]]:
        """What the search of each arm has found, if there is one."""
        if not self.search.searched:
            return {}
        downstream, settings = self.downstream, self.search
        searches = [Search(run, arm, downstream, backbones[arm], rates[arm], settings) for arm in backbones]
        if settings.rates_of is None:
            announce(searches)
        return {search.arm: search.rates() for search in searches}

    def about(self, run: Run) -> dict[str, Any]:
        """As :class:`Judge`."""
        classes = len(run.data.splits.train.classes)
        return {"judged_by": FINE_TUNING, "classes": classes, **self.downstream.score_key(run)}

    def title(self, arm: str, title: str) -> str:
        """As :class:`Judge`."""
        return title

    def _finetuned(
        self, run: Run, backbones: Mapping[str, StageOutput], rates: Mapping[str, SGDSettings]
    ) -> dict[str, list[StageOutput]]:
        return {
            name: [
                finetune(run, f"finetune-{name}-{k}", self.downstream, backbone, rates[name], k)
                for k in range(self.downstream.settings.seeds)
            ]
            for name, backbone in backbones.items()
        }

    def _beside(self, run: Run, backbones: Mapping[str, StageOutput], tuned: Mapping[str, Any]) -> Found:
        """The scores of protocols beside those of fine-tuned models."""
        frozen = by_protocols(run, backbones, self.chosen)
        return {name: {**found, "scores": tuned[name] | found["scores"]} for name, found in frozen.items()}


@dataclass(frozen=True)
class ByFewShots:
    """Few-shot tasks of the test's classes on frozen backbones: no training image shows one to fine-tune on.

    Attributes:
        chosen: protocols that are asked for; `fewshot` is run whether it is among them or not.
    """

    chosen: tuple[ProtocolName, ...]

    def require(self, run: Run, supervised: Sequence[str]) -> None:
        """As :class:`Judge`; tells that nothing is fine-tuned."""
        dataset = run.settings.dataset
        other = f"The test classes of {dataset} are none of those of its training split"
        if supervised:
            raise UserError(
                f"{other}, so {listed(supervised)} would learn from labels of a task that nothing tests: leave "
                "out of --methods what uses labels (baseline, gessl and fussl use none), or train on another --dataset "
                f"and score its backbones with `bissl-fast evaluate RUN --dataset {dataset} --protocol crossdomain`."
            )
        for name in self._protocols:
            protocols.require(name, run.data.splits)
        run.say(
            f"{other}: nothing is fine-tuned, and --finetune.* and --search.* have no effect; arms are judged by "
            "few-shot tasks on their frozen backbones"
        )
        if "crossdomain" in self.chosen and run.settings.pretext_dataset in (None, dataset):
            run.say(f"crossdomain: backbones are trained on {dataset} itself: this is no other domain")

    def begin(self, run: Run, arms: Sequence[str]) -> None:
        """As :class:`Judge`."""

    def scores(self, run: Run, backbones: Mapping[str, StageOutput], rates: Mapping[str, SGDSettings]) -> Found:
        """As :class:`Judge`."""
        return by_protocols(run, backbones, self._protocols)

    def controls(self, run: Run, backbones: Mapping[str, StageOutput], rate: SGDSettings) -> Found:
        """As :class:`Judge`."""
        return by_protocols(run, backbones, self._protocols)

    def about(self, run: Run) -> dict[str, Any]:
        """As :class:`Judge`."""
        labels = run.data.splits.test.labels
        assert labels is not None
        return {"judged_by": FEW_SHOT, "classes": len(np.unique(labels))}

    def title(self, arm: str, title: str) -> str:
        """As :class:`Judge`: the baseline is no fine-tuning here."""
        return "Only pretext" if arm == BASELINE else title

    @property
    def _protocols(self) -> tuple[ProtocolName, ...]:
        return ("fewshot", *(name for name in self.chosen if name != "fewshot"))


def by_protocols(run: Run, backbones: Mapping[str, StageOutput], chosen: Sequence[ProtocolName]) -> Found:
    """Scores of each arm's backbone as it is, one of each; stages ``protocols-ARM`` where there is any to make."""
    found = {}
    for arm, backbone in backbones.items():
        scores = score(run, f"protocols-{arm}", backbone, chosen) if chosen else {}
        intervals = {key: made.interval for key, made in scores.items() if made.interval is not None}
        found[arm] = {"scores": {key: [made.value] for key, made in scores.items()}, "intervals": intervals}
    return found
