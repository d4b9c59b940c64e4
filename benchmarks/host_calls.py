"""What the host does in a pretext step: calls, kernel launches and time, with the work of the kernels taken away.

No GPU is needed: the step is a GPU's, taken on a CPU. Kernels in Triton are counted in place of being launched, and the
network is a ResNet-18 of so few channels, on images so small, that little is left of other operations but their call.
*calls* are operations as PyTorch dispatches them, *launches* those that are no view and no allocation (one kernel each
at least, a list of tensors counted once) and Triton's. *host_ms* is time of the processor, at best, without what a
launch itself costs, some microseconds. The peer is timm's network in a loop as people write it, as `benchmarks.step`
has it. Of a captured step (`--pretrain.capture`) it is what is done outside of the graph.

    python -m benchmarks.host_calls --out docs/results    # host_calls_cpu.json and .md
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_report import Report, add_budget
from bissl_fast.measuring.step import LARS_SETTINGS
from bissl_fast.methods.stages.pretrain import PretrainSettings, PretrainTask
from bissl_fast.models import Network, fuse_batch_norm
from bissl_fast.ops import BatchNormAct, contrastive
from bissl_fast.ops.batch_norm import derivatives, schemas
from bissl_fast.ops.captured import Captured
from bissl_fast.ops.lars.reference import lars_step
from bissl_fast.ops.nt_xent.reference import nt_xent_loss
from bissl_fast.pretext import BYOL, Learner, PretextTask, SimCLR
from bissl_fast.pretext import learner as learners
from bissl_fast.training import lars
from bissl_fast.training.finite import GradientWatch
from bissl_fast.training.precision import apply_precision

TASKS: dict[str, PretextTask] = {
    "simclr": SimCLR(projector=(16, 16, 16)),
    "byol": BYOL(projector=(16, 16), predictor=16),
}
NO_LAUNCH = ("empty", "view", "detach", "alias", "permute", "expand", "split", "select", "slice", "squeeze", "unbind",
             "transpose", "t.", "as_strided", "chunk", "new_empty", "_record_function")  # fmt: skip
PARTS: dict[str, tuple[type, tuple[str, ...]]] = {
    "batch norm": (BatchNormAct, ("forward",)),
    "batch norm, backward": (derivatives.BatchNorm, ("backward",)),
    "loss": (SimCLR, ("loss",)),
    "loss, backward": (contrastive.ContrastiveLoss, ("backward",)),
    "gradient watch": (GradientWatch, ("_look",)),
    "optimiser": (lars.LARS, ("step",)),
    "before the forward pass": (PretrainTask, ("begin",)),
    "queue and momentum copy's weights": (Learner, ("advance",)),
}
"""What is told apart by who calls it; the rest by the name of the operation."""


class Calls(TorchDispatchMode):
    """Counts what is dispatched, by part of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.part: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2]
        part = self.part[-1] if self.part else kind(name)
        self.calls[part] += 1
        self.launches[part] += not name.startswith((*NO_LAUNCH, "_unsafe_view", "_reshape_alias", "triton_"))
        return func(*args, **(kwargs or {}))


COUNTING: list[Calls] = []
"""The count that is under way, if one is."""

TIMES: Counter[str] = Counter()
"""Seconds of the processor by part, of parts that are told apart by who calls them."""


def kind(name: str) -> str:
    """The part of a step that an operation belongs to which nobody else claims."""
    kinds = {"convolution": "convolutions", "_to_copy": "casts", "lars": "optimiser", "mm": "linear layers"}
    return next((part for word, part in kinds.items() if word in name), "other")


class Kernel:
    """A Triton kernel that is counted and not launched."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        if COUNTING:
            COUNTING[0].launches[COUNTING[0].part[-1]] += 1
        return lambda *_, **__: None


@contextmanager
def a_gpus_step() -> Iterator[None]:
    """Inside the block the code that serves CUDA tensors serves those of the CPU, and nothing of Triton is launched."""
    from bissl_fast.ops.triton import batch_norm, batch_norm_sums, batch_norm_values, launch, rows, tiles, weights

    backend = import_module("bissl_fast.ops.backend")  # whose name a function has in its package
    library = torch.library.Library("bissl_fast", "IMPL")  # type: ignore[no-untyped-call]
    ops = {f"triton_batch_norm_{name}": getattr(batch_norm, name) for name in schemas.ARGUMENTS}
    ops |= {f"triton_contrastive_{name}": getattr(launch, name) for name in ("fwd", "bwd")}
    with ExitStack() as stack:
        for name, op in ops.items():
            library.impl(name, partial(counted, op), "CPU")  # type: ignore[no-untyped-call]
        for module in (batch_norm_sums, batch_norm_values, rows, tiles, weights):
            for name, value in vars(module).items():
                if hasattr(value, "arg_names"):
                    stack.enter_context(mock.patch.object(module, name, Kernel()))
        stack.enter_context(mock.patch.dict(backend.PREFERRED, {"cpu": ("triton", "cpp")}))
        stack.enter_context(mock.patch.object(backend, "out_of_reach", return_value=""))
        for part, (owner, names) in PARTS.items():
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, claimed(part, owner, name)))
        yield
    library._destroy()  # type: ignore[no-untyped-call]


def counted(op: Callable[..., Any], *given: Any) -> Any:
    """A raw kernel's own calls, which are hidden from a count outside of it."""
    with ExitStack() as stack:
        if COUNTING:
            stack.enter_context(COUNTING[0])
        return op(*given)


def claimed(part: str, owner: type, name: str) -> Any:
    """A method whose calls are of a part of the step."""
    method = getattr(owner, name)

    def calling(*given: Any, **named: Any) -> Any:
        if not COUNTING:
            start = time.process_time()
            made = method(*given, **named)
            TIMES[part] += time.process_time() - start
            return made
        COUNTING[0].part.append(part)
        try:
            return method(*given, **named)
        finally:
            COUNTING[0].part.pop()

    return staticmethod(calling) if isinstance(vars(owner).get(name), staticmethod) else calling


def views() -> tuple[torch.Tensor, ...]:
    """Two of four images of 32 px, channels-last."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last) for _ in range(2))


def narrow(task: PretextTask, fused: bool) -> Network:
    """A ResNet-18 of 8 to 64 channels and the task's head."""
    backbone = ResNet(BasicBlock, (2, 2, 2, 2), channels=(8, 16, 32, 64), stem_width=8, num_classes=0)
    network = Network(backbone, task.head(64, seed=0)).to(memory_format=torch.channels_last)
    return fuse_batch_norm(network) if fused else network  # type: ignore[return-value]


class Silent:
    """A graph whose replay is one launch, and here none."""

    def capture(self, work: Callable[[], Any], device: torch.device) -> Any:
        return work()

    def replay(self) -> None:
        if COUNTING:
            COUNTING[0].launches["graph"] += 1


def our_step(name: str, capture: bool = False) -> Callable[[], object]:
    """A step of a stage, as the loop takes it, that is not logged."""
    task = TASKS[name]
    forward = apply_precision("bf16", torch.device("cpu"))
    with mock.patch.object(learners, "Captured", partial(Captured, graph=Silent)):
        learner = Learner(task, narrow(task, True), forward, capture=capture)
    batch = SimpleNamespace(views=views())
    loader: Any = SimpleNamespace(load=lambda index: batch)
    stage = PretrainTask(learner, loader, PretrainSettings(batch_size=4), 10**6, 10)
    gradients = GradientWatch()

    def step() -> None:
        with gradients.watching():
            stage.step(1)

    step()  # asks whether views may pass together, which kernels that compute nothing could not tell
    return step


def peers_step() -> Callable[[], object]:
    """The peer's: view after view, LARS tensor after tensor."""
    network = narrow(TASKS["simclr"], False)
    parameters = list(network.parameters())
    momenta = [torch.zeros_like(p) for p in parameters]
    forward, made = apply_precision("bf16", torch.device("cpu")), views()

    def step() -> None:
        with forward():
            first, second = (network(view) for view in made)
        gradients = torch.autograd.grad(nt_xent_loss(first.float(), second.float(), temperature=0.5), parameters)
        with torch.no_grad():
            for p, m, g in zip(parameters, momenta, gradients, strict=True):
                lars_step(p, m, g, LARS_SETTINGS)

    return step


def count(step: Callable[[], object]) -> Calls:
    """Of one step, after those that a capture takes."""
    for _ in range(3):
        step()
    with Calls() as calls:
        COUNTING.append(calls)
        try:
            step()
        finally:
            COUNTING.clear()
    return calls


def milliseconds(step: Callable[[], object], rounds: int) -> tuple[float, Counter[str]]:
    """Of the processor: a step's least, and of that step, what each part took of it."""
    best, parts = float("inf"), Counter[str]()
    for _ in range(rounds):
        TIMES.clear()
        start = time.process_time()
        step()
        took = time.process_time() - start
        if took < best:
            best, parts = took, Counter({part: 1e3 * seconds for part, seconds in TIMES.items()})
    return 1e3 * best, parts


def measure(report: Report, rounds: int) -> None:
    """A row per part of a step of ours, and one for each whole step."""
    steps = {(name, capture): our_step(name, capture) for name in TASKS for capture in (False, True)}
    with a_gpus_step():
        for name in TASKS:
            step = steps[name, False]
            calls, (total, parts) = count(step), milliseconds(step, rounds)
            parts["the rest"] = total - parts.total()
            for part in sorted({*calls.calls, *parts}, key=lambda part: -calls.launches[part]):
                found = {"calls": calls.calls[part], "launches": calls.launches[part], "host_ms": parts.get(part, "")}
                report.row(f"a step of {name}, by part", lambda found=found: found, part=part)  # type: ignore[misc]
            whole(report, name, step, rounds)
            whole(report, f"{name}, captured", steps[name, True], rounds)
    whole(report, "simclr, the peer's", peers_step(), rounds)


def whole(report: Report, name: str, step: Callable[[], object], rounds: int) -> None:
    """A row with the sums over all parts."""

    def found() -> dict[str, Any]:
        calls = count(step)
        sums = {"calls": calls.calls.total(), "launches": calls.launches.total()}
        return {**sums, "host_ms": milliseconds(step, rounds)[0]}

    report.row("whole steps", found, step=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--rounds", type=int, default=50, help="steps that are timed; the shortest counts")
    add_budget(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    title = "The host's part of a pretext step: `python -m benchmarks.host_calls`"
    where = arguments.out / "host_calls_cpu"
    measure(Report(where, title, device, arguments, arguments.budget_seconds), arguments.rounds)


if __name__ == "__main__":
    main()
