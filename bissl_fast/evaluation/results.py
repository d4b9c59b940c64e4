"""The test metrics of every arm of a run, and the comparisons between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bissl_fast.errors import UserError
from bissl_fast.evaluation.arms import BASELINE, reference_of, title_of
from bissl_fast.evaluation.cost import Cost
from bissl_fast.evaluation.metrics import METRICS, Metric
from bissl_fast.evaluation.statistics import Comparison, Sample, compare_all

FINE_TUNING, FEW_SHOT = "fine-tuning", "few-shot tasks"
"""What arms may be judged by."""


@dataclass(frozen=True)
class Rates:
    """What a search has found for an arm's fine-tuning.

    Attributes:
        learning_rate: the peak.
        weight_decay: of the same.
        score: on the validation images, in percent, of the one model that was trained with them.
        loss: likewise.
        trials: among which they were chosen.
        rule: by which.
    """

    learning_rate: float
    weight_decay: float
    score: float
    loss: float
    trials: int
    rule: str

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Rates:
        """Read the `search` of an arm."""
        numbers = {name: float(content[name]) for name in ("learning_rate", "weight_decay", "score", "loss")}
        return cls(**numbers, trials=int(content["trials"]), rule=str(content["rule"]))


@dataclass(frozen=True)
class ArmResult:
    """What one arm reached.

    Attributes:
        name: as in `--methods`.
        title: what people call it.
        scores: test metrics in percent, by key, one score per fine-tuning seed.
        cost: of its backbone.
        stages: that made it; none where the run has not said so.
        intervals: of single scores over episodes, half the width of the 95 % interval by key.
        rates: that a search has found, of each backbone; none where they were given.
    """

    name: str
    title: str
    scores: Mapping[str, Sample]
    cost: Cost
    stages: tuple[str, ...] = ()
    intervals: Mapping[str, float] = field(default_factory=dict)
    rates: tuple[Rates, ...] = ()

    @classmethod
    def from_json(cls, name: str, content: Mapping[str, Any]) -> ArmResult:
        """Read one arm: `title`, `scores` and `cost`, of which the scores alone must be there."""
        scores = content["scores"]
        known = {m.key: Sample(tuple(map(float, scores[m.key]))) for m in METRICS if m.key in scores}
        title = " ".join(str(content.get("title") or title_of(name)).split())
        stages = tuple(map(str, content.get("stages") or ()))
        intervals = {str(key): float(half) for key, half in (content.get("intervals") or {}).items()}
        rates = (Rates.from_json(content["search"]),) if content.get("search") else ()
        return cls(name, title, known, Cost.from_json(content.get("cost")), stages, intervals, rates)

    def words(self, metric: Metric) -> str:
        """Its score as text, with the deviation over the seeds or the interval over the episodes; a dash for none."""
        if metric.key not in self.scores:
            return "—"
        score, interval = self.scores[metric.key], self.intervals.get(metric.key)
        return str(score) if interval is None else f"{score} ± {interval:.1f}"


@dataclass(frozen=True)
class Results:
    """Test metrics of all arms, in percent (`results.json` of a run folder).

    Attributes:
        dataset: its name.
        classes: how many the test has.
        metrics: those that any arm has, first what all have; the arms are judged by the first.
        arms: one or more, in the order of `--methods`.
        difficult_present: whether mAP counts difficult objects as present.
        against: the arm that the others are measured against; left out: the baseline, or the last where there is none.
        seeds: what the scores of an arm differ by: `fine-tuning` or `pretext` seeds.
        controls: backbones that the arms' have come from, in no comparison.
        judged_by: `fine-tuning`, or `few-shot tasks` of backbones that nothing was fine-tuned from.
    """

    dataset: str
    classes: int
    metrics: tuple[Metric, ...]
    arms: tuple[ArmResult, ...]
    difficult_present: bool = False
    against: str | None = None
    seeds: str = "fine-tuning"
    judged_by: str = FINE_TUNING
    controls: tuple[ArmResult, ...] = ()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Results:
        """Read the content of `results.json`, also as it was before it had `arms`.

        Raises:
            UserError: if a field is missing or of another type.
        """
        try:
            arms = tuple(ArmResult.from_json(str(name), arm) for name, arm in _arms(content).items())
            metrics = metrics_of(arms)
            present, judge = content.get("difficult") == "present", str(content.get("judged_by", FINE_TUNING))
            seeds = FINE_TUNING if judge == FINE_TUNING else "pretext"
            about = (str(content["dataset"]), int(content["classes"]))
            others = (content.get("controls") or {}).items()
            controls = tuple(ArmResult.from_json(str(name), other) for name, other in others)
            return cls(*about, metrics, arms, present, seeds=seeds, judged_by=judge, controls=controls)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise UserError(
                f"results.json is not as the test stage writes it ({error!r}): "
                "delete the run's test folder and run the same command again."
            ) from None

    @property
    def fine_tuned(self) -> bool:
        """Whether models were fine-tuned from the backbones, and these are judged by them."""
        return self.judged_by == FINE_TUNING

    @property
    def reference(self) -> ArmResult:
        """The arm that the others are measured against: the baseline, or the last where there is none."""
        name = self.against or reference_of([arm.name for arm in self.arms])
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def candidates(self) -> tuple[ArmResult, ...]:
        """All arms but the reference, in their order; none where there is one arm alone."""
        return tuple(arm for arm in self.arms if arm is not self.reference)

    def comparisons(self, metric: Metric) -> dict[str, Comparison]:
        """By name each candidate that has the metric, beside the reference, corrected for how many they are."""
        scores = {arm.name: arm.scores[metric.key].scores for arm in self.candidates if metric.key in arm.scores}
        if not scores or metric.key not in self.reference.scores:
            return {}
        found = compare_all(list(scores.values()), self.reference.scores[metric.key].scores)
        return dict(zip(scores, found, strict=True))


def metrics_of(arms: Sequence[ArmResult]) -> tuple[Metric, ...]:
    """The metrics that any arm has, first those that all have.

    Raises:
        KeyError: if the arms have none in common.
    """
    common = [metric for metric in METRICS if arms and all(metric.key in arm.scores for arm in arms)]
    if not common:
        raise KeyError(METRICS[0].key)
    return (*common, *(m for m in METRICS if m not in common and any(m.key in arm.scores for arm in arms)))


def _arms(content: Mapping[str, Any]) -> Mapping[str, Any]:
    if "arms" in content:
        arms: Mapping[str, Any] = content["arms"]
        return arms
    return {name: {"scores": content[name]} for name in ("bissl", BASELINE)}
