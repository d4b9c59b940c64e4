"""The result of a run in one sentence."""

from __future__ import annotations

from bissl_fast.evaluation.arms import BASELINE, listed
from bissl_fast.evaluation.metrics import Metric
from bissl_fast.evaluation.results import Results
from bissl_fast.evaluation.statistics import Comparison, p_words

PERCENT = "\u00a0%"


def verdict(results: Results) -> str:
    """One sentence that says which arms were better than the reference on the test split, worse or neither.

    The first metric decides. Of several comparisons, those called significant are so after Holm's correction.

    Example:
        >>> arms = {name: {"scores": {"top1": [50.0, 51.0]}} for name in ("gessl", "baseline")}
        >>> print(verdict(Results.from_json({"dataset": "dtd", "classes": 10, "arms": arms})).split(":")[0])
        GeSSL is not significantly different from fine-tuning only on dtd
    """
    metric, comparisons = results.metrics[0], list(results.comparisons(results.metrics[0]).values())
    if not comparisons:
        score = results.reference.scores[metric.key]
        found = f"{results.reference.title} reaches {score}{PERCENT} {metric.words} on {results.dataset}"
        return f"{found}: there is no other arm to compare it with."
    if len(comparisons) == 1:
        return _of_two(results, metric, comparisons[0])
    return _of_many(results, metric, comparisons)


def sentences(results: Results) -> list[str]:
    """What stands with the table: the verdict, and with controls what backbones have gained over them."""
    return list(filter(None, (verdict(results), gained(results))))


def gained(results: Results) -> str:
    """A sentence on how far the arms' backbones are above those of the controls; empty where there are none.

    Of the metrics of backbones as they are the first counts, or without any that of fine-tuning.

    Example:
        >>> scores = {"bissl": 30, "untrained": 12}
        >>> arms, controls = ({name: {"scores": {"knn_top1": [score]}}} for name, score in scores.items())
        >>> results = Results.from_json({"dataset": "dtd", "classes": 10, "arms": arms, "controls": controls})
        >>> gained(results).split(" (")[0]
        'k-NN top-1: BiSSL 18.0 points above untrained'
    """
    if not results.controls:
        return ""
    control = results.controls[0]
    shown = [metric for metric in results.metrics if metric.key in control.scores]
    metric = next((metric for metric in shown if metric.frozen), shown[0])
    start = control.scores[metric.key].mean
    told = []
    for backbone in (*results.controls[1:], *results.arms):
        if metric.key in backbone.scores:
            gain = backbone.scores[metric.key].mean - start
            told.append(f"{backbone.title} {abs(gain):.1f} points {'above' if gain >= 0 else 'below'}")
    return f"{metric.row}: {listed(told)} {control.title.lower()} ({start:.1f}{PERCENT})."


def _of_two(results: Results, metric: Metric, score: Comparison) -> str:
    relation, preposition = _relation(score)
    tested = "" if score.p is None else f" ({_test(results)}, p {p_words(score.p)})"
    closing = tested or f", but {score.untested}"
    opening = f"{results.candidates[0].title} is {relation} {preposition}{_called(results)}"
    scores = f"{score.candidate}{PERCENT} against {score.baseline}{PERCENT} {metric.words}"
    return f"{opening} on {results.dataset}: {scores}{closing}."


def _of_many(results: Results, metric: Metric, comparisons: list[Comparison]) -> str:
    reference = f"{_called(results)} ({results.reference.scores[metric.key]}{PERCENT} {metric.words})"
    found = [
        f"{arm.title} is {_relation(score)[0]} ({score.candidate}{PERCENT})"
        for arm, score in zip(results.candidates, comparisons, strict=True)
    ]
    return f"Against {reference} on {results.dataset}, {listed(found)}; {_tests(results, comparisons)}."


def _tests(results: Results, comparisons: list[Comparison]) -> str:
    """How many tests stand behind the sentence, and why the others were not made."""
    tested = [score for score in comparisons if score.p is not None]
    correction = " with Holm's correction" if len(tested) > 1 else ""
    parts = [f"{len(comparisons)} comparisons, {len(tested) or 'none'} tested ({_test(results)}{correction})"]
    if len(tested) == len(comparisons):
        parts = [f"{len(tested)} comparisons ({_test(results)}{correction})"]
    for reason in dict.fromkeys(score.untested for score in comparisons if score.untested):
        arms = [
            arm.title for arm, score in zip(results.candidates, comparisons, strict=True) if score.untested == reason
        ]
        parts.append(reason if len(arms) == len(comparisons) else f"{listed(arms)}: {reason}")
    return "; ".join(parts)


def _relation(score: Comparison) -> tuple[str, str]:
    """How the candidate stands to the reference, and the word that leads on to the reference's name."""
    if score.p is None:
        return (
            ("ahead", "of ") if score.difference > 0 else ("behind", "") if score.difference < 0 else ("level", "with ")
        )
    if score.significant():
        return f"significantly {'better' if score.difference > 0 else 'worse'}", "than "
    return "not significantly different", "from "


def _called(results: Results) -> str:
    """The reference, in words."""
    if results.reference.name != BASELINE:
        return results.reference.title
    return "fine-tuning only" if results.fine_tuned else "pretext training only"


def _test(results: Results) -> str:
    """The test, and which seeds it is over where these are not the usual ones."""
    return "Welch's t-test" + ("" if results.seeds == "fine-tuning" else f" over {results.seeds} seeds")
