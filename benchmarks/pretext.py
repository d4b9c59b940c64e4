"""Cost of each pretext task: of a step, and of a product with its Hessian, in compiled gradients of its own loss.

Every call takes turns with the others, and the shortest time of each counts. A task's row is on disk as soon as it is
known, and is not measured again with the same versions unless ``--tasks`` names it.

    python -m benchmarks.pretext --output docs/results/pretext_cpu --page docs/pretext.md    # 20 minutes
"""

import argparse
import copy
import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch

from bissl_fast.bilevel import CompositeLoss, HessianOperator, ParameterVector
from bissl_fast.data.views.parameters import ViewSettings
from bissl_fast.measuring.products import gradient_function
from bissl_fast.measuring.timing import best_of
from bissl_fast.methods.stages.pretrain import PretrainSettings, PretrainTask
from bissl_fast.methods.trial import noise
from bissl_fast.models import Network, build_backbone, place
from bissl_fast.pretext import (
    BYOL,
    DINO,
    WMSE,
    BarlowTwins,
    Learner,
    MoCo,
    PretextTask,
    SimCLR,
    SimSiam,
    SwAV,
    VICReg,
)
from bissl_fast.training.environment import describe_environment
from bissl_fast.training.files import write_atomic, write_json

Row = dict[str, Any]

BACKBONE, FEATURES = "resnet18", 512
MOST_IN_A_GRAPH = 4
"""Views whose passes are compiled together."""
PAPERS: dict[str, tuple[PretextTask, str]] = {
    task.name: (task, paper)
    for task, paper in (
        (SimCLR(), "Chen et al. 2020, Eq. 1"),
        (MoCo(), "He et al. 2020, Eq. 1; Chen et al. 2020 (v2)"),
        (BYOL(), "Grill et al. 2020, Eq. 2"),
        (SimSiam(), "Chen and He 2021, Eq. 4"),
        (BarlowTwins(), "Zbontar et al. 2021, Eq. 1 and 2"),
        (VICReg(), "Bardes et al. 2022, Eq. 6"),
        (SwAV(), "Caron et al. 2020, Eq. 1 to 6"),
        (DINO(), "Caron et al. 2021, Eq. 3"),
        (WMSE(projector=(1024, 16), slice_size=32), "Ermolov et al. 2021, section 3"),
    )
}
"""Tasks by name, with their papers' widths, and where their losses stand there; W-MSE for slices of 32 images."""

COLUMNS = (
    *("task", "paper", "needs beside views", "views", "pixels", "gradient s"),
    *("step", "linearise", "product", "by `reverse`", "kept MB", "by `reverse`"),
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * 4}{'---:|' * 8}"
PAGE = """# Cost of pretext tasks

bissl-fast {version}, torch {torch}, timm {timm}, Python {python}, {threads} thread(s) of {processor}; {dates}.
ResNet-18, {size} px, {images} images, float32, seed 0; shortest of {rounds} rounds, in turns. Heads are the papers',
but W-MSE's has width 16 for slices of 32 images. The unit of tasks with small views has the backbone compiled, head and
loss not. What the columns are: [pretext.md](../pretext.md).

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="writes .json and .md, row by row")
    parser.add_argument("--page", type=Path, help="Markdown whose table of this kind is replaced")
    parser.add_argument("--tasks", nargs="+", choices=list(PAPERS), help="left out: those that have no row yet")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=96, help="of the large views in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    record: Row = {
        "environment": describe_environment(torch.device("cpu")),
        "settings": {"images": arguments.images, "size": arguments.size, "rounds": arguments.rounds, "seed": 0},
        "rows": {},
    }
    path = arguments.output.with_suffix(".json")
    if path.exists():
        before = json.loads(path.read_text())
        if same_terms(before, record):
            record["rows"] = before["rows"]
    for name in arguments.tasks or [name for name in PAPERS if name not in record["rows"]]:
        started = time.perf_counter()
        row = measured(PAPERS[name][0], **record["settings"])
        record["rows"][name] = {"date": record["environment"]["date"], **row}
        record["rows"][name]["seconds of all"] = time.perf_counter() - started
        write_json(path, record)
        print(name, record["rows"][name], flush=True)
    write_atomic(arguments.output.with_suffix(".md"), page(record).encode())
    if arguments.page:
        write_atomic(arguments.page, replaced(arguments.page.read_text(), table(record)).encode())


def same_terms(first: Row, second: Row) -> bool:
    """Whether rows of both may stand in one table."""
    environments = [
        {name: value for name, value in record["environment"].items() if name != "date"} for record in (first, second)
    ]
    return environments[0] == environments[1] and bool(first["settings"] == second["settings"])


def measured(task: PretextTask, images: int, size: int, rounds: int, seed: int) -> Row:
    """One task: seconds of each call, and bytes kept."""
    torch._dynamo.reset()
    gc.collect()
    torch.manual_seed(seed)
    network = place(Network(build_backbone(BACKBONE, seed, size), task.head(FEATURES, seed)), "cpu").train()
    theta, learner = ParameterVector(network, "backbone."), Learner(task, network, seed=seed)
    vector = torch.randn(len(theta))
    views = noise(task.views(size), images, theta.tensors[0])
    step = step_of(Learner(task, copy.deepcopy(network), seed=seed), views)
    loss, group = learner.product_loss, tuple(learner.given([views]))
    unit = compiled_gradient(loss, network, len(group[0][0]))
    began = time.perf_counter()
    operators = {
        "": HessianOperator(loss, theta, [group], "linearized", compiled=True),
        "reverse ": HessianOperator(loss, theta, [group]),
    }
    products = [operator.matvec(vector) for operator in operators.values()]
    setup = time.perf_counter() - began
    calls: dict[str, Callable[[], object]] = {"gradient": partial(unit, group), "step": step}
    for name, operator in operators.items():
        calls |= {
            f"{name}linearise": partial(operator.update, [group]),
            f"{name}product": partial(operator.matvec, vector),
        }
    seconds = best_of(calls, rounds, "cpu")
    return {
        "seconds": seconds,
        "kept bytes": {f"{name}product": operator.kept_bytes for name, operator in operators.items()},
        "seconds until first products": setup,
        "difference of products": float((products[0] - products[1]).norm() / products[1].norm()),
        "head parameters": sum(p.numel() for p in network.head.parameters()),
        "pixels": pixels(task, size),
    }


def step_of(learner: Learner, views: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    """A step of the pretext stage, at a rate that leaves the weights about where they are."""
    task = learner.task
    settings = PretrainSettings(batch_size=len(views[0]), learning_rate=1e-6, optimizer=task.optimizer)
    loader: Any = SimpleNamespace(load=lambda index: SimpleNamespace(views=views))
    stage = PretrainTask(learner, loader, settings, steps=1000, warmup=0)
    return lambda: stage.step(500)  # not one that logs, nor one of the first, in which prototypes stand still


def compiled_gradient(loss: CompositeLoss, network: Network, views: int) -> Callable[[object], object]:
    """``batch -> ∇L`` of the network with timm's backbone: compiled whole, or of many views the backbone alone.

    Views pass PyTorch's batch norms one by one, and Inductor takes many minutes for eight or ten passes in one graph.
    """
    plain = plain_backbone(network)
    if views <= MOST_IN_A_GRAPH:
        return torch.compile(gradient_function(loss, plain), dynamic=False)
    theta = list(plain.backbone.parameters())
    outer = Network(torch.compile(plain.backbone, dynamic=False), plain.head)
    return lambda batch: torch.autograd.grad(loss(outer, batch), theta)


def plain_backbone(network: Network) -> Network:
    """The network with timm's own backbone, of the same weights, and the same head."""
    backbone = timm.create_model(BACKBONE, num_classes=0)
    backbone.load_state_dict(network.backbone.state_dict())
    return place(Network(backbone, network.head), "cpu").train()


def pixels(task: PretextTask, size: int) -> dict[str, float]:
    """Of the views that a pass sees, in large views: by the trained network and by the momentum copy."""
    needs, views = task.needs, task.views(size)

    def share(seen: list[ViewSettings]) -> float:
        return sum(view.size**2 for view in seen) / size**2

    local = list(views[needs.large : needs.large + needs.local])
    return {
        "trained": share([*(views[k] for k in needs.online), *local]),
        "copy": share([views[k] for k in needs.target]),
    }


def needs_of(task: PretextTask) -> str:
    """What the task is given beside views."""
    needs, found = task.needs, []
    head = type(task.head(8, 0)) if task.name in ("byol", "simsiam") else None
    if head is not None:
        found.append("predictor")
    if needs.target:
        first, last = needs.momentum
        found.append(f"copy ({first:g})" if first == last else f"copy ({first:g} → {last:g})")
    if needs.queue[0]:
        found.append(f"queue of {needs.queue[0]:,}")
    if hasattr(task, "prototypes"):
        found.append(f"{task.prototypes:,} prototypes" + (", Sinkhorn" if hasattr(task, "assign") else ""))
    if needs.centre:
        found.append("centre")
    if needs.batch_multiple > 1:
        found.append("batch a multiple of its slices")
    return ", ".join(found)


def views_of(task: PretextTask) -> str:
    """How many views each network sees."""
    needs = task.needs
    seen = f"{len(needs.online)}" + (f" + {needs.local} small" if needs.local else "")
    return f"{seen}; copy {len(needs.target)}" if needs.target else seen


def table(record: Row) -> str:
    """The rows as Markdown, in the order of the tasks."""
    lines = [HEADER]
    for name, (task, paper) in PAPERS.items():
        if name not in record["rows"]:
            continue
        row = record["rows"][name]
        seconds, kept = row["seconds"], row["kept bytes"]
        trained, copied = row["pixels"]["trained"], row["pixels"]["copy"]
        cells = [f"`{name}`", paper, needs_of(task), views_of(task)]
        cells += [f"{trained:.1f}" + (f" + {copied:.0f}" if copied else ""), f"{seconds['gradient']:.2f}"]
        cells += [
            f"{seconds[way] / seconds['gradient']:.2f}" for way in ("step", "linearise", "product", "reverse product")
        ]
        cells += [f"{kept[way] / 1e6:.0f}" for way in ("product", "reverse product")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def replaced(text: str, table: str) -> str:
    """A page with its table of this kind replaced."""
    lines = text.splitlines()
    start = lines.index(HEADER.splitlines()[0])
    end = next((k for k in range(start, len(lines)) if not lines[k].startswith("|")), len(lines))
    return "\n".join([*lines[:start], table, *lines[end:]]) + "\n"


def page(record: Row) -> str:
    """The record as Markdown."""
    environment = record["environment"]
    return PAGE.format(
        version=environment["bissl-fast"],
        dates=", ".join(sorted({row["date"] for row in record["rows"].values()})),
        table=table(record),
        **{name: environment["packages"][name] for name in ("torch", "timm")},
        **{name: environment[name] for name in ("python", "threads", "processor")},
        **record["settings"],
    )


if __name__ == "__main__":
    main()
