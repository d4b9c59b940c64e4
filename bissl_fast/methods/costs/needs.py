"""What a run needs, stage by stage, before it is made: a few steps of each are, and what they take is counted up."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bissl_fast.measuring.timing import wait_for
from bissl_fast.methods.config import TrainConfig
from bissl_fast.methods.costs.cost import Cost
from bissl_fast.methods.costs.steps import measured_steps
from bissl_fast.methods.costs.work import Sizes, testing_work, tuned_models
from bissl_fast.methods.run import Run, Watch
from bissl_fast.methods.search.settings import SearchSettings
from bissl_fast.methods.train import Training
from bissl_fast.pretext.collapse import alarm
from bissl_fast.training.checkpoint import FILES, Checkpoints
from bissl_fast.training.files import make_folder, write_json
from bissl_fast.training.finite import GradientWatch
from bissl_fast.training.log import Metrics
from bissl_fast.training.loop import Task
from bissl_fast.training.memory import NEEDS, keep_freed_memory, memory_told, peak_of_process
from bissl_fast.training.stage import StageOutput


@dataclass(frozen=True)
class StageNeeds:
    """A stage before it is made.

    Attributes:
        stage: its name.
        steps: of its loop, 0 without one.
        seconds: of work.
        memory: bytes that the process holds at its peak; of a GPU, where it trains on one.
        disk: bytes that it leaves.
        checkpoints: bytes beside these, while it runs.
    """

    stage: str
    steps: int
    seconds: float
    memory: int
    disk: int
    checkpoints: int = 0


@dataclass(frozen=True)
class RunNeeds:
    """A run before it is made.

    Attributes:
        stages: in their order.
        preparation: seconds before the first, on data and a trial of products.
        cache: bytes of the decoded images.
        costs: of each arm's backbone.
        titles: what people call the arms.
    """

    stages: tuple[StageNeeds, ...]
    preparation: float
    cache: int
    costs: Mapping[str, Cost]
    titles: Mapping[str, str]

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def memory(self) -> int:
        """Of the stage that holds the most."""
        return max(stage.memory for stage in self.stages)

    @property
    def disk(self) -> int:
        """Of all outputs, and the largest checkpoints beside them; without the cache."""
        return sum(stage.disk for stage in self.stages) + max(stage.checkpoints for stage in self.stages)


def stage_needs(config: TrainConfig, console: Console) -> RunNeeds:
    """What a run needs, by a few steps of each of its stages on its own data, in a folder that is removed.

    Decoded images stay in the cache. Stages that have no loop are made whole, for one model per arm; what a further one
    takes is known from the validation of fine-tuning. The estimate is left in the run's folder, where a run whose
    memory is full finds it.

    Args:
        config: the run's.
        console: where it is told what is measured.

    Raises:
        UserError: for whatever the run would be refused for, and if a stage's memory is not there.
    """
    make_folder(config.run_folder)
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=config.output) as scratch, memory_told():
        one = replace(config.finetune, seeds=1)
        short = replace(config, output=Path(scratch), name="run", finetune=one, search=SearchSettings())
        began = time.monotonic()
        training = Training(short, console, Probe)
        preparation = time.monotonic() - began
        make_folder(training.context.folder)
        run = training.context
        assert isinstance(run, Probe)
        run.probing = True
        training.run()
        splits = run.data.splits
        found = RunNeeds(
            tuple(_whole(run, config)),
            preparation,
            sum(images.images.nbytes for images in (run.data.unlabelled, splits.train, splits.val, splits.test)),
            {name: method.cost(run) for name, (method, _) in training.arms.items()},
            training.titles,
        )
    write_json(config.run_folder / NEEDS, {stage.stage: vars(stage) for stage in found.stages})
    return found


@dataclass
class Loop:
    """What a loop takes.

    Attributes:
        steps: in all.
        measured: seconds of the steps that were made.
        seconds: of all steps, checkpoints included.
        logged: seconds that a step takes longer whose values are logged, by a validation for example.
        lines: bytes of the log.
        checkpoint: bytes of one.
    """

    steps: int
    measured: float
    seconds: float
    logged: float
    lines: int
    checkpoint: int


class Probe(Run):
    """A run whose loops stop after a few steps, each timed.

    Attributes:
        needs: of the stages so far.
        loops: by stage, its last.
        probing: whether stages have begun.
    """

    probing = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.needs: list[StageNeeds] = []
        self.loops: dict[str, Loop] = {}

    def say(self, sentence: str, style: str = "yellow") -> None:
        """As :class:`Run` before the first stage; what stages find in their few steps is not so of the run's."""
        if not self.probing:
            super().say(sentence, style)

    def stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        body: Callable[[Path], None],
        *others: Any,
        **named: Any,
    ) -> StageOutput:
        """As :class:`Run`; takes down what the stage needs, once if arms share it."""
        if name in self.done:
            return super().stage(name, settings, inputs, body, *others, **named)
        super().say(f"{name}: a few steps are measured", "dim")
        began, peak = time.monotonic(), [0]

        def watched(folder: Path) -> None:
            body(folder)
            peak[0] = peak_of_process()

        output = super().stage(name, settings, inputs, watched, *others, **named)
        wall = time.monotonic() - began
        loop = self.loops.get(name, Loop(0, 0.0, 0.0, 0.0, 0, 0))
        kept = sum(file.stat().st_size for file in output.folder.rglob("*") if file.is_file() and not _is_log(file))
        checkpoints = loop.checkpoint * (self.settings.loop.checkpoints + 1)
        seconds = wall - loop.measured + loop.seconds
        self.needs.append(StageNeeds(name, loop.steps, seconds, peak[0], kept + loop.lines, checkpoints))
        return output

    def loop(self, task: Task, folder: Path, watch: Watch = alarm) -> None:
        """The first steps of a task, and one more whose values are logged."""
        keep_freed_memory()
        torch.manual_seed(self.seed(folder.name))
        metrics, gradients = Metrics(folder), GradientWatch()
        began = time.monotonic()
        try:
            with gradients.watching():
                steps, told = measured_steps(task, metrics, lambda: wait_for(self.device))
        finally:
            metrics.close()
        size, taken = self._checkpoint(task, folder)
        seconds = steps.total(task.steps)
        seconds += min(seconds // max(self.settings.loop.checkpoint_seconds, 1e-9), task.steps) * taken
        written = sum(file.stat().st_size for file in folder.rglob("*") if _is_log(file))
        lines = round(written / told * math.ceil(task.steps / task.log_every))
        extra = steps.logged - steps.plain
        self.loops[folder.name] = Loop(task.steps, time.monotonic() - began, seconds, extra, lines, size)

    def _checkpoint(self, task: Task, folder: Path) -> tuple[int, float]:
        """Bytes and seconds of one."""
        began = time.monotonic()
        Checkpoints(folder, 1).save({"task": task.state(), "rng": torch.get_rng_state()})
        taken = time.monotonic() - began
        return sum(file.stat().st_size for file in folder.glob(FILES)), taken


def _whole(run: Probe, config: TrainConfig) -> list[StageNeeds]:
    """The stages of the whole run, with all models of each arm, from those of one model."""
    found: list[StageNeeds] = []
    for stage in run.needs:
        if not stage.stage.startswith("finetune-"):
            found.append(_tested(run, stage, config) if stage.stage == "test" else stage)
            continue
        arm = stage.stage.removeprefix("finetune-").removesuffix("-0")
        for name, models in tuned_models(config, arm).items():
            searched = name.startswith("search-")
            kept = {"disk": 0, "checkpoints": 0} if searched else {}
            found.append(replace(stage, stage=name, seconds=models * stage.seconds, **kept))
    return found


def _tested(run: Probe, test: StageNeeds, config: TrainConfig) -> StageNeeds:
    """The test with all models, each of which takes as long per image as a validation."""
    splits = run.data.splits
    sizes = Sizes(len(run.data.unlabelled), len(splits.train), len(splits.val), len(splits.test))
    one_each = replace(config, finetune=replace(config.finetune, seeds=1))
    images = [testing_work(settings, sizes)["image scored"] for settings in (config, one_each)]
    validations = [loop.logged for name, loop in run.loops.items() if name.startswith("finetune-")]
    one = max(0.0, statistics.median(validations)) / max(1, len(splits.val))
    return replace(test, seconds=test.seconds + (images[0] - images[1]) * one)


def _is_log(file: Path) -> bool:
    return file.is_file() and (file.name == "metrics.jsonl" or file.parent.name == "tensorboard")
