"""GeSSL's outer gradient of one task, in each of its ways: its time, and how near it is to `through`, which is exact.

On tasks of 16 textures of 32 px, K = 1, λ = 10, ResNet-18, SimCLR, after some pretext steps; and the first inner
gradients of n tasks, which all are at one θ, one by one and together by ``torch.func.vmap``, for which network and loss
are timm's and plain PyTorch, since the fused ones have no batching rule. Ways take turns; the shortest time counts.

    python -m benchmarks.gessl --output docs/results/gessl_cpu    # 5 minutes on 1 CPU core
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import nn

from benchmarks.record import begun, keep, machine, options
from bissl_fast.measuring.products import plain_twin
from bissl_fast.measuring.timing import best_of
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.gessl.algorithm import GeSSLTask
from bissl_fast.methods.gessl.settings import TOLD, GeSSLSettings
from bissl_fast.methods.presets import preset_config
from bissl_fast.methods.run import Run
from bissl_fast.methods.stages.pretrain import PretrainTask
from bissl_fast.ops.nt_xent.reference import nt_xent_loss
from bissl_fast.pretext.instances import Instances, InstanceTask

Row = dict[str, Any]
PAGE = """# GeSSL's outer gradient

{machine}.
resnet18, 32 px, float32, SimCLR with τ = .5, {warmup} pretext steps on textures before, K = 1, λ = 10, tasks of 16
images. Seconds of one task, the shortest of {rounds} rounds, in turns; passes and products as `cost` states them.
Cosine with the exact gradient and ratio of the lengths, mean over {tasks} tasks.

{ways}

Inner gradients of n tasks at one θ, in seconds:

| n | ours, one by one | plain, one by one | plain, vmap | vmap / ours |
|---:|---:|---:|---:|---:|
{together}
"""
WAYS = """α = {rate}

| differentiation | s | passes | products | cosine with `through` | length over that of `through` |
|---|---:|---:|---:|---:|---:|
{rows}
"""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.05, 0.005], help="α")
    parser.add_argument("--tasks", type=int, default=4, help="that cosines are means over")
    parser.add_argument("--counts", nargs="+", type=int, default=[2, 4, 8], help="n of the tasks together")
    parser.add_argument("--warmup", type=int, default=60, help="pretext steps before")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    config = replace(preset_config("quick", "textures"), device="cpu")
    run = Run(config, config.views, Console(quiet=True), tested=False)
    record = begun(arguments)
    instances = Instances(run.learner(config.pretext), "similarity", None, 16, run.features)
    warm_up(run, instances, arguments.warmup)
    with run.data.loader(run.data.unlabelled, run.views, 16 * max(arguments.counts), "gessl") as loader:
        tasks = instances.tasks(loader.load(0).views, max(arguments.counts), 0)
    record["together"] = [together(instances, tasks[:count], arguments.rounds) for count in arguments.counts]
    record["ways"] = {rate: ways(instances, tasks, rate, arguments.tasks, arguments.rounds) for rate in arguments.rates}
    keep(arguments.output, record, page(record))


def warm_up(run: Run, instances: Instances, steps: int) -> None:
    """Pretext training of the learner as `quick` has it, at Adam's rate, so that few steps lead somewhere."""
    config = preset_config("quick", "textures")
    adam = replace(config.pretrain.optimizer, kind="adam", scale_learning_rate=False)
    settings = replace(config.pretrain, optimizer=adam, learning_rate=1e-3, batch_size=64)
    with run.data.loader(run.data.unlabelled, run.views, 64, "pretext") as loader:
        task = PretrainTask(instances.learner, loader, settings, max(1, steps), 0)
        for index in range(steps):
            task.step(index)


def ways(instances: Instances, tasks: list[InstanceTask], rate: float, count: int, rounds: int) -> dict[str, Row]:
    """A row for each differentiation at one α."""
    made: dict[str, GeSSLTask] = {}
    for kind in TOLD:
        settings = GeSSLSettings(tasks=1, inner_rate=rate, differentiation=kind, check_every=0)
        made[kind] = GeSSLTask(instances, None, settings, BilevelSettings(mode="reverse"), 1, 0)  # type: ignore[arg-type]
    calls = {kind: call_of(task, tasks[0]) for kind, task in made.items()}
    seconds = best_of(calls, rounds, "cpu")
    exact = [made["through"].outer_gradient(task)[0] for task in tasks[:count]]
    rows = {}
    for kind, task in made.items():
        found = [task.outer_gradient(given)[0] for given in tasks[:count]]
        pairs = list(zip(found, exact, strict=True))
        cosines = [float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in pairs]
        lengths = [float(a.norm() / b.norm()) for a, b in pairs]
        cost = task.settings.cost(1)
        rows[kind] = {
            "seconds": seconds[kind],
            "passes": cost.passes,
            "products": cost.products,
            "cosine": sum(cosines) / count,
            "length": sum(lengths) / count,
        }
    return rows


def call_of(task: GeSSLTask, given: InstanceTask) -> Callable[[], object]:
    return lambda: task.outer_gradient(given)


def together(instances: Instances, tasks: list[InstanceTask], rounds: int) -> Row:
    """Seconds of the inner gradients of all tasks."""
    plain = plain_twin("resnet18", 32, instances.learner.network).train()
    parameters, buffers = dict(plain.named_parameters()), dict(plain.named_buffers())
    detached = {name: p.detach() for name, p in parameters.items()}
    first, second = (torch.stack([task.views[k] for task in tasks]) for k in (0, 1))

    def loss(weights: dict[str, torch.Tensor], moved: Any, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        outputs = [torch.func.functional_call(plain, (weights, moved), (view,)) for view in (one, other)]
        return nt_xent_loss(*outputs, instances.temperature)

    def by_vmap() -> object:
        stacked = {name: p.expand(len(tasks), *p.shape).clone() for name, p in detached.items()}
        moved = {name: b.expand(len(tasks), *b.shape).clone() for name, b in buffers.items()}
        return torch.func.vmap(torch.func.grad(loss))(stacked, moved, first, second)

    def one_by_one() -> object:
        return [torch.autograd.grad(of_plain(plain, task), list(parameters.values())) for task in tasks]

    def of_plain(network: nn.Module, task: InstanceTask) -> torch.Tensor:
        return nt_xent_loss(network(task.views[0]), network(task.views[1]), instances.temperature)

    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: [instances.gradient(task) for task in tasks],
        "plain": one_by_one,
        "vmap": by_vmap,
    }
    return {"n": len(tasks), "seconds": best_of(calls, rounds, "cpu")}


def page(record: Row) -> str:
    """The record as Markdown."""
    tables = []
    for rate, rows in record["ways"].items():
        lines = [
            f"| `{kind}` | {row['seconds']:.2f} | {row['passes']} | {row['products']} | {row['cosine']:.3f} | "
            f"{row['length']:.2f} |"
            for kind, row in rows.items()
        ]
        tables.append(WAYS.format(rate=rate, rows="\n".join(lines)))
    lines = []
    for row in record["together"]:
        ours, plain, vmap = (row["seconds"][way] for way in ("ours", "plain", "vmap"))
        lines.append(f"| {row['n']} | {ours:.2f} | {plain:.2f} | {vmap:.2f} | {vmap / ours:.2f} |")
    return PAGE.format(
        machine=machine(record, "timm"),
        ways="\n".join(tables).rstrip(),
        together="\n".join(lines),
        **{name: record["settings"][name] for name in ("warmup", "rounds", "tasks")},
    )


if __name__ == "__main__":
    main()
