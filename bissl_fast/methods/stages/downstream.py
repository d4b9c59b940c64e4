"""What all stages on the downstream task share: its loss, its batches, its networks, its scores."""

from dataclasses import dataclass
from functools import partial

from torch import nn

from bissl_fast.data.pipelines.loader import Loader
from bissl_fast.data.sets.dataset import ImageSet, is_multilabel
from bissl_fast.evaluation.average_precision import Difficult
from bissl_fast.evaluation.metrics import Evaluation, evaluate
from bissl_fast.methods.checks import require
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.pretrain import steps_per_epoch
from bissl_fast.models import Network, build_classifier
from bissl_fast.models.sharded import is_sharded
from bissl_fast.ops.collectives import Ranks
from bissl_fast.training.stage import StageOutput
from bissl_fast.training.supervised import DownstreamLoss, MultilabelLoss, downstream_loss


@dataclass(frozen=True)
class FineTuneSettings:
    """Fine-tuning of backbone and a new linear head; the epoch of the best validation score is kept.

    Attributes:
        epochs: length.
        batch_size: images per step; also of the head's warm-up and the upper level.
        seeds: how many models are trained from each backbone.
        multilabel_loss: of a set with several classes per image, likewise; others have cross-entropy. `bce`: one
            logistic loss per class, the classes' sum; `cross-entropy`: softmax against the multi-hot target, as the
            released code.
        difficult: what the average precision of such a set makes of images that show a class only as difficult objects:
            `ignored`, as VOC2007 defines it, or `present`, as the released code.
    """

    epochs: int = 400
    batch_size: int = 256
    seeds: int = 10
    multilabel_loss: MultilabelLoss = "bce"
    difficult: Difficult = "ignored"

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "finetune.epochs", self.epochs, "at least 1")
        require(self.batch_size >= 2, "finetune.batch-size", self.batch_size, "at least 2")
        require(self.seeds >= 1, "finetune.seeds", self.seeds, "at least 1")


@dataclass(frozen=True)
class Downstream:
    """The downstream task of a run."""

    settings: FineTuneSettings

    @property
    def loss(self) -> DownstreamLoss:
        """Of scores and targets, L^D."""
        return partial(downstream_loss, multilabel=self.settings.multilabel_loss)

    def loader(
        self, run: Run, purpose: str, phase_length: int = 1, keep_last: bool = False, alone: bool = False
    ) -> Loader:
        """Batches of training images; arguments are those of :meth:`RunData.loader`."""
        view = (run.settings.images.finetune_view,)
        train, batch = run.data.splits.train, self.settings.batch_size
        return run.data.loader(train, view, batch, purpose, phase_length, keep_last, alone=alone)

    def epoch_steps(self, run: Run) -> int:
        """Batches in an epoch, the last one too, unless a batch norm could do nothing with its one image.

        Raises:
            UserError: if the training split is smaller than a batch.
        """
        return self.epoch_steps_on(len(run.data.splits.train))

    def epoch_steps_on(self, images: int) -> int:
        """The same of a training split of so many images.

        Raises:
            UserError: if they are fewer than a batch.
        """
        batch = self.settings.batch_size
        return steps_per_epoch(images, batch, "--finetune.batch-size") + (images % batch > 1)

    def classifier(self, run: Run, purpose: str) -> nn.Linear:
        """A new linear head."""
        return build_classifier(run.features, len(run.data.splits.train.classes), run.seed(purpose))

    def network(self, run: Run, backbone: StageOutput, purpose: str) -> Network:
        """A backbone with a new linear head."""
        return run.downstream_network(backbone, self.classifier(run, purpose))

    def evaluate(self, run: Run, network: nn.Module, images: ImageSet) -> Evaluation:
        """Scores of a network on a split."""
        batches = run.data.evaluation_batches(images)
        return evaluate(network, batches, run.device, self.loss, self.settings.difficult)

    def validate(self, run: Run, network: nn.Module, ranks: Ranks | None) -> Evaluation:
        """Scores on the validation split, which ranks share, if each has an image of it.

        Of a sharded network ranks take as many passes, which equal parts alone promise.
        """
        images = run.data.splits.val
        if ranks is not None and (len(images) < ranks.size or (len(images) % ranks.size and is_sharded(network))):
            ranks = None
        batches = run.data.evaluation_batches(images, ranks)
        return evaluate(network, batches, run.device, self.loss, self.settings.difficult, ranks)

    def loss_key(self, run: Run) -> dict[str, str]:
        """What the loss adds to the settings that a stage is keyed by: nothing where there is no choice."""
        return {"multilabel_loss": self.settings.multilabel_loss} if is_multilabel(run.data.splits.train.labels) else {}

    def score_key(self, run: Run) -> dict[str, str]:
        """Likewise of the score."""
        return {"difficult": self.settings.difficult} if is_multilabel(run.data.splits.train.labels) else {}
