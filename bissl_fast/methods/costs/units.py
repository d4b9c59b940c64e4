"""What one unit of each kind of work takes on this machine: a few steps of every stage, on noise, before any is run."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch

from bissl_fast.bilevel import ParameterVector
from bissl_fast.data.sets.dataset import ImageSet, Splits
from bissl_fast.evaluation.finetuning import FineTuneTask
from bissl_fast.evaluation.metrics import Evaluation
from bissl_fast.measuring.timing import wait_for
from bissl_fast.methods.bissl.method import BiSSL
from bissl_fast.methods.config import TrainConfig
from bissl_fast.methods.costs.work import UNITS, Unit, Work
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.head import HeadWarmupTask
from bissl_fast.methods.stages.pretrain import Pretext, PretrainTask
from bissl_fast.methods.trial import usable
from bissl_fast.models import Network, place
from bissl_fast.pretext import Learner
from bissl_fast.pretext.learner import Views
from bissl_fast.training.memory import keep_freed_memory

FEW = 64  # images of a batch on a CPU, where time is in proportion to them
LONG = 1_000_000  # steps of a schedule that no probe comes to the end of


@dataclass(frozen=True)
class Measured:
    """Seconds of one unit of each kind, for batches as large as the run's.

    Attributes:
        seconds: by unit.
        product_bytes: that a product of one stored batch takes, about; 0 where the mode does not know.
        images: of a pretext batch that were measured; the time of a whole one is in proportion.
    """

    seconds: dict[Unit, float]
    product_bytes: int
    images: int

    def of(self, work: Work) -> float:
        """Seconds that some work takes.

        Example:
            >>> Measured(dict.fromkeys(UNITS, 0.5), 0, 64).of({"product": 4, "upper step": 2})
            3.0
        """
        return sum(number * self.seconds[unit] for unit, number in work.items())

    def kept(self, config: TrainConfig, device: torch.device) -> int:
        """How many of a run's stored batches keep their linearisation within the budget of its products."""
        stored = config.bissl.stored_batches
        return stored if not self.product_bytes else min(stored, config.bilevel.budget(device) // self.product_bytes)


def measure(run: Run, config: TrainConfig, classes: int, multilabel: bool, seconds: float = 4.0) -> Measured:
    """Measure one unit of each kind.

    Weights are new, images noise in the size of those stored, read and rendered as the run would. On a CPU batches are
    of 64 images at most, and times are scaled to whole ones; on a GPU they are whole.

    Args:
        run: whose device, backbone, pipeline and precision are used; its images are noise from here on, and nothing is
            written to its folder.
        config: its settings.
        classes: of the downstream set.
        multilabel: whether its images show several.
        seconds: for each unit, beside one call to warm up; one call at least.

    Raises:
        UserError: for settings that cannot be trained with.
    """
    keep_freed_memory()
    units = _Units(run, config, classes, multilabel, seconds)
    found = units.pretext() | units.levels() | units.downstream()
    return Measured({unit: found[unit] for unit in UNITS}, units.product_bytes, units.pairs)


class _Units:
    """One run's settings, made small, and what they take."""

    def __init__(self, run: Run, config: TrainConfig, classes: int, multilabel: bool, seconds: float) -> None:
        self.run, self.config, self.seconds = run, config, seconds
        most, multiple = LONG if run.device.type == "cuda" else FEW, config.pretext.needs.batch_multiple
        self.pairs = min(config.pretrain.batch_size, max(multiple, most // multiple * multiple))
        batch = min(config.finetune.batch_size, most)
        self.share = config.pretrain.batch_size / self.pairs
        self.tuning_share = config.finetune.batch_size / batch
        chunk = config.pretrain.chunk
        chunk = None if chunk is None else max(2, min(chunk, self.pairs // 2))  # two of them at least
        self.pretext_task = Pretext(config.pretext, replace(config.pretrain, batch_size=self.pairs, chunk=chunk))
        self.downstream_task = Downstream(replace(config.finetune, batch_size=batch))
        images = config.images
        run.data.unlabelled = noise_set(self.pairs, images.cache_size, images.channels)
        stored = images.downstream_cache_size or images.cache_size
        self.labelled = noise_set(batch, stored, images.channels, classes, multilabel)
        run.data.splits = Splits(self.labelled, self.labelled, self.labelled)
        self.product_bytes = 0

    def pretext(self) -> dict[Unit, float]:
        """Steps of the pretext stages."""
        learner = self.pretext_task.learner(self.run)
        with self.pretext_task.batches(self.run) as loader:
            task = PretrainTask(learner, loader, self.pretext_task.settings, LONG, LONG)
            return {"pretext step": self.share * self._timed(task.step)}

    def levels(self) -> dict[Unit, float]:
        """Lower steps, linearisations and products; an upper step is two passes of a downstream batch beside them."""
        run, config, downstream = self.run, self.config, self.downstream_task
        learner = self.pretext_task.learner(run)
        settings = replace(config.bissl, alternations=LONG, lower_steps=1, upper_steps=1, warmup_steps=LONG)
        settings = replace(settings, stored_batches=1, stored_from="lower")
        bilevel = replace(config.bilevel, batches_at_once=1)
        network = Network(copy.deepcopy(learner.network.backbone), downstream.classifier(run, "head"))
        method = BiSSL(settings, bilevel, self.pretext_task, downstream, config.head, config.upper)
        with method.task(run, learner, place(network, run.device)) as task:
            lower_seconds = self._timed(task._lower_level)
            stored, _ = task._lower_level(0)
            batch = task.downstream_loader.load(0)
            upper_seconds = self._timed(lambda _: (task._gradient_at_theta_p(batch), task._gradient_at_theta_d(batch)))
        return {
            "lower step": self.share * lower_seconds,
            "upper step": self.tuning_share * upper_seconds,
            **self._products(learner, stored),
        }

    def _products(self, learner: Learner, stored: list[Views]) -> dict[Unit, float]:
        """Of one stored batch, once linearised and once multiplied with."""
        bilevel, _ = usable(replace(self.config.bilevel, batches_at_once=1), learner, self.run.views)
        if bilevel.solver == "identity":
            return {"linearisation": 0.0, "product": 0.0}
        theta = ParameterVector(learner.network, "backbone.")
        batches = bilevel.grouped(learner.given(stored))
        hessian = bilevel.operator(learner.product_loss, theta, batches)
        self.product_bytes = round(self.share * hessian.needed_bytes)
        vector = torch.randn(sum(hessian.segments)).to(theta.tensors[0])
        product = self._timed(lambda _: hessian.matvec(vector))
        linearisation = self._timed(lambda _: hessian.update(batches))
        return {"linearisation": self.share * linearisation, "product": self.share * product}

    def downstream(self) -> dict[Unit, float]:
        """Steps of the head's warm-up and of fine-tuning, and an image scored."""
        run, config, downstream = self.run, self.config, self.downstream_task
        network = run.downstream_network(None, downstream.classifier(run, "head"))
        with downstream.loader(run, "finetune") as loader:
            head = HeadWarmupTask(network, loader, config.upper, LONG, run.forward, downstream.loss)
            head_seconds = self._timed(head.step)
            optimizer = config.finetune_baseline.build(list(network.parameters()))
            tuning = FineTuneTask(network, loader, self._scored, optimizer, 1, LONG, run.forward, downstream.loss)
            tuning_seconds = self._timed(tuning.step)
        return {
            "head step": self.tuning_share * head_seconds,
            "tuning step": self.tuning_share * tuning_seconds,
            "image scored": self._timed(lambda _: self._scored(network)) / len(self.labelled),
        }

    def _scored(self, network: torch.nn.Module) -> Evaluation:
        return self.downstream_task.evaluate(self.run, network, self.labelled)

    def _timed(self, call: Callable[[int], object]) -> float:
        """Mean seconds of a call, which is given its number, after one to warm up."""
        call(0)
        wait_for(self.run.device)
        start = time.perf_counter()
        for number in count(1):
            call(number)
            wait_for(self.run.device)
            if (passed := time.perf_counter() - start) >= self.seconds:
                break
        return passed / number


def noise_set(count: int, size: int, channels: int, classes: int = 0, multilabel: bool = False) -> ImageSet:
    """Images of nothing, with labels where there are classes.

    Args:
        count: of the images.
        size: side in pixels.
        channels: of each.
        classes: of the labels; 0: none.
        multilabel: whether targets have a column for each class.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    labels = np.arange(count) % max(1, classes)
    names = tuple(f"class {number}" for number in range(classes))
    if multilabel:
        targets = np.where(labels[:, None] == np.arange(classes), 1, -1).astype(np.int8)
        return ImageSet("noise", images, targets, names, f"noise-{size}")
    return ImageSet("noise", images, labels if classes else None, names, f"noise-{size}")
