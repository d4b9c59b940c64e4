"""``bissl-fast bench step``: a training step, and the loop from images to steps, beside others'."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console

from bissl_fast.cli.bench.data import cores
from bissl_fast.cli.bench.tables import Cells, keep, machine_of, make_place, markdown_of, measured, table_of
from bissl_fast.data.sets.catalogue import load_pretext
from bissl_fast.measuring.step import Case, Cost, measure_loops, measure_steps, steps_of
from bissl_fast.measuring.views import enlarged
from bissl_fast.methods.checks import require
from bissl_fast.training.console import say
from bissl_fast.training.precision import Precision


@dataclass(frozen=True)
class StepSettings:
    """Network and batch of the measurement.

    Attributes:
        backbone: any timm CNN.
        size: side of the views in pixels.
        cache_size: side of the images that views are cut from.
        pairs: images of a step, each in two views.
        precisions: fp32, tf32, bf16: all of them in turns.
        rounds: turns of steps on views that are there; the best counts.
        seconds: of measuring each loop from images to steps; 0 leaves loops out.
        compiled: with the compiled peer, too; compiling takes a minute for each precision.
        workers: processes of the peer's loader; 0 is one for each core that this process may use.
        device: cpu or cuda.
        output: file to keep the tables in: Markdown here, and the same numbers as .json beside it.
    """

    backbone: str = "resnet18"
    size: int = 96
    cache_size: int = 112
    pairs: int = 32
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    rounds: int = 5
    seconds: float = 10.0
    compiled: bool = True
    workers: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    output: Path | None = None

    def __post_init__(self) -> None:
        for name in ("size", "cache_size", "rounds"):
            require(getattr(self, name) >= 1, name.replace("_", "-"), getattr(self, name), "at least 1")
        require(self.pairs >= 2, "pairs", self.pairs, "at least 2")
        require(len(self.precisions) > 0, "precisions", self.precisions, "one or more")
        require(self.seconds >= 0, "seconds", self.seconds, "0 or more")
        require(self.workers >= 0, "workers", self.workers, "0 or more")


def run(arguments: Sequence[str]) -> None:
    """Parse, measure, print, keep."""
    settings = tyro.cli(StepSettings, prog="bissl-fast bench step", args=arguments)
    make_place(settings.output)
    console = Console()
    with measured(settings.device) as device:
        machine = machine_of(device)
        say(console, machine)
        case = Case(settings.backbone, settings.size, settings.pairs, torch.device(device))
        title = f"{settings.backbone}, {settings.size} px, 2 x {settings.pairs} views"
        sizes = {name: value for name, value in asdict(settings).items() if name != "output"}
        rows: dict[str, list[Cost]] = {"steps": [], "loops": []}

        def show(kind: str, costs: Sequence[Cost]) -> None:
            rows[kind] += costs
            text = [f"# A training step\n\n{machine}\n"]
            text += [markdown_of(*cells_of(found), f"{TITLES[name]}: {title}") for name, found in rows.items() if found]
            numbers = {name: [asdict(row) for row in found] for name, found in rows.items()}
            keep(settings.output, [*text, f"{NOTE}\n"], {"machine": machine, "settings": sizes, **numbers})

        steps = steps_of(case, settings.precisions, settings.compiled)
        show("steps", measure_steps(case, steps, settings.rounds))
        if settings.seconds:
            images = enlarged(load_pretext("textures", None, settings.cache_size), settings.cache_size)
            for row in measure_loops(case, images, steps, settings.seconds, settings.workers or cores()):
                show("loops", [row])
    for kind, costs in rows.items():
        if costs:
            console.print(table_of(*cells_of(costs), f"{TITLES[kind]}: {title}"))
    say(console, NOTE)


TITLES = {"steps": "Steps on views that are there", "loops": "Steps with the making of their views"}
NOTE = (
    "Peers: timm's network, view after view, LARS tensor after tensor; in the second table torchvision's views of "
    "Pillow images from a DataLoader. Floor: the step's convolutions and matrix products at the rate of a large "
    "convolution in this run. Waiting: until a batch was handed over."
)


def cells_of(rows: Sequence[Cost]) -> Cells:
    """Headings and cells: times, how many times as long as ours in the same precision, and shares."""
    ours = {row.precision: row.seconds for row in rows if row.what == rows[0].what}
    headings = ["step", "precision", "ms", "times ours", "images/s", "of floor", "waiting"]
    return headings, [
        [
            row.what,
            row.precision,
            f"{1e3 * row.seconds:.1f}",
            f"{row.seconds / ours[row.precision]:.2f}",
            f"{row.images_per_second:.1f}",
            share(row.floor_share),
            share(row.waiting_share),
        ]
        for row in rows
    ]


def share(value: float | None) -> str:
    """A share as it stands in a table."""
    return "" if value is None else f"{100 * value:.1f} %"
