"""The baseline of all methods: the pretext task alone, then fine-tuning (BiSSL, Figure 1)."""

from dataclasses import dataclass, replace

from bissl_fast.methods.costs.cost import Cost, steps_cost
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.pretrain import Pretext
from bissl_fast.training.stage import StageOutput

ALIKE = 0.02  # share by which numbers of pretext steps may differ before a run tells it


@dataclass(frozen=True)
class Baseline:
    """The method: one pretext stage.

    Attributes:
        pretext: the pretext task.
        further_steps: pretext steps of BiSSL beyond its warm-up. Baseline and BiSSL have as many together, unless
            ``pretext.settings.baseline_epochs`` says otherwise.
    """

    pretext: Pretext
    further_steps: int

    title = "Only FT"
    supervised = False

    def prepare(self, run: Run) -> "Baseline":
        """Tells where the arms' numbers of pretext steps differ.

        Raises:
            UserError: if a batch does not fit the unlabelled set.
        """
        own, together = self._steps(run), self._steps_of_the_other(run)
        if abs(own - together) > ALIKE * together:
            sentence = f"pretext-baseline: {own:,} steps, where warm-up and BiSSL have {together:,}"
            run.say(f"{sentence}; --pretrain.baseline-epochs decides")
        return self

    def cost(self, run: Run) -> Cost:
        """Of its one stage."""
        return steps_cost(self._steps(run), self.pretext.settings.batch_size)

    def within(self, run: Run, images: int) -> "Baseline":
        """The baseline with as many pretext steps as passes of so many images allow; none if it was to have none.

        Raises:
            UserError: if not even one does.
        """
        if not self._steps(run):
            return self
        return replace(self, pretext=self.pretext.lasting(run, images), further_steps=0)

    def backbone(self, run: Run) -> StageOutput:
        """The stage ``pretext-baseline``."""
        return self.pretext.train(run, "pretext-baseline", self._steps(run))

    def _steps(self, run: Run) -> int:
        epochs = self.pretext.settings.baseline_epochs
        return self._steps_of_the_other(run) if epochs is None else self.pretext.steps(run, epochs)

    def _steps_of_the_other(self, run: Run) -> int:
        return self.pretext.warmup_steps(run) + self.further_steps
