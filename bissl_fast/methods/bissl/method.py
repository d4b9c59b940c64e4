"""BiSSL as an arm of a run: pretext warm-up, head warm-up, Algorithm 1 (Figure 1)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bissl_fast.bilevel.solvers.events import troubles
from bissl_fast.errors import UserError
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.bissl.algorithm import BiSSLTask
from bissl_fast.methods.bissl.settings import BiSSLSettings
from bissl_fast.methods.costs.cost import Cost, steps_cost
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.downstream import Downstream
from bissl_fast.methods.stages.head import HeadSettings, load_head, warm_head
from bissl_fast.methods.stages.pretrain import Pretext, tell_rising
from bissl_fast.methods.stages.sgd import SGDSettings
from bissl_fast.methods.trial import kept_or_tried
from bissl_fast.models import Network
from bissl_fast.pretext import Learner
from bissl_fast.training.files import save_weights
from bissl_fast.training.log import read_metrics
from bissl_fast.training.stage import StageOutput


@dataclass(frozen=True)
class BiSSL:
    """The method: pretext warm-up, head warm-up, Algorithm 1 (Figure 1).

    Attributes:
        settings: of the algorithm.
        bilevel: how products are taken and systems solved.
        pretext: the pretext task.
        downstream: the downstream task.
        head: warm-up of its head.
        upper: SGD of that and of the upper level.
    """

    settings: BiSSLSettings
    bilevel: BilevelSettings
    pretext: Pretext
    downstream: Downstream
    head: HeadSettings
    upper: SGDSettings

    title = "BiSSL"
    supervised = True

    def prepare(self, run: Run) -> "BiSSL":
        """What a run needs to know before its first stage: that second-order products can be taken.

        Raises:
            UserError: if they cannot, or the batches do not fit the sets.
        """
        self.bilevel.require_device(run.device)
        usual, own = self.pretext.rising_steps(run), self.settings.warmup_steps
        rising = usual if own is None else own
        tell_rising(run, "pretext-warmup", usual, self.pretext.warmup_steps(run))
        tell_rising(run, "bissl", rising, self.settings.alternations * self.settings.lower_steps)
        self.downstream.epoch_steps(run)
        pretext = self.pretext.settings
        large = None if pretext.chunk is None or self.bilevel.solver == "identity" else pretext.batch_size
        bilevel = kept_or_tried(run, self.bilevel, self.pretext.task, large)
        return replace(self, bilevel=bilevel, settings=replace(self.settings, warmup_steps=rising))

    def cost(self, run: Run) -> Cost:
        """Of all stages; the head's warm-up has no backward pass through the backbone."""
        settings = self.settings
        lower = settings.alternations * settings.lower_steps
        upper = settings.alternations * settings.upper_steps
        pretext = steps_cost(self.pretext.warmup_steps(run) + lower, self.pretext.settings.batch_size)
        downstream = steps_cost(2 * upper, self.downstream.settings.batch_size)  # at θ_P and at θ_D
        phase = self.bilevel.most_products(settings.solver_iterations, settings.upper_steps)
        products = settings.alternations * phase * settings.stored_batches
        return pretext + downstream + Cost(products=products)

    def within(self, run: Run, images: int) -> "BiSSL":
        """As many alternations as so many images allow after the pretext warm-up, which stays: others share it.

        Raises:
            UserError: if they do not allow one.
        """
        warmup = self.pretext.warmup_steps(run) * self.pretext.settings.batch_size
        alternation = (self.cost(run).images - warmup) // self.settings.alternations
        if warmup + alternation > images:
            raise UserError(
                f"bissl: the pretext warm-up and one alternation take passes of {warmup + alternation:,} images, and "
                f"the budget is {images:,}: raise it, or lower --pretrain.epochs or --bissl.lower-steps."
            )
        return replace(self, settings=replace(self.settings, alternations=(images - warmup) // alternation))

    def backbone(self, run: Run) -> StageOutput:
        """All stages; the last holds θ_P, and θ_D and φ_D beside it."""
        warmup = self.pretext.train(run, "pretext-warmup", self.pretext.warmup_steps(run))
        head = warm_head(run, self.downstream, warmup, self.head, self.upper)
        return self._alternate(run, warmup, head)

    def _alternate(self, run: Run, warmup: StageOutput, head: StageOutput) -> StageOutput:
        """The stage ``bissl``: Algorithm 1."""

        def body(folder: Path) -> None:
            learner = self.pretext.learner(run, warmup)
            self.pretext.tell_chunks(run, "bissl", learner)
            downstream = Network(copy.deepcopy(learner.network.backbone), self.downstream.classifier(run, "head"))
            load_head(downstream.to(run.device), head)
            with self.task(run, learner, downstream) as task:
                run.loop(task, folder)
            for sentence in troubles(read_metrics(folder / "metrics.jsonl")):
                run.say(f"bissl: {sentence}")
            named = {f"downstream.{name}": value for name, value in downstream.state_dict().items()}
            save_weights(folder / "weights.safetensors", learner.state_dict() | named)

        settings = {
            "bissl": self.settings,
            "bilevel": self.bilevel.deciding(),
            **self.pretext.key,
            "optimizer": self.pretext.settings.optimizer,
            "sgd": self.upper,
            "batch_sizes": (self.pretext.settings.batch_size, self.downstream.settings.batch_size),
            "views": (*run.views, run.settings.images.finetune_view),
            **self.downstream.loss_key(run),
        }
        inputs = {
            "unlabelled": run.data.unlabelled.content_hash,
            "images": run.data.splits.train.content_hash,
            "backbone": warmup.hash,
            "head": head.hash,
        }
        return run.stage("bissl", settings, inputs, body)

    @contextmanager
    def task(self, run: Run, learner: Learner, downstream: Network) -> Iterator[BiSSLTask]:
        """Algorithm 1 from these networks on the run's images."""
        settings = self.settings
        with (
            self.pretext.loader(run, "lower", settings.lower_steps) as lower,
            self.downstream.loader(run, "upper", settings.upper_steps) as upper,
            self.pretext.loader(run, "fresh", settings.stored_batches) as fresh,
        ):
            yield BiSSLTask(
                learner,
                downstream,
                lower,
                upper,
                fresh if settings.stored_from == "fresh" else None,
                settings,
                self.bilevel,
                self.pretext.settings.optimizer,
                self.upper,
                run.forward,
                self.downstream.loss,
            )
