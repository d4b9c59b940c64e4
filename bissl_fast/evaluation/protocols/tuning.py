"""A copy of a subject's backbone, fine-tuned with a new classifier and tested: what `finetune` and `semi` share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bissl_fast.data.pipelines.loader import ViewLoader, sequential_batches
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.evaluation.average_precision import Difficult
from bissl_fast.evaluation.finetuning import FineTuneTask
from bissl_fast.evaluation.metrics import Evaluation, evaluate, evaluation_mode
from bissl_fast.evaluation.protocols.subject import BATCH, Subject
from bissl_fast.models import Network, build_classifier
from bissl_fast.models.weights import digest_of
from bissl_fast.training.files import load_weights, save_weights
from bissl_fast.training.loop import LoopSettings, run_loop
from bissl_fast.training.stage import run_stage
from bissl_fast.training.supervised import DownstreamLoss, MultilabelLoss, downstream_loss

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Tuning:
    """How it is fine-tuned, by SGD whose rates fall by a half cosine.

    Attributes:
        head_rate: the first rate of the classifier.
        backbone_rate: of the backbone.
        seed: of the first classifier, of order and views.
        layer_seed: of layers such as dropout.
        epochs: length.
        batch_size: images per step, or all where there are fewer; the last batch counts unless it is a single image.
        weight_decay: added to the gradient.
        momentum: of SGD.
        final_share: the last rates as a share of the first.
        multilabel_loss: of images with several classes.
        difficult: what these are to a class that they show only as difficult objects.
    """

    head_rate: float
    backbone_rate: float
    seed: int
    layer_seed: int
    epochs: int
    batch_size: int
    weight_decay: float
    momentum: float
    final_share: float = 0.0
    multilabel_loss: MultilabelLoss = "bce"
    difficult: Difficult = "ignored"

    @property
    def loss(self) -> DownstreamLoss:
        """Of scores and targets."""
        return partial(downstream_loss, multilabel=self.multilabel_loss)

    def order(self, images: ImageSet) -> BatchOrder:
        """Batches of images without replacement."""
        return BatchOrder(len(images), min(self.batch_size, len(images)), self.seed, keep_last=True)

    def steps(self, images: ImageSet) -> int:
        """How many it takes."""
        return self.epochs * self.order(images).batches_per_epoch


def tuned(
    subject: Subject,
    name: str,
    images: ImageSet,
    tuning: Tuning,
    validation: ImageSet | None = None,
    folder: Path | None = None,
) -> Network:
    """The fine-tuned network: of the best validation epoch, or of the last one.

    Args:
        subject: the backbone, which is left as it is, and how images are shown.
        name: of the stage.
        images: labelled, to train on.
        tuning: how.
        validation: labelled images by which the epoch is chosen; left out: the last one counts.
        folder: in which it is a stage: broken off it goes on, done it is read; left out: nothing is kept.

    Raises:
        UserError: if it diverges.
    """

    def body(place: Path) -> None:
        network, order = new_network(subject, len(images.classes), tuning.seed), tuning.order(images)
        validate = None if validation is None else partial(tested, subject, images=validation, tuning=tuning)
        groups = ((network.head, tuning.head_rate), (network.backbone, tuning.backbone_rate))
        optimizer = torch.optim.SGD(
            [{"params": list(part.parameters()), "lr": rate} for part, rate in groups],
            momentum=tuning.momentum,
            weight_decay=tuning.weight_decay,
        )
        length = (tuning.epochs, order.batches_per_epoch)
        loader = ViewLoader(images, (subject.training_view,), order, tuning.seed, subject.device)
        with loader, torch.random.fork_rng():
            task = FineTuneTask(
                network, loader, validate, optimizer, *length, nullcontext, tuning.loss, tuning.final_share
            )
            run_loop(task, place, subject.device, tuning.layer_seed, LoopSettings(), subject.console)
        save_weights(place / WEIGHTS, task.best)

    inputs = {"backbone": digest_of(subject.backbone.state_dict()), "images": images.content_hash}
    inputs |= {} if validation is None else {"validation": validation.content_hash}
    key = {"tuning": tuning, "views": (subject.view, subject.training_view)}
    with _kept(folder) as kept:
        stage = run_stage(kept / name, key, inputs, body, console=subject.console)
        network = new_network(subject, len(images.classes), tuning.seed)
        network.load_state_dict(load_weights(stage.folder / WEIGHTS))
    return network


def tested(subject: Subject, network: Network, images: ImageSet, tuning: Tuning) -> Evaluation:
    """Scores of a network on every image of a split."""
    batches = sequential_batches(images, subject.view, BATCH, subject.device)
    return evaluate(network, batches, subject.device, tuning.loss, tuning.difficult)


def new_network(subject: Subject, classes: int, seed: int) -> Network:
    """A copy of the backbone with a new classifier."""
    view = subject.view
    with evaluation_mode(subject.backbone), torch.no_grad():
        nothing = torch.zeros(1, len(view.mean), view.size, view.size, device=subject.device)
        features = subject.backbone(nothing).shape[1]
    return Network(copy.deepcopy(subject.backbone), build_classifier(features, classes, seed).to(subject.device))


@contextmanager
def _kept(folder: Path | None) -> Iterator[Path]:
    """The folder, or one that is gone afterwards."""
    if folder is not None:
        yield folder
        return
    with TemporaryDirectory() as passing:
        yield Path(passing)
