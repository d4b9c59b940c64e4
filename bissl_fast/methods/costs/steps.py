"""What the steps of a loop take: a few are made, and the others are counted up from them."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bissl_fast.training.log import Metrics
from bissl_fast.training.loop import Task, is_logged

PROBE_SECONDS = 3.0
"""Steady steps of a loop are taken for so long, two at least."""
LONG = 30.0
"""A first step of so many seconds is followed by one more alone, which stands for those that are logged, too."""


@dataclass
class Steps:
    """Seconds of the steps of a loop: of the first, of others, and of others whose values are logged."""

    every: int
    first: float
    plain: float
    logged: float

    def total(self, steps: int) -> float:
        """Of all steps."""
        logged = math.ceil(steps / self.every)
        logged_later, plain_later = (logged - 1, 0) if self.every == 1 else (logged, steps - logged - 1)
        return self.first + max(0, plain_later) * self.plain + min(logged_later, steps - 1) * self.logged


@dataclass
class Timer:
    """Times the steps of a task and logs those that are logged."""

    task: Task
    metrics: Metrics
    wait: Callable[[], None]
    plain: list[float] = field(default_factory=list)
    logged: list[float] = field(default_factory=list)
    lines: int = 0

    def step(self, index: int) -> float:
        """Seconds of a step."""
        began = time.monotonic()
        values = {name: v.tolist() if isinstance(v, torch.Tensor) else v for name, v in self.task.step(index).items()}
        self.wait()
        if is_logged(self.task, index):
            self.metrics.write(index + 1, {**values, "images_per_second": 0.0})
            self.lines += 1
        return time.monotonic() - began


def measured_steps(task: Task, metrics: Metrics, wait: Callable[[], None]) -> tuple[Steps, int]:
    """The first step, then steady ones, and one whose values are logged if there was none among these.

    Args:
        task: whose steps are made.
        metrics: that logged values are written to, once at least.
        wait: for the device.

    Returns:
        What steps take, and how many lines of values were written.
    """
    timer = Timer(task, metrics, wait)
    first, began, index = timer.step(0), time.monotonic(), 1
    fewest = 2 if first > LONG else 3
    while index < task.steps and (index < fewest or time.monotonic() - began < PROBE_SECONDS):
        (timer.logged if is_logged(task, index) else timer.plain).append(timer.step(index))
        index += 1
    if not timer.logged and index < task.steps and first <= LONG:
        timer.logged.append(timer.step(min((index // task.log_every + 1) * task.log_every, task.steps) - 1))
    if not timer.lines:  # a loop of one step, or of few that are long
        metrics.write(1, {})
    plain = statistics.median(timer.plain or timer.logged or [first])
    logged = statistics.median(timer.logged or timer.plain or [first])
    return Steps(task.log_every, first, plain, logged), max(1, timer.lines)
