"""Protocols that score a backbone on a labelled set; one file each, with the papers' settings as defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from bissl_fast.data.sets.dataset import Splits
from bissl_fast.evaluation.protocols import fewshot, finetune, knn, linear, semi
from bissl_fast.evaluation.protocols.fewshot import FewShotSettings
from bissl_fast.evaluation.protocols.finetune import TuningSettings
from bissl_fast.evaluation.protocols.knn import NeighbourSettings
from bissl_fast.evaluation.protocols.linear import LinearSettings
from bissl_fast.evaluation.protocols.semi import SemiSettings
from bissl_fast.evaluation.protocols.subject import Outcome, Score, Scores, Subject

ProtocolName = Literal["linear", "knn", "finetune", "semi", "fewshot", "crossdomain"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)

__all__ = [
    "PAPERS",
    "PROTOCOLS",
    "FewShotSettings",
    "LinearSettings",
    "NeighbourSettings",
    "Outcome",
    "ProtocolName",
    "ProtocolSettings",
    "Score",
    "Scores",
    "SemiSettings",
    "Subject",
    "TuningSettings",
    "require",
    "run",
    "scores",
]


@dataclass(frozen=True)
class ProtocolSettings:
    """The settings of all protocols.

    Attributes:
        linear: a linear classifier on frozen features.
        knn: nearest neighbours among frozen features.
        finetune: fine-tuning of the whole backbone with all labels.
        semi: fine-tuning with few labels.
        fewshot: few-shot episodes of the test split's classes.
        crossdomain: few-shot episodes of another set than the backbone was trained on (GeSSL's pairs).
    """

    linear: LinearSettings = LinearSettings()
    knn: NeighbourSettings = NeighbourSettings()
    finetune: TuningSettings = TuningSettings()
    semi: SemiSettings = SemiSettings()
    fewshot: FewShotSettings = FewShotSettings()
    crossdomain: FewShotSettings = field(default_factory=lambda: FewShotSettings(((5, 5), (5, 20))))

    def of(self, name: ProtocolName) -> Any:
        """Those of one."""
        return getattr(self, name)


PAPERS = ProtocolSettings()
"""Those of the papers."""


def require(name: ProtocolName, splits: Splits, settings: ProtocolSettings = PAPERS) -> None:
    """Raise the sentence for a set that a protocol cannot be used on.

    Raises:
        UserError: if it is one.
    """
    if name in ("fewshot", "crossdomain"):
        fewshot.require(splits, settings.of(name), name)
    elif name == "knn":
        knn.require(splits, settings.knn)
    else:
        {"linear": linear.require, "finetune": finetune.require, "semi": semi.require}[name](splits)


def run(
    name: ProtocolName, subject: Subject, settings: ProtocolSettings = PAPERS, folder: Path | None = None
) -> Outcome:
    """What one protocol finds, in percent.

    Args:
        name: of the protocol.
        subject: a backbone and a set.
        settings: of all.
        folder: where those that train the backbone keep their stages, so that what is broken off goes on.

    Raises:
        UserError: if the set cannot serve it.
    """
    if name == "linear":
        return linear.linear(subject, settings.linear)
    if name == "knn":
        return knn.knn(subject, settings.knn)
    if name == "finetune":
        return finetune.finetune(subject, settings.finetune, folder)
    if name == "semi":
        return semi.semi(subject, settings.semi, folder)
    return fewshot.fewshot(subject, settings.of(name), name)


def scores(subject: Subject, names: Sequence[ProtocolName], settings: ProtocolSettings = PAPERS) -> dict[str, float]:
    """Scores of several protocols in percent, by key: `linear_top1`, `knn_top1`, `fewshot_5w1s`, ….

    Args:
        subject: a backbone and a set; its features are extracted once for all of them.
        names: of the protocols.
        settings: of them.

    Raises:
        UserError: if the set cannot serve one of them, before any is run.

    Example:
        >>> scores(subject, ["linear", "knn"])  # doctest: +SKIP
        {'linear_top1': 61.2, 'linear_top5': 88.0, 'knn_top1': 48.9}
    """
    for name in names:
        require(name, subject.splits, settings)
    return {key: score.value for name in names for key, score in run(name, subject, settings).scores.items()}
