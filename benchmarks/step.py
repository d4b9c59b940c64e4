"""The steps of `bissl-fast bench step`, ours and plain PyTorch's in turns, and on a GPU without the host.

On CUDA also ours as `--pretrain.capture` takes it (`captured_ms`), what the device works in one step of each
(`busy_ms`) and in how many launches (`kernels`): where a step takes longer, the host is what costs. And all of ours as
one CUDA graph, optimiser included, `ours_replayed_ms`, or why it cannot be captured. The peer is timm's network called,
compiled, and compiled by mode `reduce-overhead`, which makes CUDA graphs. All are channels-last and in the same number
format, on views of noise that wait on the device. With ``--fed`` also ours on views that the loader makes meanwhile,
and the share of a step that waits for them.

    python -m benchmarks.step --out docs/results --fed    # step_<gpu>.json and .md
    python -m benchmarks.step --out . --device cpu --quick    # does it run?
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.gpu_augment import pictures, wait_share
from benchmarks.gpu_report import Report, add_budget, place
from benchmarks.gpu_timing import device_work, replay_ms
from bissl_fast.errors import UserError
from bissl_fast.measuring.feeding import Views, pretext_step
from bissl_fast.measuring.step import Case, Step, noise, plain_step
from bissl_fast.measuring.timing import best_of
from bissl_fast.training.precision import Precision

PEERS: dict[str, str | None] = {
    "eager": None,
    "network and loss compiled": "default",
    "network and loss compiled, reduce-overhead": "reduce-overhead",
}
"""By the mode of `torch.compile`; ``None``: called."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=1024, help="images, each in two views")
    parser.add_argument("--precisions", nargs="+", choices=get_args(Precision), default=["bf16", "tf32"])
    parser.add_argument("--rounds", type=int, default=5, help="turns; the best counts")
    parser.add_argument("--steps", type=int, default=4, help="in a turn, one after the other")
    parser.add_argument("--fed", action="store_true", help="also with the loader")
    parser.add_argument("--quick", action="store_true", help="a small size, once: does the script run?")
    add_budget(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.pairs, arguments.rounds, arguments.steps = 32, 4, 1, 1
        arguments.precisions = ["fp32"]
    measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """For each precision a row per peer, with ours timed beside it, and one or two with the loader.

    What takes no compilation comes first, for a run that is cut off.
    """
    device = torch.device(arguments.device)
    captures = (False, True) if device.type == "cuda" else (False,)
    where = place(arguments.out, "step", device)
    report = Report(where, "A pretext step: `python -m benchmarks.step`", device, arguments, arguments.budget_seconds)
    for precision in arguments.precisions:
        for name, mode in PEERS.items():
            if mode == "reduce-overhead" and device.type != "cuda":  # which is about CUDA graphs
                continue
            run = partial(beside, arguments, device, precision, mode)
            report.row("step", run, precision=precision, peer=name)
            if mode is not None or not arguments.fed:
                continue
            images, seconds = pictures()[1], 0.1 if arguments.quick else 5.0
            for capture in captures:
                fed = (images, arguments.size, arguments.pairs, seconds, device, precision, capture)
                report.row("fed", partial(wait_share, *fed), precision=precision, captured=capture)


def beside(
    arguments: argparse.Namespace, device: torch.device, precision: Precision, mode: str | None
) -> dict[str, Any]:
    """Times of a step of ours, on CUDA called and captured, and of a peer's, compiled by a mode or, by none, called."""
    case = Case(arguments.backbone, arguments.size, arguments.pairs, device)
    views = noise(case)
    given = (case.backbone, case.size, device, precision)
    steps = {"ours": pretext_step(*given)}
    refusal: dict[str, Any] = {}
    if device.type == "cuda":
        made, refusal = captured(given, views)
        steps |= made
    steps["peer"] = plain_step(*given, mode is not None, mode=mode or "default")

    def several(step: Step) -> None:
        for _ in range(arguments.steps):
            step(views)

    calls = {name: partial(several, step) for name, step in steps.items()}
    seconds = best_of(calls, arguments.rounds, arguments.device)
    times: dict[str, Any] = refusal | {f"{name}_ms": 1e3 * took / arguments.steps for name, took in seconds.items()}
    times["times_faster"] = seconds["peer"] / seconds["ours"]
    if "captured" in seconds:
        times["captured_times_faster"] = seconds["peer"] / seconds["captured"]
    if device.type == "cuda":
        times |= on_the_device({name: partial(step, views) for name, step in steps.items()}, device)
    return times


def captured(given: tuple[Any, ...], views: Views) -> tuple[dict[str, Step], dict[str, str]]:
    """Ours as one graph that is there already, or why there is none, which costs no other number."""
    step = pretext_step(*given, capture=True)
    try:
        for _ in range(2):  # the second is captured
            step(views)
    except (RuntimeError, UserError) as error:
        return {}, {"not_captured": str(error).strip().partition("\n")[0]}
    return {"captured": step}, {}


def on_the_device(steps: dict[str, Callable[[], object]], device: torch.device) -> dict[str, Any]:
    """What a step costs without the host: the work of its kernels, and all of ours replayed as a CUDA graph."""
    found: dict[str, Any] = {}
    for name, step in steps.items():
        found[f"{name}_busy_ms"], found[f"{name}_kernels"] = device_work(step, device)
    # A capture that fails can leave its own stream current, on which nothing would ever run again.
    with torch.cuda.stream(torch.cuda.current_stream(device)):
        try:
            found["ours_replayed_ms"] = replay_ms(steps["ours"], device)
        except RuntimeError as error:
            found |= {"ours_replayed_ms": None, "ours_not_captured": str(error).strip().partition("\n")[0]}
    return found


if __name__ == "__main__":
    main()
