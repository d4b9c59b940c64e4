"""The step loop that every stage shares: logging, checkpoints, interruption, non-finite numbers."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from bissl_fast.errors import UserError
from bissl_fast.ops.collectives import Ranks, gathered
from bissl_fast.training.checkpoint import Checkpoints
from bissl_fast.training.clock import Clock
from bissl_fast.training.console import ProgressBar, say
from bissl_fast.training.finite import GradientWatch, first_non_finite
from bissl_fast.training.interruption import Interrupted, Interruption
from bissl_fast.training.log import Metrics
from bissl_fast.training.memory import keep_freed_memory
from bissl_fast.training.ranks.agreement import anywhere
from bissl_fast.training.ranks.lead import is_lead
from bissl_fast.training.ranks.sameness import require_same_state
from bissl_fast.training.seeds import derive_seed

Values = Mapping[str, "torch.Tensor | float | str | None"]
"""What a step logs. None is written as null: what could not be measured and decides nothing, a reason beside it."""


REMEDY = "Another precision than fp32, or a learning rate that is too high, is the usual cause."
"""Of numbers that are not finite."""


class Task(Protocol):
    """What a stage does in one step. All that a step changes is in ``state``; the rest follows from its index.

    A task may have a sentence ``remedy``: what to change where its numbers stop being finite.
    """

    steps: int
    images_per_step: int
    log_every: int

    def step(self, index: int) -> Values:
        """Step ``index`` (0-based); returns scalars and vectors to log, left on their device."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


def is_logged(task: Task, index: int) -> bool:
    """Whether the values of step ``index`` are logged: every so manieth, and the last."""
    return (index + 1) % task.log_every == 0 or index + 1 == task.steps


@dataclass(frozen=True)
class LoopSettings:
    """How a run is watched and kept. None of it changes a result.

    Attributes:
        checkpoint_seconds: time between checkpoints; 0 writes one after each step.
        checkpoints: how many are kept while a stage runs: where the last is damaged, the one before it serves.
    """

    checkpoint_seconds: float = 60.0
    checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.checkpoints < 1:
            raise UserError(f"--loop.checkpoints must be at least 1, found {self.checkpoints}.")
        if not self.checkpoint_seconds >= 0:
            raise UserError(f"--loop.checkpoint-seconds must not be negative, found {self.checkpoint_seconds}.")


class NonFiniteError(UserError):
    """A loss, a gradient or a weight is no longer a number."""


def run_loop(
    task: Task,
    folder: Path,
    device: torch.device,
    seed: int,
    settings: LoopSettings,
    console: Console,
    watch: Callable[[Mapping[str, Any]], str] = lambda values: "",
    ranks: Ranks | None = None,
    check_every: int = 0,
) -> None:
    """Take a task from its checkpoint, or from the start, to its last step.

    Broken off at any moment and called again, it ends with the same bits as if it had not been (on the same number of
    threads).

    Args:
        task: the work.
        folder: the stage's folder: ``metrics.jsonl``, ``checkpoint.pt``, TensorBoard events.
        device: where checkpoints are loaded to.
        seed: of torch's global generator, which layers such as dropout draw from.
        settings: checkpoint interval.
        console: terminal.
        watch: of the values that are logged; a sentence is told when it first comes, and when it has gone between.
        ranks: processes that take the same steps, each with its part of a task whose ``state`` is the same on all. The
            first alone writes, and all go on from what it has written. Layers draw by step and rank.
        check_every: steps between comparisons of all state over the ranks, which take time; 0 makes none.

    Raises:
        Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
        NonFiniteError: names the term; the last good checkpoint stays.
        UserError: if the checkpoint belongs to another model, the disk is full, or the states of ranks differ.
    """
    keep_freed_memory()
    _Loop(task, folder, device, seed, settings, console, watch, ranks, check_every).run()


@dataclass
class _Loop:
    """One call of :func:`run_loop`, whose arguments it has."""

    task: Task
    folder: Path
    device: torch.device
    seed: int
    settings: LoopSettings
    console: Console
    watch: Callable[[Mapping[str, Any]], str]
    ranks: Ranks | None
    check_every: int

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.folder, self.settings.checkpoints, self.console)
        self.done, self.warned, self.clock = 0, False, Clock(self.folder)
        self.window: list[dict[str, Any]] = []
        self.gradients = GradientWatch()
        torch.manual_seed(self.seed)
        offset = self._resume(self.device)
        self._require_same_step()
        self.metrics = Metrics(self.folder, offset, self.done) if is_lead(self.ranks) else None
        self.saved = self.done

    def run(self) -> None:
        try:
            with Interruption() as interruption, self._progress() as progress, self.gradients.watching():
                saved_at = time.monotonic()
                self.window_start, self.window_first = saved_at, self.done
                while self.done < self.task.steps:
                    self.gradients.begin(self.done)
                    self._draw_apart()
                    self.window.append(dict(self.task.step(self.done)))
                    self.done += 1
                    self._compare()
                    if is_logged(self.task, self.done - 1):
                        self._log(progress)
                    due = is_lead(self.ranks) and time.monotonic() - saved_at >= self.settings.checkpoint_seconds
                    stop, due = anywhere([interruption.requested, due], self.ranks)
                    if stop or (due and self.done < self.task.steps):
                        self._save()
                        saved_at = time.monotonic()
                    if stop:
                        raise Interrupted(
                            f"{self.folder.name} stopped on request after step {self.done} of {self.task.steps}; "
                            "a checkpoint holds everything."
                        )
            self._check_finite()
        finally:
            if self.metrics is not None:
                self.metrics.close()

    def _draw_apart(self) -> None:
        """Ranks draw numbers of their own, which follow from the step, so that any number of ranks can go on."""
        if self.ranks is not None:
            torch.manual_seed(derive_seed(self.seed, f"step {self.done}, rank {self.ranks.rank}"))

    def _compare(self) -> None:
        """In every so manieth step, and in the last, refuse ranks whose states differ."""
        if self.ranks is None or not self.check_every:
            return
        if self.done % self.check_every == 0 or self.done == self.task.steps:
            require_same_state(self.task.state(), self.ranks, f"{self.folder.name}, step {self.done}")

    def _progress(self) -> ProgressBar:
        return ProgressBar(self.console, self.folder.name, self.task.steps, self.done)

    def _resume(self, device: torch.device) -> int:
        """Take over the last whole checkpoint, if there is one; returns the length of the log at that time, bytes."""
        saved = self.checkpoints.newest(device)
        if saved is None:
            return 0
        try:
            self.task.restore(saved["task"])
            self.done, self.window = saved["done"], saved["window"]
            torch.set_rng_state(saved["rng"].cpu())
            if saved["cuda_rng"] is not None and device.type == "cuda":
                torch.cuda.set_rng_state(saved["cuda_rng"].cpu(), device)
            offset = int(saved["offset"])
            if not (type(self.done) is int and 0 <= self.done <= self.task.steps and isinstance(self.window, list)):
                raise ValueError("no step of this stage")
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"the checkpoint in {self.folder} is one of another model ({(str(error) or 'empty').splitlines()[0]}); "
                "move it away to start the stage over."
            ) from None
        say(self.console, f"{self.folder.name}: goes on after step {self.done} of {self.task.steps}", "dim")
        return offset

    def _require_same_step(self) -> None:
        """Refuse ranks that go on from different checkpoints."""
        if self.ranks is not None:
            steps = gathered(torch.tensor([self.done]), self.ranks).tolist()
            if len(set(steps)) > 1:
                raise UserError(
                    f"the ranks find different checkpoints in {self.folder}, of steps {steps}: --output must be a "
                    "folder that all of them share."
                )

    def _save(self) -> None:
        state = self.task.state()
        self._settle_all()
        self._check_finite(state)
        if self.metrics is not None:
            self._write(state, self.metrics)
        self.saved = self.done

    def _write(self, state: dict[str, Any], metrics: Metrics) -> None:
        """The checkpoint, behind everything that has been logged."""
        metrics.sync()
        self.checkpoints.save(
            {
                "task": state,
                "done": self.done,
                "window": self.window,
                "offset": metrics.offset,
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            }
        )
        self.clock.keep()

    def _settle_all(self) -> None:
        """:meth:`_settle` on all ranks, which stop together."""
        found: NonFiniteError | None = None
        try:
            self._settle()
        except NonFiniteError as error:
            found = error
        (stop,) = anywhere([found is not None], self.ranks)
        if found is not None:
            raise found
        if stop:
            raise NonFiniteError(f"{self.folder.name} stopped: another rank has met a number that is not finite.")

    def _settle(self) -> None:
        """Bring the window's values from the device as plain numbers, and stop at the first that is not finite."""
        first = self.done - len(self.window)
        for index, values in enumerate(self.window):
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    values[name] = value = value.tolist()
                if value is None or isinstance(value, str):
                    continue
                if not all(math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
                    raise self._non_finite(f"{name} became {value}", first + index + 1)

        if (bad := self.gradients.first()) is not None:
            raise self._non_finite(f"{bad.words(self.task.state)} became not finite", bad.step + 1)

    def _check_finite(self, state: dict[str, Any] | None = None) -> None:
        name = first_non_finite(self.task.state() if state is None else state)
        if name is not None:
            raise self._non_finite(f"the weights {name} hold a number that is not finite", self.done)

    def _non_finite(self, what: str, step: int) -> NonFiniteError:
        kept = f"the checkpoint of step {self.saved} is kept" if self.saved else "no checkpoint had been written yet"
        bad = self.gradients.first()
        if bad is not None and bad.step < step and "gradient of" not in what:
            first = f"{bad.words(self.task.state)} in step {bad.step + 1}"
            what = f"{what} (first of all gradients that are not finite: {first})"
        remedy = getattr(self.task, "remedy", REMEDY)
        return NonFiniteError(
            f"{self.folder.name} stopped: {what} at step {step} of {self.task.steps}; {kept}. {remedy}"
        )

    def _log(self, progress: ProgressBar) -> None:
        self._settle_all()
        now = time.monotonic()
        rate = (self.done - self.window_first) * self.task.images_per_step / max(1e-9, now - self.window_start)
        means = {name: _mean([v[name] for v in self.window if name in v]) for name in _names(self.window)}
        if self.metrics is not None:
            self.metrics.write(self.done, {**means, "images_per_second": round(rate, 1)})
        self._warn(self.watch(means))
        note = next((f"{name} {value:.4f}" for name, value in means.items() if isinstance(value, float)), "")
        progress.update(self.done, rate, note)
        self.window, self.window_start, self.window_first = [], now, self.done

    def _warn(self, sentence: str) -> None:
        if sentence and not self.warned:
            say(self.console, f"{self.folder.name}, step {self.done}: {sentence}", "yellow")
        self.warned = bool(sentence)


def _names(window: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for values in window for name in values))


def _mean(values: list[Any]) -> Any:
    """Mean of numbers, or entry by entry of lists; of what is neither, the last."""
    if any(value is None or isinstance(value, str) for value in values):
        return values[-1]
    if isinstance(values[0], list):
        return [math.fsum(column) / len(values) for column in zip(*values, strict=True)]
    return math.fsum(values) / len(values)
