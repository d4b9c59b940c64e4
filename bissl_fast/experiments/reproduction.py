"""A table or a figure of BiSSL's paper, made again: what it will cost is told first, then every run that is missing."""

from functools import cached_property
from pathlib import Path

from rich.console import Console

from bissl_fast.evaluation.arms import listed
from bissl_fast.evaluation.report.run import write_report
from bissl_fast.experiments.beside_paper import beside_table, claim
from bissl_fast.experiments.expected import Expected, planned, short_duration
from bissl_fast.experiments.paper_runs import Asked, Lay, PaperRun, present, runs_of
from bissl_fast.experiments.reproduction_page import NO_POINTS, Reproduced, write_reproduction
from bissl_fast.methods.config import is_of
from bissl_fast.methods.costs.units import measure
from bissl_fast.methods.run import Run
from bissl_fast.methods.train import train, train_backbones
from bissl_fast.training.console import say
from bissl_fast.training.files import make_folder, write_json
from bissl_fast.training.precision import find_device


class Reproduction:
    """One call of `bissl-fast reproduce`.

    Args:
        asked: what is reproduced.
        lay: lays the command line's other options over a run's settings.
        console: terminal.
        estimate: whether the costs alone are asked for, also of runs whose sets are not there.
        seconds: that each kind of step is measured for, one step at least.

    Attributes:
        folder: of all runs, which share their pretext stages there.
        runs: those whose sets are there.

    Raises:
        UserError: for settings that cannot be meant, and where the pretext set or all other sets are missing.
    """

    def __init__(self, asked: Asked, lay: Lay, console: Console, estimate: bool = False, seconds: float = 4.0) -> None:
        self.asked, self.console, self.estimate, self.seconds = asked, console, estimate, seconds
        every = runs_of(asked, lay)
        self.folder: Path = every[0].config.output
        self.there, self.absent = present(every, estimate)
        self.runs: tuple[PaperRun, ...] = tuple(run for run, _ in self.there)

    def plan(self) -> Expected:
        """Tell which sets are missing, and what the runs will cost on this machine; leaves `expected-WHAT.json`."""
        if self.absent:
            what = "counted as if they were complete" if self.estimate else "left out with the runs that need them"
            self.say(f"These sets are not there and are {what}:", "yellow")
            for name, reason in self.absent.items():
                self.say(f"  {name}: {reason}", "yellow")
        for sentence in filter(None, (self.made.note, self.changed)):
            self.say(sentence, "yellow")
        expected = self.expected
        if self.memory:
            self.say(self.memory, "yellow")
        self.console.print(expected.grid().to_rich())
        self.say(f"All that is left: {short_duration(expected.seconds)}.", "bold")
        make_folder(self.folder)
        write_json(self.folder / f"expected-{self.asked.what}.json", expected.told())
        return expected

    def run(self) -> Path:
        """Make every run, or what is missing of it; returns the page, which is written anew after each."""
        for number, (run, _) in enumerate(self.there, 1):
            self.say(f"{self.folder.name}/{run.config.name}, run {number} of {len(self.there)}", "bold")
            if self.asked.tuned:
                train(run.config, self.console, write_report)
            else:
                train_backbones(run.config, self.console)
            page = write_reproduction(self.made)
        self.tell()
        self.say(f"Report: {page}", "")
        return page

    def tell(self) -> None:
        """Print ours beside the paper's."""
        if not self.asked.tuned:
            return
        cells = self.made.cells()
        note = self.made.note if self.asked.what == "table1" else NO_POINTS
        self.console.print(beside_table(cells, self.asked, note).to_rich())
        self.say(claim(cells, comparable=not self.made.note), "")

    @cached_property
    def expected(self) -> Expected:
        """What the runs will cost, by a probe of the first one's settings."""
        first, found = self.there[0]
        self.say("Measuring what a step of each kind takes on this machine, before anything is run …", "dim")
        context = Run(first.config, first.config.views, Console(quiet=True))
        measured = measure(context, first.config, found.classes, found.multilabel, self.seconds)
        kept = measured.kept(first.config, context.device)
        stages = planned(self.there, self.folder, self.asked.tuned, kept)
        return Expected(stages, measured, _where(context))

    @property
    def changed(self) -> str:
        """A sentence where runs are there whose finished stages may not be those that will be wanted."""
        folders = {str(run.config.name): run.config for run in self.runs}
        begun = {name: config for name, config in folders.items() if (self.folder / name / "config.yaml").exists()}
        other = [name for name, config in begun.items() if not is_of(self.folder / name, config)]
        if not other:
            return ""
        return (
            f"{listed(other)}: begun with other settings. Stages that these change are made again, and are counted as "
            "done here all the same."
        )

    @property
    def memory(self) -> str:
        """A sentence where one stored batch is more than products may hold, which the stage `bissl` refuses."""
        config, measured = self.there[0][0].config, self.expected.measured
        budget = config.bilevel.budget(find_device(config.device))
        if measured.product_bytes <= budget:
            return ""
        return (
            f"A second-order product of {config.pretrain.batch_size:,} images takes about "
            f"{measured.product_bytes / 1e9:,.0f} GB and its budget here is {budget / 1e9:,.0f} GB, so BiSSL cannot "
            "run: take another --device, --bilevel.products-dtype bfloat16 or a smaller --pretrain.batch-size, or "
            "raise --bilevel.memory-budget."
        )

    @property
    def made(self) -> Reproduced:
        """What is shown."""
        return Reproduced(self.asked, self.folder, self.runs, self.absent)

    def say(self, sentence: str, style: str) -> None:
        """Tell the user."""
        say(self.console, sentence, style)


def _where(run: Run) -> str:
    """The machine, in words."""
    told = run.environment
    return str(told["device"]) if run.device.type == "cuda" else f"{told['processor']}, {told['threads']} threads"
