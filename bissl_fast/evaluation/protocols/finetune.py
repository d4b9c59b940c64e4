"""Fine-tuning of the whole backbone with all labels, as a run fine-tunes it (BiSSL, section 4.2.1)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from bissl_fast.data.sets.dataset import Splits
from bissl_fast.errors import UserError
from bissl_fast.evaluation.answers import told
from bissl_fast.evaluation.average_precision import Difficult
from bissl_fast.evaluation.protocols.subject import Outcome, Score, Subject, require_same_classes
from bissl_fast.evaluation.protocols.tuning import Tuning, tested, tuned
from bissl_fast.training.seeds import derive_seed
from bissl_fast.training.supervised import MultilabelLoss


@dataclass(frozen=True)
class TuningSettings:
    """Fine-tuning of backbone and a new linear classifier. What is left out is the run's, or the paper's.

    Attributes:
        epochs: length; the epoch of the best validation score is kept. The paper's: 400.
        batch_size: images per step, or all there are where they are fewer. The paper's: 256.
        seeds: how many models are trained. The paper's: 10.
        learning_rate: of SGD, falling by a half cosine. The paper's is that of its baseline on the set (Table 2).
        weight_decay: added to the gradient, likewise.
        momentum: of SGD. The paper's: 0.9.
        final_share: the last rate as a share of the first. The paper's: 0.
        multilabel_loss: of images with several classes: `bce` or `cross-entropy`; left out: the run's, or `bce`.
        difficult: what these are to a class that they show only as difficult objects, in the score that chooses the
            epoch and judges: `ignored` or `present`; left out: the run's, or `ignored`.
    """

    epochs: int | None = None
    batch_size: int | None = None
    seeds: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    final_share: float | None = None
    multilabel_loss: MultilabelLoss | None = None
    difficult: Difficult | None = None

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 2, "seeds": 1, "weight_decay": 0, "momentum": 0, "final_share": 0}
        for name, bound in least.items():
            if (found := getattr(self, name)) is not None and not found >= bound:
                raise UserError(f"--finetune.{name.replace('_', '-')} must be at least {bound}, found {found}.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise UserError(f"--finetune.learning-rate must be positive, found {self.learning_rate}.")

    def over(self, usual: TuningSettings) -> TuningSettings:
        """What is left out taken from others.

        Example:
            >>> TuningSettings(epochs=3).over(TuningSettings(epochs=9, seeds=2))
            TuningSettings(epochs=3, batch_size=None, seeds=2, learning_rate=None, weight_decay=None, momentum=None, \
final_share=None, multilabel_loss=None, difficult=None)
        """
        own = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        return replace(usual, **own)

    def tuning(self, subject: Subject, number: int) -> Tuning:
        """That of one seed: what a run of the same seed does in its stage of this name."""
        full = self.over(PAPER)  # which leaves nothing out
        given = {field.name: getattr(full, field.name) for field in fields(full) if field.name != "seeds"}
        rate = given.pop("learning_rate")
        seed, layers = (derive_seed(subject.seed, name) for name in (f"finetune-{number}", stage(subject, number)))
        return Tuning(rate, rate, seed, layers, **given)


PAPER = TuningSettings(400, 256, 10, 0.0262, 0.00332, 0.9, 0.0, "bce", "ignored")
"""The paper's, with rate and decay of DTD."""


def require(splits: Splits) -> None:
    """Raise the sentence for a set that it makes no sense on."""
    require_same_classes(splits, "finetune")


def finetune(subject: Subject, settings: TuningSettings, folder: Path | None = None) -> Outcome:
    """`finetune_top1` and `finetune_top5` of all test images, or `finetune_map` where images have several classes.

    Each is a mean over the seeds, of every one of which the first epoch with the highest validation score is tested.

    Args:
        subject: a backbone and a set.
        settings: of the fine-tuning.
        folder: in which each seed is a stage, so that what is broken off goes on.

    Raises:
        UserError: if the set has other classes to test than to train, or fine-tuning diverges.
    """
    require(subject.splits)
    train, seeds = subject.splits.train, settings.over(PAPER).seeds or 1
    tunings = [settings.tuning(subject, number) for number in range(seeds)]
    subject.tell(cost(subject, tunings))
    found = []
    for number, tuning in enumerate(tunings):
        network = tuned(subject, stage(subject, number), train, tuning, subject.splits.val, folder)
        found.append(tested(subject, network, subject.splits.test, tuning))
        words = ", ".join(f"{key} {value:.1f}" for key, value in found[-1].metrics.items())
        subject.tell(f"{stage(subject, number)}: {words} on {subject.splits.test.name}")
    scores = {f"finetune_{key}": Score.over_seeds([each.metrics[key] for each in found]) for key in found[0].metrics}
    answers = [each.answers for each in found if each.answers is not None]
    return Outcome(scores, {"finetune": told(answers)})


def cost(subject: Subject, tunings: list[Tuning]) -> str:
    """What is about to be done, in a sentence."""
    one, train = tunings[0], subject.splits.train
    return (
        f"finetune of {subject.name}: seeds {len(tunings)}, epochs {one.epochs}, {one.steps(train):,} steps each, SGD "
        f"of rate {one.backbone_rate:g} and decay {one.weight_decay:g}"
    )


def stage(subject: Subject, number: int) -> str:
    """What a run calls it."""
    return f"finetune-{subject.name}-{number}"
